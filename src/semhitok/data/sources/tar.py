"""Samples of a WebDataset shard."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from semhitok.data.sources.base import ACCEPTED, ImageSource
from semhitok.errors import DataError, ImageError
from semhitok.images import picture_suffixes, reason
from semhitok.storage import Place, is_remote, open_file, read_file


class TarSource(ImageSource):
    """The samples of one WebDataset shard: files that share their name up to its first dot.

    The headers are read once; a picture is then one seek and one read. `.json` is spread over
    the meta, `.txt` gives `captions` (a line each), `.cls` the `label`.
    """

    def __init__(self, path: Place, name: str | None = None) -> None:
        """Args:
            path: the uncompressed tar file, local or in a store.
            name: begins the keys; by default the file's name.

        Raises:
            DataError: not a whole tar file, or one without pictures.
        """
        self.path = path
        self.name = name or path.name
        self.remote = is_remote(path)
        samples = self._index()
        suffixes = {suffix[1:] for suffix in picture_suffixes()}
        self._samples: list[tuple[str, tuple[int, int], dict[str, tuple[int, int]]]] = []
        for key, parts in samples.items():
            pictures = [kind for kind in parts if kind in suffixes]
            if pictures:
                self._samples.append((key, parts[pictures[0]], parts))
        if not self._samples:
            raise DataError(f"{path}: holds no pictures; accepted: {ACCEPTED}")

    def __len__(self) -> int:
        return len(self._samples)

    def key(self, index: int) -> str:
        return f"{self.name}:{self._samples[index][0]}"

    def read_bytes(self, index: int) -> bytes:
        try:
            return self._read(self._samples[index][1])
        except OSError as error:
            raise ImageError(f"{self.key(index)}: cannot be read ({reason(error)})") from error

    def meta(self, index: int) -> dict[str, Any]:
        """Raises:
        DataError: a `.json`, `.txt` or `.cls` that does not hold what its name says.
        """
        parts = self._samples[index][2]
        meta: dict[str, Any] = {}
        try:
            if "json" in parts:
                content = json.loads(self._read(parts["json"]))
                meta.update(content if isinstance(content, dict) else {"json": content})
            if "txt" in parts:
                lines = self._read(parts["txt"]).decode("utf-8").splitlines()
                meta["captions"] = [line.strip() for line in lines if line.strip()]
            if "cls" in parts:
                meta["label"] = int(self._read(parts["cls"]))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.key(index)}: broken .json, .txt or .cls ({reason(error)})"
            ) from error
        return meta

    def labels(self) -> np.ndarray | None:
        if not any("cls" in parts for _, _, parts in self._samples):
            return None
        found = [self.meta(i).get("label", -1) for i in range(len(self))]
        return np.array(found, dtype=np.int64)

    def _identity(self) -> Iterable[str]:
        return [f"{self.name}:{key} {size}" for key, (_, size), _ in self._samples]

    def _read(self, place: tuple[int, int]) -> bytes:
        offset, size = place
        return read_file(self.path, offset, offset + size)

    def _index(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Sample key -> kind ("jpg") -> (offset, size) of its bytes."""
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with open_file(self.path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    if not member.isreg() or member.issparse():
                        continue
                    folder, _, file = member.name.rpartition("/")
                    stem, _, kind = file.partition(".")
                    if stem:  # a hidden file has none
                        key = f"{folder}/{stem}" if folder else stem
                        place = (member.offset_data, member.size)
                        samples.setdefault(key, {}).setdefault(kind.lower(), place)
        except (tarfile.TarError, OSError, ValueError) as error:
            raise DataError(
                f"{self.path}: not a whole, uncompressed tar file ({reason(error)})"
            ) from error
        return samples
