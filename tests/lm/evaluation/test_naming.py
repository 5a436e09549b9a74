from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from answers import CLASSES, EACH, interval
from PIL import Image

from semhitok.errors import DataError
from semhitok.lm.evaluation.naming import measure_naming
from semhitok.lm.evaluation.questions import Exam

Make = Callable[..., Exam]


@pytest.mark.parametrize(
    "says, top1, none, several",
    [
        (lambda asked, name: f"This is a {name.split(', ')[-1]}.", 1.0, 0.0, 0.0),
        (lambda asked, name: "a hot dog", 0.25, 0.0, 0.0),
        (lambda asked, name: f"a {name} or a fish", 2 / 16, 0.0, 14 / 16),
        (lambda asked, name: "hotdog", 0.0, 1.0, 0.0),
    ],
)
def test_figures(
    make_exam: Make, says: Callable[[str, str], str], top1: float, none: float, several: float
) -> None:
    section = measure_naming(make_exam(says, batch_size=5), interval)
    figures = section.figures
    assert figures["pictures"] == sum(EACH) and figures["classes"] == len(CLASSES)
    found = [figures[name]["mean"] for name in ("top1", "names_none", "names_several")]
    assert found == pytest.approx([top1, none, several])
    assert section.protocol["data"]["pictures"] == 16 and "longest name" in str(section.protocol)
    assert not section.failed and len(section.rows) == 16


def test_fewer_pictures_are_of_all_classes_and_ask_in_batches(make_exam: Make) -> None:
    told: list[int] = []
    exam = make_exam(lambda a, b: b, max_pictures=4, batch_size=3, seed=1, advance=told.append)
    section = measure_naming(exam, interval)
    assert [row["class"] for row in section.rows] == ["dog", "dog", "hot dog", "cat, pussycat"]
    assert exam.assistant.asked == [3, 1] and told == [3, 4]  # type: ignore[attr-defined]
    whole = measure_naming(make_exam(lambda a, b: b, seed=1), interval)
    asked = {row["key"]: row["asked"] for row in whole.rows}
    assert all(asked[row["key"]] == row["asked"] for row in section.rows)
    other = measure_naming(make_exam(lambda a, b: b, seed=2), interval)
    assert asked != {row["key"]: row["asked"] for row in other.rows}


def test_pictures_that_cannot_be_read(make_exam: Make, tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.new("RGB", (32, 32)).save(png, "PNG")
    for name, whole in (("one", png.getvalue()), ("none", b"")):
        pictures = [{"bytes": whole, "path": None}, {"bytes": b"no picture", "path": None}]
        table = pa.table({"image": pictures, "class_name": ["dog", "cat"]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    section = measure_naming(make_exam(lambda a, b: "dog", tmp_path / "one.parquet"), interval)
    assert section.figures["top1"] == {"mean": 1.0} and list(section.failed) == ["one.parquet:1"]
    with pytest.raises(DataError, match="none.parquet: no picture could be read"):
        measure_naming(make_exam(lambda a, b: "dog", tmp_path / "none.parquet"), interval)


def test_no_labels(make_exam: Make, tmp_path: Path) -> None:
    table = pa.table({"image": [{"bytes": b"", "path": None}], "class_name": pa.nulls(1, "string")})
    pq.write_table(table, tmp_path / "bare.parquet")
    with pytest.raises(DataError, match="no picture has a class_name; give labelled pictures"):
        measure_naming(make_exam(lambda a, b: "dog", tmp_path / "bare.parquet"), interval)
