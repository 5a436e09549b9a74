"""Picture files below a folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from semhitok.data.sources.base import ACCEPTED, ImageSource
from semhitok.data.sources.names import Names
from semhitok.errors import DataError, ImageError
from semhitok.images import picture_suffixes, reason
from semhitok.storage import Place, find_files, is_remote, read_file


class FolderSource(ImageSource):
    """The picture files below a folder, sorted by their relative path.

    Names that begin with a dot are passed over, and so are linked folders.
    """

    def __init__(self, root: Place, files: Mapping[str, int] | None = None) -> None:
        """Args:
            root: the folder, local or in a store.
            files: relative paths with forward slashes, and bytes; None looks for all pictures.

        Raises:
            DataError: no picture below `root`.
        """
        self.root = root
        self.name = root.resolve().name
        self.remote = is_remote(root)
        found = find_files(root, picture_suffixes()) if files is None else files
        self._files = Names(found)
        self._sizes = np.fromiter(found.values(), dtype=np.int64, count=len(found))
        if not self._files:
            raise DataError(f"{root}: holds no pictures; accepted: {ACCEPTED}")

    def __len__(self) -> int:
        return len(self._files)

    def key(self, index: int) -> str:
        return self._files[index]

    def read_bytes(self, index: int) -> bytes | Path:
        place = self.root / self._files[index]
        if isinstance(place, Path):
            return place
        try:
            return read_file(place)
        except FileNotFoundError as error:
            raise ImageError(f"{self.key(index)}: is gone ({reason(error)})") from error

    def _identity(self) -> Iterable[str]:
        return (f"{file} {size}" for file, size in zip(self._files, self._sizes, strict=True))
