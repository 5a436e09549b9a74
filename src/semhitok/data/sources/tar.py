"""Samples of a WebDataset shard."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from semhitok.data.sources.base import ACCEPTED, ImageSource
from semhitok.data.sources.names import Names
from semhitok.errors import DataError, ImageError
from semhitok.images import picture_suffixes, reason
from semhitok.storage import Place, is_remote, open_file, read_file, remembered

TOLD = ("json", "txt", "cls")
"""Kinds of a sample's files, beside its picture, that are read."""

NOWHERE = (-1, 0)


class TarSource(ImageSource):
    """The samples of one WebDataset shard: files that share their name up to its first dot.

    The headers are read once; a picture is then one seek and one read. What was found in a tar of
    a store is kept on this machine (SEMHITOK_CACHE). `.json` is spread over
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
        if self.remote:  # a tar has no index: to make one it is read from end to end
            contents = remembered("tar", path, " ".join(sorted(picture_suffixes())), self._list)
        else:
            contents = self._list()
        if not contents["ends"].size:
            raise DataError(f"{path}: holds no pictures; accepted: {ACCEPTED}")
        self._keys = Names.of_arrays(contents["text"], contents["ends"])
        self._places = contents["places"]  # (samples, picture and TOLD, offset and size) int64

    def _list(self) -> dict[str, np.ndarray]:
        """Keys and places of the samples that have a picture, as arrays."""
        suffixes = {suffix[1:] for suffix in picture_suffixes()}
        keys, places = [], []
        for key, parts in self._index().items():
            pictures = [kind for kind in parts if kind in suffixes]
            if pictures:
                keys.append(key)
                places.append([parts.get(kind, NOWHERE) for kind in (pictures[0], *TOLD)])
        return {"places": np.array(places, dtype=np.int64), **Names(keys).arrays()}

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return f"{self.name}:{self._keys[index]}"

    def read_bytes(self, index: int) -> bytes:
        try:
            return self._read(self._places[index, 0])
        except OSError as error:
            raise ImageError(f"{self.key(index)}: cannot be read ({reason(error)})") from error

    def meta(self, index: int) -> dict[str, Any]:
        """Raises:
        DataError: a `.json`, `.txt` or `.cls` that does not hold what its name says.
        """
        parts = {
            kind: place
            for kind, place in zip(TOLD, self._places[index, 1:], strict=True)
            if place[0] >= 0
        }
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
        if (self._places[:, 1 + TOLD.index("cls"), 0] < 0).all():
            return None
        found = [self.meta(i).get("label", -1) for i in range(len(self))]
        return np.array(found, dtype=np.int64)

    def _identity(self) -> Iterable[str]:
        sizes = self._places[:, 0, 1]
        return (f"{self.name}:{key} {size}" for key, size in zip(self._keys, sizes, strict=True))

    def _read(self, place: np.ndarray) -> bytes:
        offset, size = (int(number) for number in place)
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
