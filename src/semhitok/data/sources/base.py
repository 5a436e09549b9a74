"""What every data set is to its readers: pictures by number, with what is said of them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from semhitok.errors import DataError
from semhitok.images import read_image

ACCEPTED = (
    "a picture, a folder of pictures, .parquet files with an image column, WebDataset .tar files, "
    "a .jsonl of paths, each local or by a URL, or a Hub data set as owner/name or owner/name:split"
)


class ImageSource(ABC):
    """Pictures by number, 0 to len - 1, always in the same order. May be pickled."""

    name: str
    """What reports call the data set."""
    remote: bool = False
    """Whether pictures come from a store, which is best asked for several at once."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, index: int) -> str:
        """A name of the picture that stays the same wherever the data set lies."""

    @abstractmethod
    def read_bytes(self, index: int) -> bytes | Path:
        """The picture as stored: a file's bytes, or the path to it.

        Raises:
            ImageError: it cannot be got at; the message begins with its key.
            StorageError: the store that holds it does not answer.
        """

    def read(self, index: int) -> Image.Image:
        """The picture as `read_image` gives it; errors begin with its key."""
        return read_image(self.read_bytes(index), name=self.key(index))

    def meta(self, index: int) -> dict[str, Any]:
        """What the data set says about the picture: `label`, `class_name`, `captions`, ..."""
        return {}

    def labels(self) -> np.ndarray | None:
        """One int64 class a picture, -1 where it has none; None without any."""
        return None

    def class_names(self) -> list[str] | None:
        """The name of each class, by label; None where the data set tells none."""
        return None

    def fingerprint(self) -> str:
        """SHA-256, in hex, over keys and sizes: another data set gives another one."""
        digest = hashlib.sha256(type(self).__name__.encode())
        for part in self._identity():
            digest.update(b"\0" + part.encode())
        return digest.hexdigest()

    @abstractmethod
    def _identity(self) -> Iterable[str]:
        """What `fingerprint` is taken over."""


class ConcatSource(ImageSource):
    """Several sources, one behind the other."""

    def __init__(self, sources: Sequence[ImageSource], name: str | None = None) -> None:
        """Raises:
        DataError: no sources.
        """
        if not sources:
            raise DataError(f"no data given; accepted: {ACCEPTED}")
        self.sources = list(sources)
        self.name = name or " + ".join(source.name for source in sources)
        self.remote = any(source.remote for source in sources)
        self._starts = np.concatenate([[0], np.cumsum([len(s) for s in sources])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def key(self, index: int) -> str:
        source, inner = self._place(index)
        return source.key(inner)

    def read_bytes(self, index: int) -> bytes | Path:
        source, inner = self._place(index)
        return source.read_bytes(inner)

    def meta(self, index: int) -> dict[str, Any]:
        source, inner = self._place(index)
        return source.meta(inner)

    def labels(self) -> np.ndarray | None:
        """None unless every source has labels, and all mean the same classes by them."""
        parts = [labels for source in self.sources if (labels := source.labels()) is not None]
        names = [source.class_names() for source in self.sources]
        if len(parts) < len(self.sources) or any(n != names[0] for n in names):
            return None
        return np.concatenate(parts)

    def class_names(self) -> list[str] | None:
        return None if self.labels() is None else self.sources[0].class_names()

    def _identity(self) -> Iterable[str]:
        return [source.fingerprint() for source in self.sources]

    def _place(self, index: int) -> tuple[ImageSource, int]:
        index = range(len(self))[index]
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sources[which], index - int(self._starts[which])


class SubsetSource(ImageSource):
    """Some pictures of a source, in the order of `indices`."""

    def __init__(self, source: ImageSource, indices: Sequence[int] | np.ndarray) -> None:
        """Raises:
        DataError: an index outside the source.
        """
        self.source = source
        self.remote = source.remote
        self.indices = np.asarray(indices, dtype=np.int64)
        self.name = f"{source.name} ({len(self.indices)} of {len(source)})"
        outside = self.indices[(self.indices < 0) | (self.indices >= len(source))]
        if outside.size:
            raise DataError(
                f"index {outside[0]} is outside {source.name}; allowed: 0 to {len(source) - 1}"
            )

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        return self.source.key(int(self.indices[index]))

    def read_bytes(self, index: int) -> bytes | Path:
        return self.source.read_bytes(int(self.indices[index]))

    def meta(self, index: int) -> dict[str, Any]:
        return self.source.meta(int(self.indices[index]))

    def labels(self) -> np.ndarray | None:
        labels = self.source.labels()
        return None if labels is None else labels[self.indices]

    def class_names(self) -> list[str] | None:
        return self.source.class_names()

    def _identity(self) -> Iterable[str]:
        return [self.source.fingerprint(), hashlib.sha256(self.indices.tobytes()).hexdigest()]
