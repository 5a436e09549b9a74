"""Token files: the two codes of every patch of many pictures, in one parquet file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int64
from torch import Tensor
from upath import UPath

from semhitok.data.columns import TAKEN, Columns
from semhitok.errors import (
    FormatError,
    IdError,
    NotFoundError,
    RangeError,
    ShapeError,
)
from semhitok.images import reason
from semhitok.storage import (
    Place,
    is_file,
    is_folder,
    list_names,
    locate,
    open_file,
    write_bytes,
)

FORMAT_VERSION = 1
MAX_CODES = 65_536
"""Codes of one level that uint16 can name."""

COMPRESSION_LEVEL = 19
"""Of zstd: a fifth smaller than its default; a shard is written once, beside the encoding."""

_PREFIX = "semhitok."
_FAILURES = b"semhitok.failures"


@dataclass(frozen=True, kw_only=True)
class TokenMetadata:
    """Which tokenizer wrote a token file, and how."""

    model: str
    hash: str
    """SHA-256 of the model, as `tok.hash`."""
    num_semantic: int
    """K, the size of the semantic codebook."""
    num_pixel: int
    """m, the pixel codes of each semantic code."""
    patch_size: int
    policy: str
    """`ImagePolicy.describe()` of the pictures."""
    dtype: str
    version: str
    """Of this package."""
    format: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ("num_semantic", "num_pixel"):
            count = getattr(self, name)
            if not 1 <= count <= MAX_CODES:
                raise RangeError(
                    f"{name} is {count:,}; a token file holds 1 to {MAX_CODES:,} codes a level"
                )


@dataclass(frozen=True)
class TokenRecord:
    """One picture's codes, by rows of its grid, and what its data set said about it."""

    key: str
    semantic: Int64[Tensor, "h w"]
    pixel: Int64[Tensor, "h w"]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A picture without tokens, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class TokenSummary:
    """What a token file says of itself, without its rows."""

    metadata: TokenMetadata
    rows: int
    failures: tuple[Failure, ...]
    """Pictures that should have been in it."""
    columns: tuple[str, ...]
    """What travels along: label, captions, ..."""


class TokenFile:
    """A token file that has been read and checked; a sequence of its records."""

    keys: list[str]
    sizes: Int64[np.ndarray, "n 2"]
    """Height and width of each grid, in patches."""
    starts: Int64[np.ndarray, "n_and_one"]
    """Where each picture's codes begin in those of the whole file."""

    def __init__(self, path: Place, metadata: TokenMetadata, table: pa.Table) -> None:
        self.path = path
        self.metadata = metadata
        self.keys = table.column("key").to_pylist()
        self.sizes = _sizes(table, path)
        self._semantic, self.starts = _codes(table, "semantic", metadata.num_semantic, self)
        self._pixel, _ = _codes(table, "pixel", metadata.num_pixel, self)
        self._extra = table.drop_columns(list(TAKEN))

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[TokenRecord]:
        return (self.record(index) for index in range(len(self)))

    def record(self, index: int) -> TokenRecord:
        """The record of row `index`."""
        index = range(len(self))[index]
        part = slice(int(self.starts[index]), int(self.starts[index + 1]))
        semantic, pixel = (
            torch.from_numpy(codes[part].astype(np.int64)).reshape(tuple(self.sizes[index]))
            for codes in (self._semantic, self._pixel)
        )
        row = self._extra.slice(index, 1).to_pylist()
        return TokenRecord(self.keys[index], semantic, pixel, row[0] if row else {})

    def flat_ids(self) -> Int64[np.ndarray, "patches"]:
        """The ids of all pictures, one behind the other."""
        ids: np.ndarray = self._semantic.astype(np.int64) * self.metadata.num_pixel
        ids += self._pixel
        return ids

    def column(self, name: str) -> list[Any]:
        """An extra column, a value a picture.

        Raises:
            FormatError: there is none of that name.
        """
        if name not in self._extra.column_names:
            have = ", ".join(self._extra.column_names) or "none"
            raise FormatError(f"{self.path} has no column {name!r}; it has: {have}")
        values: list[Any] = self._extra.column(name).to_pylist()
        return values


# -------------------------------------------------------------------------------------- writing


def write_tokens(
    path: str | Place,
    records: Iterable[TokenRecord],
    metadata: TokenMetadata,
    *,
    columns: Columns | None = None,
    failures: Sequence[Failure] = (),
) -> None:
    """Write one token file, whole or not at all.

    The keys of the records' `extra` become columns; a record that lacks one has null there.

    Args:
        columns: kinds of the extra columns, where several files must agree; None finds them here.
        failures: pictures that should have been in the file; kept in its metadata.

    Raises:
        ShapeError: the two grids of a record differ, or have no patch.
        IdError: a code outside the codebook that `metadata` names.
        FormatError: `extra` values that do not make one column, or take a reserved name.
        StorageError: the file cannot be written; nothing is left behind.
    """
    data = tokens_bytes(records, metadata, columns=columns, failures=failures)
    write_bytes(locate(path), data)


def tokens_bytes(
    records: Iterable[TokenRecord],
    metadata: TokenMetadata,
    *,
    columns: Columns | None = None,
    failures: Sequence[Failure] = (),
) -> bytes:
    """What `write_tokens` writes.

    Raises:
        ShapeError, IdError, FormatError: as `write_tokens`.
    """
    table = _table(list(records), metadata, columns, failures)
    sink = pa.BufferOutputStream()
    # Semantic codes repeat from patch to patch: zstd finds that in the codes as they are, and not
    # in a dictionary's packed indices (benchmarks/shard_size.py).
    leaves = [_leaf(field.name, field.type) for field in table.schema if field.name != "semantic"]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=leaves,
        write_page_checksum=True,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _leaf(name: str, kind: pa.DataType) -> str:
    """Parquet's name for the values of a column, which are within lists or not."""
    return _leaf(f"{name}.list.element", kind.value_type) if pa.types.is_list(kind) else name


def _table(
    records: list[TokenRecord],
    metadata: TokenMetadata,
    kinds: Columns | None,
    failures: Sequence[Failure],
) -> pa.Table:
    for record in records:
        _check_record(record, metadata)
    small = pa.uint8() if metadata.num_pixel <= 256 else pa.uint16()
    columns = {
        "key": pa.array([record.key for record in records], pa.string()),
        "semantic": _list_column([record.semantic for record in records], pa.uint16()),
        "pixel": _list_column([record.pixel for record in records], small),
        "height": pa.array([record.semantic.shape[0] for record in records], pa.uint16()),
        "width": pa.array([record.semantic.shape[1] for record in records], pa.uint16()),
        **(_extra_columns(records) if kinds is None else kinds.arrays([r.extra for r in records])),
    }
    texts = {f"{_PREFIX}{f.name}": str(getattr(metadata, f.name)) for f in fields(metadata)}
    if failures:
        texts[_FAILURES.decode()] = json.dumps([(f.key, f.reason) for f in failures])
    return pa.table(columns).replace_schema_metadata(texts)


def _check_record(record: TokenRecord, metadata: TokenMetadata) -> None:
    shape = tuple(record.semantic.shape)
    if shape != tuple(record.pixel.shape) or not all(1 <= side <= 65_535 for side in shape):
        raise ShapeError(
            f"{record.key}: semantic grid {shape}, pixel grid {tuple(record.pixel.shape)}; "
            "both must be the same, 1 to 65,535 patches a side"
        )
    levels = ((record.semantic, metadata.num_semantic), (record.pixel, metadata.num_pixel))
    for name, (codes, count) in zip(("semantic", "pixel"), levels, strict=True):
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= count:
            raise IdError(f"{record.key}: {name} codes {low} to {high}; allowed: 0 to {count - 1}")


def _list_column(grids: list[Tensor], kind: pa.DataType) -> pa.ListArray:
    flat = [grid.detach().cpu().numpy().reshape(-1) for grid in grids]
    offsets = np.cumsum([0, *(len(codes) for codes in flat)])
    values = np.concatenate(flat) if flat else np.empty(0, np.int64)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values).cast(kind))


def _extra_columns(records: list[TokenRecord]) -> dict[str, pa.Array]:
    names = list(dict.fromkeys(name for record in records for name in record.extra))
    taken = set(names) & set(TAKEN)
    if taken:
        raise FormatError(f"extra column {sorted(taken)[0]!r} is a column of ours; rename it")
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([record.extra.get(name) for record in records])
        except (pa.ArrowException, OverflowError) as error:
            raise FormatError(f"extra column {name!r} mixes kinds ({reason(error)})") from error
    return columns


# -------------------------------------------------------------------------------------- reading


def token_files(data: str | Place | Sequence[str | Place]) -> list[Place]:
    """Token files by their paths or URLs; of a folder all that are right in it.

    Raises:
        NotFoundError: there is nothing, or a folder without token files.
    """
    if not isinstance(data, (str, Path, UPath)):
        return [path for item in data for path in token_files(item)]
    place = locate(data)
    if not is_folder(place):
        return [_existing(place)]
    found = [place / name for name in sorted(list_names(place)) if name.endswith(".parquet")]
    if not found:
        raise NotFoundError(f"{place} holds no token files; make some with semhitok tokenize")
    return found


def read_tokens(path: str | Place) -> TokenFile:
    """Read one token file and check every row of it.

    Raises:
        NotFoundError: no such file.
        FormatError: not a token file, cut off, of another format, or with rows that do not
            agree with themselves or with the metadata.
    """
    path = _existing(path)
    try:
        with open_file(path) as file:
            table = pq.ParquetFile(file, page_checksum_verification=True).read()
    except (OSError, pa.ArrowException, ValueError) as error:
        raise FormatError(
            f"{path}: not a whole token file ({reason(error)}); write it again"
        ) from error
    metadata = _metadata(table.schema, path)
    _check_schema(table.schema, metadata, path)
    return TokenFile(path, metadata, table)


def summarize_tokens(path: str | Place) -> TokenSummary:
    """Read what a token file says of itself; its rows are not looked at.

    Raises:
        NotFoundError, FormatError: as `read_tokens`.
    """
    path = _existing(path)
    try:
        with open_file(path) as file:
            parquet = pq.ParquetFile(file)
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    except (OSError, pa.ArrowException, ValueError) as error:
        raise FormatError(
            f"{path}: not a whole token file ({reason(error)}); write it again"
        ) from error
    failures = json.loads((schema.metadata or {}).get(_FAILURES, b"[]"))
    found = tuple(Failure(key, why) for key, why in failures)
    columns = tuple(name for name in schema.names if name not in TAKEN)
    return TokenSummary(_metadata(schema, path), rows, found, columns)


def _existing(path: str | Place) -> Place:
    place = locate(path)
    if not is_file(place):
        raise NotFoundError(f"{place}: no such token file or folder; check the path")
    return place


def _metadata(schema: pa.Schema, path: Place) -> TokenMetadata:
    texts = schema.metadata or {}
    names = [f.name for f in fields(TokenMetadata)]
    keys = {name: f"{_PREFIX}{name}".encode() for name in names}
    found = {n: texts[k].decode(errors="replace") for n, k in keys.items() if k in texts}
    missing = [name for name in names if name not in found]
    if missing:
        raise FormatError(
            f"{path}: parquet, but not a token file: its metadata lack "
            f"{', '.join(_PREFIX + name for name in missing)}"
        )
    if found["format"] != str(FORMAT_VERSION):
        raise FormatError(
            f"{path}: token format {found['format']}; this version reads {FORMAT_VERSION}"
        )
    numbers = ("num_semantic", "num_pixel", "patch_size", "format")
    try:
        return TokenMetadata(**{n: int(t) if n in numbers else t for n, t in found.items()})  # type: ignore
    except (ValueError, RangeError) as error:
        raise FormatError(f"{path}: unusable metadata ({reason(error)})") from error


def _check_schema(schema: pa.Schema, metadata: TokenMetadata, path: Place) -> None:
    small = pa.uint8() if metadata.num_pixel <= 256 else pa.uint16()
    kinds = (pa.string(), pa.list_(pa.uint16()), pa.list_(small), pa.uint16(), pa.uint16())
    for name, kind in zip(TAKEN, kinds, strict=True):
        found = schema.field(name).type if name in schema.names else "missing"
        if found != kind:
            raise FormatError(f"{path}: column {name!r} is {found}; a token file has {kind}")


def _sizes(table: pa.Table, path: Place) -> np.ndarray:
    """(rows, 2) int64 heights and widths."""
    for name in TAKEN:
        if table.column(name).null_count:
            row = table.column(name).is_null().to_pylist().index(True)
            raise FormatError(f"{path}: row {row} has no {name!r}")
    sizes = [np.asarray(table.column(name)).astype(np.int64) for name in ("height", "width")]
    return np.stack(sizes, axis=1)


def _codes(
    table: pa.Table, name: str, count: int, file: TokenFile
) -> tuple[np.ndarray, np.ndarray]:
    """All rows' codes of one level in one array, and where each row starts in it."""
    column = table.column(name).combine_chunks()
    lengths = np.asarray(column.value_lengths()).astype(np.int64)
    wrong = np.flatnonzero(lengths != file.sizes.prod(axis=1))
    if wrong.size:
        row = int(wrong[0])
        height, width = file.sizes[row]
        raise FormatError(
            f"{file.path}: row {row} ({file.keys[row]}) has {lengths[row]} {name} codes for a "
            f"grid of {height}x{width}"
        )
    starts = np.concatenate([[0], np.cumsum(lengths)])
    values = column.flatten()
    if values.null_count:
        raise FormatError(f"{file.path}: the {name} codes have gaps (nulls)")
    codes = np.asarray(values)
    outside = np.flatnonzero(codes >= count)
    if outside.size:
        row = int(np.searchsorted(starts, outside[0], side="right")) - 1
        raise FormatError(
            f"{file.path}: row {row} ({file.keys[row]}) has {name} code {codes[outside[0]]}; "
            f"{file.metadata.model} has 0 to {count - 1}"
        )
    return codes, starts
