"""Rows of a parquet file."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from semhitok.data.sources.base import ACCEPTED, ImageSource
from semhitok.errors import DataError, ImageError
from semhitok.images import reason
from semhitok.storage import Place, file_size, is_remote, open_file, read_file

IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "bytes")
CACHED_ROW_GROUPS = 4


class ParquetSource(ImageSource):
    """The rows of one parquet file in the Hugging Face layout.

    The picture is a struct of `bytes` and `path`, or plain bytes; every other column is its
    meta. Rows are read a row group at a time, and the last few groups are kept.
    """

    _lock: threading.Lock
    _cache: OrderedDict[tuple[int, str], pa.Table]
    _file: pq.ParquetFile | None

    def __init__(self, path: Place, name: str | None = None) -> None:
        """Args:
            path: the file, local or in a store.
            name: begins the keys; by default the file's name.

        Raises:
            DataError: not a parquet file, or one without a column of pictures or without rows.
        """
        self.path = path
        self.name = name or path.name
        self.remote = is_remote(path)
        self._reset()
        try:
            file = self._open()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: cannot be read as parquet ({reason(error)})") from error
        schema = file.schema_arrow
        self._column = _image_column(schema, path)
        self._others = [name for name in schema.names if name != self._column]
        self._class_names = _class_names(schema)
        groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(groups)]).astype(np.int64)
        if len(self) == 0:
            raise DataError(f"{path}: has no rows; accepted: {ACCEPTED}")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def key(self, index: int) -> str:
        return f"{self.name}:{index}"

    def read_bytes(self, index: int) -> bytes | Path:
        value = self._cell(index, [self._column])[self._column]
        if not isinstance(value, dict):
            value = {"bytes": value}
        if isinstance(value.get("bytes"), bytes):
            return bytes(value["bytes"])
        if value.get("path"):
            return self._beside(str(value["path"]), index)
        raise ImageError(f"{self.key(index)}: the row has no picture; leave it out")

    def meta(self, index: int) -> dict[str, Any]:
        row = self._cell(index, self._others) if self._others else {}
        label = row.get("label")
        if self._class_names and isinstance(label, int) and 0 <= label < len(self._class_names):
            row.setdefault("class_name", self._class_names[label])
        return row

    def labels(self) -> np.ndarray | None:
        if "label" not in self._others:
            return None
        with self._lock:
            column = self._open().read(columns=["label"]).column("label")
        if not pa.types.is_integer(column.type) or column.null_count == len(column):
            return None
        return np.asarray(column.cast(pa.int64()).fill_null(-1))

    def class_names(self) -> list[str] | None:
        return self._class_names or None

    def _identity(self) -> Iterable[str]:
        return [self.name, str(len(self)), str(file_size(self.path))]

    def _beside(self, name: str, index: int) -> bytes | Path:
        place = self.path.parent / name
        if isinstance(place, Path):
            return place
        try:
            return read_file(place)
        except FileNotFoundError as error:
            raise ImageError(f"{self.key(index)}: {name} is not there") from error

    def _cell(self, index: int, columns: list[str]) -> dict[str, Any]:
        index = range(len(self))[index]
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        try:
            table = self._group(group, columns)
        except (OSError, pa.ArrowException) as error:
            raise ImageError(f"{self.key(index)}: cannot be read ({reason(error)})") from error
        row: dict[str, Any] = table.slice(index - int(self._starts[group]), 1).to_pylist()[0]
        return row

    def _group(self, group: int, columns: list[str]) -> pa.Table:
        """Row group `group`, from the cache where it is there."""
        place = (group, columns[0])
        with self._lock:  # one parquet reader must not be used by two threads at once
            if place not in self._cache:
                self._cache[place] = self._open().read_row_group(
                    group, columns=columns, use_threads=False
                )
                while len(self._cache) > CACHED_ROW_GROUPS:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(place)
            return self._cache[place]

    def _open(self) -> pq.ParquetFile:
        if self._file is None:
            path = self.path
            local = isinstance(path, Path)
            self._file = pq.ParquetFile(path if local else open_file(path), memory_map=local)
        return self._file

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._cache = OrderedDict()
        self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_lock", "_cache", "_file")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()


def _image_column(schema: pa.Schema, path: Place) -> str:
    """The column of pictures: one of the usual names first, else the first that fits."""
    fitting = [field.name for field in schema if _holds_pictures(field.type)]
    usual = [name for name in IMAGE_COLUMNS if name in fitting]
    if not fitting:
        raise DataError(
            f"{path}: no column holds pictures (bytes, or a struct of bytes and path); "
            f"its columns: {', '.join(schema.names)}"
        )
    return (usual or fitting)[0]


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: pa.Schema) -> list[str]:
    """Names of the labels, from what `datasets` writes into the schema; empty without."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"].get("names") or []]
    except (KeyError, ValueError, TypeError, AttributeError):
        return []
