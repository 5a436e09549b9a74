"""Columns have one kind in all files; a value of another is refused by name."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from semhitok.data.columns import Columns
from semhitok.data.sources import ImageSource
from semhitok.errors import DataError


class Source(ImageSource):
    name = "made up"

    def __init__(self, metas: list[dict[str, Any]]) -> None:
        self.metas = metas

    def __len__(self) -> int:
        return len(self.metas)

    def key(self, index: int) -> str:
        return str(index)

    def read_bytes(self, index: int) -> bytes:
        return b""

    def meta(self, index: int) -> dict[str, Any]:
        if "broken" in self.metas[index]:
            raise DataError("broken")
        return self.metas[index]

    def _identity(self) -> list[str]:
        return []


def test_kinds_are_those_of_a_sample() -> None:
    columns = Columns.of(
        Source(
            [
                {
                    "label": 3,
                    "score": 0.5,
                    "captions": ["a"],
                    "mixed": 1,
                    "key": "k",
                    "where": None,
                },
                {
                    "label": None,
                    "score": 1.0,
                    "captions": ["b", "c"],
                    "mixed": "x",
                    "box": {"x": 1},
                },
                {"broken": True},
            ]
        )
    )
    assert dict(columns.kinds) == {
        "label": "int64",
        "score": "double",
        "captions": "list<item: string>",
        "mixed": "json",
        "source_key": "string",
        "where": "json",
        "box": "json",
    }
    rows = [columns.fit({"label": 3, "mixed": "x", "key": "k"}), columns.fit({"box": {"x": [1]}})]
    arrays = columns.arrays(rows)
    assert arrays["label"].to_pylist() == [3, None] and arrays["label"].type == pa.int64()
    assert arrays["mixed"].to_pylist() == ['"x"', None]
    assert arrays["box"].to_pylist() == [None, '{"x": [1]}']
    assert arrays["source_key"].to_pylist() == ["k", None]
    assert arrays["captions"].type == pa.list_(pa.string())


def test_a_value_of_another_kind_and_a_new_column_are_refused() -> None:
    columns = Columns({"label": "int64"})
    with pytest.raises(DataError, match="its 'label' is 'cat'; int64 is needed"):
        columns.fit({"label": "cat"})
    with pytest.raises(DataError, match="a column 'title', which a sample of 256 pictures lacks"):
        columns.fit({"title": "x"})
    assert columns.fit({"label": None}) == {}


def test_no_rows_make_columns_of_the_same_kinds() -> None:
    arrays = Columns({"label": "int64", "captions": "list<item: string>"}).arrays([])
    assert [array.type for array in arrays.values()] == [pa.int64(), pa.list_(pa.string())]
