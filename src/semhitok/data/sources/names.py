"""Millions of names in two blocks of memory, which processes that fork go on sharing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """Strings by number. A list of them takes several times the memory, and again in each worker:
    to look at a string of a list is to write to its page."""

    def __init__(self, names: Iterable[str]) -> None:
        parts = [name.encode("utf-8", "surrogateescape") for name in names]
        self._text = b"".join(parts)
        self._ends = np.cumsum(np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)))

    @classmethod
    def of_arrays(cls, text: np.ndarray, ends: np.ndarray) -> Names:
        """Inverse of `arrays`."""
        names = cls(())
        names._text, names._ends = text.tobytes(), ends
        return names

    def arrays(self) -> dict[str, np.ndarray]:
        """All there is: the `text` as bytes, and where each name ends in it."""
        return {"text": np.frombuffer(self._text, dtype=np.uint8), "ends": self._ends}

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return self._text[start : self._ends[index]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))
