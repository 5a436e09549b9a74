"""Rows: every one can be built at every scale, and differs from `staged` in what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from semhitok.data.sources import SubsetSource
from semhitok.errors import NotFoundError
from semhitok.study.measure import Exam
from semhitok.study.rows import ROWS, find_rows, row_named
from semhitok.study.runner import Study
from semhitok.study.scales import SCALES, Scale

HEADLINE = 11


def test_names_are_unique_and_starts_are_there() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    parts = {row.name for row in ROWS if row.group == "parts"} | {"staged"}
    assert all(set(row.starts.values()) <= parts for row in ROWS)
    assert len(find_rows(["headline"])) == HEADLINE
    used = {start for row in ROWS for start in row.starts.values()}
    assert {row.name for row in ROWS if row.group == "parts"} <= used, "a part that nobody needs"


def test_rows_are_found_by_name_and_group() -> None:
    assert [row.name for row in find_rows(["flat", "staged"])] == ["staged", "flat"]
    assert {row.group for row in find_rows(["codes"])} == {"codes"}
    assert all(row.group != "parts" for row in find_rows(()))
    with pytest.raises(NotFoundError, match="no row or group 'stagd'; did you mean 'staged'"):
        find_rows(["stagd"])


@pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
def test_every_row_is_a_recipe_at_every_scale(scale: Scale, exam: Exam, tmp_path: Path) -> None:
    study = Study(exam.photos, exam, scale, tmp_path, tmp_path / "runs")
    recipes = {row.name: study.recipe(row, 0) for row in ROWS}
    budget = scale.num_semantic * scale.num_pixel
    for row in ROWS:
        pixel = recipes[row.name].model["pixel"]["num_codes"]
        total = recipes[row.name].model["semantic"]["num_codes"] * pixel
        varies = row.group == "parts" or row.name.startswith("m-") or row.name == "semantic-only"
        assert varies or total == budget, row.name
    assert recipes["staged"].model["semantic"]["trunk"] == "finetuned"
    assert recipes["frozen"].model["semantic"]["trunk"] == "frozen"
    assert recipes["flat"].model["semantic"]["num_codes"] == 1


def test_a_start_takes_no_steps_of_its_own(exam: Exam, smoke: Scale, tmp_path: Path) -> None:
    study = Study(exam.photos, exam, smoke, tmp_path, tmp_path / "runs")
    recipe = study.recipe(row_named("enhanced"), 1)
    assert recipe.semantic.steps == recipe.pixel.steps == 0
    assert recipe.enhance is not None and recipe.enhance.steps == smoke.enhance_steps
    assert recipe.pixel.start == str(tmp_path / "runs" / "staged-1" / "model")


def test_results_stay_valid_when_folders_move_and_not_when_data_do(
    exam: Exam, smoke: Scale, tmp_path: Path
) -> None:
    first = Study(exam.photos, exam, smoke, tmp_path, tmp_path / "runs")
    moved = Study(exam.photos, exam, smoke, tmp_path / "x", tmp_path / "y")
    row = row_named("union")
    assert first.identity(row, 0) == moved.identity(row, 0) != first.identity(row, 1)
    assert len({first.identity(other, 0) for other in ROWS}) == len(ROWS)
    fewer = Study(SubsetSource(exam.photos, range(8)), exam, smoke, tmp_path, tmp_path / "runs")
    assert fewer.identity(row, 0) != first.identity(row, 0)
