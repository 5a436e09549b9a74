"""Token files: round trip, and what is refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from semhitok.data.tokens import TokenMetadata, TokenRecord, read_tokens, write_tokens
from semhitok.errors import (
    FormatError,
    IdError,
    NotFoundError,
    RangeError,
    ShapeError,
    StorageError,
)

METADATA = TokenMetadata(
    model="tiny",
    hash="ab" * 32,
    num_semantic=1000,
    num_pixel=16,
    patch_size=8,
    policy="short side to 64",
    dtype="float32",
    version="0.1.0",
)


def make_records(
    count: int = 5, num_semantic: int = 1000, num_pixel: int = 16
) -> list[TokenRecord]:
    generator = torch.Generator().manual_seed(0)
    records = []
    for i in range(count):
        shape = (1 + i % 3, 2 + i % 2)
        semantic = torch.randint(num_semantic, shape, generator=generator)
        pixel = torch.randint(num_pixel, shape, generator=generator)
        records.append(TokenRecord(f"p{i}", semantic, pixel, {"label": i, "captions": [f"c{i}"]}))
    return records


@pytest.mark.parametrize(("num_semantic", "num_pixel"), [(1000, 16), (65_536, 256), (7, 257)])
def test_round_trip(tmp_path: Path, num_semantic: int, num_pixel: int) -> None:
    metadata = replace(METADATA, num_semantic=num_semantic, num_pixel=num_pixel)
    records = make_records(20, num_semantic, num_pixel)
    top = torch.tensor([[num_semantic - 1, 0]]), torch.tensor([[num_pixel - 1, 0]])
    records.append(TokenRecord("top", *top, {"label": 3}))
    write_tokens(tmp_path / "t.parquet", iter(records), metadata)
    file = read_tokens(str(tmp_path / "t.parquet"))
    assert file.metadata == metadata and len(file) == 21
    for given, read in zip(records, file, strict=True):
        assert read.key == given.key
        assert torch.equal(read.semantic, given.semantic) and read.semantic.dtype == torch.int64
        assert torch.equal(read.pixel, given.pixel)
        assert read.extra == {"captions": None, **given.extra}
    assert file.record(-1).key == "top"
    with pytest.raises(IndexError):
        file.record(21)
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_stored_form(tmp_path: Path) -> None:
    write_tokens(tmp_path / "t.parquet", make_records(), METADATA)
    file = pq.ParquetFile(tmp_path / "t.parquet")
    kinds = {field.name: str(field.type) for field in file.schema_arrow}
    assert kinds["semantic"].startswith("list<") and "uint16" in kinds["semantic"]
    assert "uint8" in kinds["pixel"]
    assert (kinds["key"], kinds["height"], kinds["width"]) == ("string", "uint16", "uint16")
    assert file.schema_arrow.metadata[b"semhitok.num_semantic"] == b"1000"
    assert file.schema_arrow.metadata[b"semhitok.format"] == b"1"
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    wide = replace(METADATA, num_pixel=300)
    write_tokens(tmp_path / "w.parquet", make_records(), wide)
    assert "uint16" in str(pq.read_schema(tmp_path / "w.parquet").field("pixel").type)


def test_without_records_or_extra(tmp_path: Path) -> None:
    write_tokens(tmp_path / "t.parquet", [], METADATA)
    assert list(read_tokens(tmp_path / "t.parquet")) == []
    plain = [replace(record, extra={}) for record in make_records()]
    write_tokens(tmp_path / "t.parquet", plain, METADATA)
    assert [record.extra for record in read_tokens(tmp_path / "t.parquet")] == [{}] * 5


@pytest.mark.parametrize(
    "changes", [{"num_semantic": 65_537}, {"num_pixel": 70_000}, {"num_pixel": 0}]
)
def test_codebooks_that_do_not_fit(changes: dict[str, int]) -> None:
    with pytest.raises(RangeError, match="a token file holds 1 to 65,536 codes a level"):
        replace(METADATA, **changes)  # type: ignore[arg-type]


def test_unwritable_records(tmp_path: Path) -> None:
    def write(**changes: Any) -> None:
        record = make_records(1)[0]
        for name, value in changes.items():  # past the annotations, which the tests enforce
            object.__setattr__(record, name, value)
        write_tokens(tmp_path / "t.parquet", [record], METADATA)

    with pytest.raises(IdError, match="p0: semantic codes 0 to 1000; allowed: 0 to 999"):
        write(semantic=torch.tensor([[0, 1000]]))
    with pytest.raises(IdError, match="p0: pixel codes -1 to 3; allowed: 0 to 15"):
        write(pixel=torch.tensor([[3, -1]]))
    with pytest.raises(ShapeError, match="p0: semantic grid"):
        write(pixel=torch.tensor([[3], [1]]))
    with pytest.raises(ShapeError):
        write(
            semantic=torch.zeros(0, 2, dtype=torch.int64),
            pixel=torch.zeros(0, 2, dtype=torch.int64),
        )
    with pytest.raises(FormatError, match="'height' is a column of ours"):
        write(extra={"height": 3})
    mixed = [replace(r, extra={"x": v}) for r, v in zip(make_records(2), (1, "a"), strict=True)]
    with pytest.raises(FormatError, match="extra column 'x' mixes kinds"):
        write_tokens(tmp_path / "t.parquet", mixed, METADATA)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_and_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*args: object) -> None:
        assert [name for name in os.listdir(tmp_path) if name != "t.parquet"]  # the temporary
        raise OSError(errno.ENOSPC, "No space left on device")

    write_tokens(tmp_path / "t.parquet", make_records(3), METADATA)
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(StorageError, match="cannot write .*t.parquet: the disk is full"):
        write_tokens(tmp_path / "t.parquet", make_records(5), METADATA)
    assert os.listdir(tmp_path) == ["t.parquet"] and len(read_tokens(tmp_path / "t.parquet")) == 3


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write .*No such file or directory"):
        write_tokens(tmp_path / "gone" / "t.parquet", make_records(), METADATA)


def test_files_that_are_no_token_files(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such token file"):
        read_tokens(tmp_path / "t.parquet")
    write_tokens(tmp_path / "t.parquet", make_records(), METADATA)
    data = (tmp_path / "t.parquet").read_bytes()
    for cut in (0, 1, 4, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.parquet").write_bytes(data[:cut])
        with pytest.raises(FormatError, match="not a whole token file"):
            read_tokens(tmp_path / "cut.parquet")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(FormatError, match="not a token file: its metadata lack semhitok.model"):
        read_tokens(tmp_path / "other.parquet")


def change_metadata(name: str, value: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.replace_schema_metadata(
        {**table.schema.metadata, f"semhitok.{name}".encode(): value}
    )


def change_column(
    name: str, values: list[Any], kind: pa.DataType
) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index(name), name, pa.array(values, kind))

    return change


U8, U16 = pa.list_(pa.uint8()), pa.list_(pa.uint16())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_metadata("format", "2"), "token format 2; this version reads 1"),
        (change_metadata("num_pixel", "many"), "unusable metadata"),
        (change_metadata("num_pixel", "0"), "unusable metadata"),
        (change_metadata("num_pixel", "300"), "column 'pixel' is list<.*a token file has list<"),
        (lambda t: t.drop_columns(["width"]), "column 'width' is missing"),
        (change_column("height", [1, 2], pa.int64()), "column 'height' is int64"),
        (change_column("height", [1, 3], pa.uint16()), r"row 1 \(p1\) has 6 semantic .* 3x3"),
        (change_column("height", [1, None], pa.uint16()), "row 1 has no 'height'"),
        (change_column("pixel", [[1, 2], None], U8), "row 1 has no 'pixel'"),
        (change_column("pixel", [[1, 2], [3]], U8), r"row 1 \(p1\) has 1 pixel codes"),
        (change_column("pixel", [[1, None], [1] * 6], U8), "gaps"),
        (
            change_column("pixel", [[1, 2], [1, 2, 16, 4, 5, 6]], U8),
            r"row 1 \(p1\) has pixel code 16; tiny has 0 to 15",
        ),
        (
            change_column("semantic", [[1000, 2], [1] * 6], U16),
            r"row 0 \(p0\) has semantic code 1000; tiny has 0 to 999",
        ),
    ],
)
def test_rows_that_do_not_agree(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    path = tmp_path / "t.parquet"
    write_tokens(path, make_records(2), METADATA)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(FormatError, match=message):
        read_tokens(path)


def test_a_flipped_bit_never_changes_a_token(tmp_path: Path) -> None:
    path, records = tmp_path / "t.parquet", make_records(50)
    write_tokens(path, records, METADATA)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    for _ in range(200):
        broken = data.copy()
        broken[random.integers(len(data))] ^= np.uint8(1 << random.integers(8))
        path.write_bytes(broken.tobytes())
        try:
            for given, read in zip(records, read_tokens(path), strict=True):
                assert given.key == read.key
                assert torch.equal(given.semantic, read.semantic)
                assert torch.equal(given.pixel, read.pixel)
        except FormatError as error:
            assert "\n" not in str(error)


def test_codes_are_stored_small(tmp_path: Path) -> None:
    """Semantic codes that run on from patch to patch as such, all else by dictionaries."""
    runs = torch.arange(64).repeat_interleave(4).reshape(16, 16)
    records = [
        TokenRecord(f"{n}", runs, torch.zeros_like(runs), {"captions": ["a b c"] * 5, "label": 3})
        for n in range(200)
    ]
    write_tokens(tmp_path / "t.parquet", records, replace(METADATA, num_semantic=64))
    file = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0)
    columns = {file.column(n).path_in_schema: file.column(n) for n in range(file.num_columns)}
    plain = [name for name, column in columns.items() if "RLE_DICTIONARY" not in column.encodings]
    assert plain == ["semantic.list.element"]
    assert all(column.compression == "ZSTD" for column in columns.values())
    assert (tmp_path / "t.parquet").stat().st_size < 200 * 40
