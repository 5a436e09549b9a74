from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from semhitok.data.tokens import Failure, TokenMetadata, TokenRecord, write_tokens
from semhitok.errors import DataError, FormatError, NotFoundError
from semhitok.lm.records import CAPTIONS, CLASS, Record, Records, is_tokens

NAMES = ["dog", "cat", None]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    metadata = TokenMetadata(
        model="toy", hash="abc", num_semantic=16, num_pixel=4, patch_size=8, policy="",
        dtype="float32", version="1",
    )  # fmt: skip
    rows = [
        TokenRecord(
            f"{n}.png", torch.full((1, 2), n), torch.ones(1, 2).long(),
            {"class_name": name, "captions": [f"no. {n}"]},
        )
        for n, name in enumerate(NAMES)
    ]  # fmt: skip
    folder = tmp_path / "tokens"
    folder.mkdir()
    write_tokens(folder / "tokens-0.parquet", rows, metadata)
    return folder


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """The layout of the Hub, its second row without a picture."""
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    pictures = [{"bytes": png.getvalue(), "path": None}, {"bytes": None, "path": None}]
    table = pa.table(
        {"image": pictures, "caption": ["a dog", "a cat"], "class_name": ["dog", "cat"]}
    )
    pq.write_table(table, tmp_path / "hub.parquet")
    return tmp_path / "hub.parquet"


def test_token_shards(shards: Path) -> None:
    found = Records(shards, [CAPTIONS, CLASS], "abc")
    rows = list(found)
    assert len(found) == 3 and all(isinstance(row, Record) for row in rows)
    assert [row.key for row in rows] == ["0.png", "1.png", "2.png"]
    assert torch.equal(rows[1].picture, torch.tensor([[5, 5]]))  # type: ignore[union-attr, arg-type]
    assert rows[0].about == {"class_name": "dog", "captions": ["no. 0"]}  # type: ignore[union-attr]
    assert list(found.classes()) == ["dog", "cat"]
    with pytest.raises(FormatError, match=r"written by toy \(abc\), not by the tokenizer"):
        Records(shards, [CLASS], "def")


def test_pictures_of_a_data_set(parquet: Path) -> None:
    found = Records(parquet, [CAPTIONS], "abc")
    first, second = found
    assert isinstance(first, Record) and isinstance(first.picture, bytes)
    assert first.about["caption"] == "a dog"
    assert second == Failure("hub.parquet:1", "the row has no picture; leave it out")
    assert list(found.classes()) == ["dog", "cat"]


def test_columns_that_are_not_there(shards: Path, parquet: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no column wnid; it has: class_name, captions"):
        Records(shards, [("wnid",)], "abc")
    with pytest.raises(DataError, match="has no column wnid; it has: caption, class_name"):
        Records(parquet, [CAPTIONS, ("wnid",)], "abc")
    with pytest.raises(NotFoundError):
        Records(tmp_path / "nowhere", [CLASS], "abc")


def test_what_token_shards_are(shards: Path, parquet: Path, tmp_path: Path) -> None:
    assert is_tokens(shards) and is_tokens(shards / "tokens-0.parquet")
    assert not is_tokens(parquet) and not is_tokens(tmp_path / "nowhere")


def test_by_number(shards: Path, parquet: Path) -> None:
    for data, count in ((shards, 3), (parquet, 2)):
        found = Records(data, [CLASS], "abc")
        assert list(map(str, found)) == [str(found[n]) for n in range(count)]
        with pytest.raises(IndexError):
            found[count]
        assert found.labels() == NAMES[:count]
        assert len(found.fingerprint) == 64
    assert Records(shards, [CLASS], "abc").fingerprint != Records(parquet, [CLASS], "").fingerprint
