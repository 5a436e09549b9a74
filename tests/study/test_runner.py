"""Rows run once, start from one another, go on after a kill, and refuse what is not theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from semhitok.data.sources import SubsetSource
from semhitok.errors import FormatError
from semhitok.hub import load
from semhitok.study import measure, runner
from semhitok.study.measure import Exam
from semhitok.study.rows import row_named
from semhitok.study.runner import Result, Study, results_in
from semhitok.study.scales import Scale


@pytest.fixture
def study(exam: Exam, smoke: Scale, tmp_path: Path) -> Study:
    return Study(exam.photos, exam, smoke, tmp_path / "study", tmp_path / "runs")


def test_a_row_is_trained_measured_and_not_run_again(
    study: Study, tmp_path: Path, monkeypatch
) -> None:
    result = study.run(row_named("staged"), 0)
    assert 5 < result.figures["psnr_db"] < 40
    assert 0 <= result.figures["semantics"]["codes"] <= 1
    assert result.figures["bits_per_patch"] == 8.0
    assert result.protocol["exam"]["photos"]["name"] == "pictures.parquet"
    part, row = (load(tmp_path / "runs" / f"{name}-0" / "model") for name in ("semantic", "staged"))
    assert part.semantic_hash == row.semantic_hash

    monkeypatch.setattr(runner, "Run", None)
    assert study.run(row_named("staged"), 0) == result
    assert results_in(tmp_path / "study") == [result]


def test_a_start_is_taken_to_the_bit(study: Study, tmp_path: Path) -> None:
    study.run(row_named("enhanced"), 0)
    before, after = (
        load(tmp_path / "runs" / f"{name}-0" / "model") for name in ("staged", "enhanced")
    )
    images = torch.rand(2, 3, 64, 64)
    assert before.encode(images).equal(after.encode(images))
    ids = after.encode(images)
    assert before.decode(ids).equal(after.decode(ids, decoder="pixel"))
    assert not before.decode(ids).equal(after.decode(ids, decoder="enhance"))


def test_a_killed_study_ends_with_the_figures_of_one_that_was_not(
    study: Study, exam: Exam, smoke: Scale, tmp_path: Path, monkeypatch
) -> None:
    whole = study.run(row_named("flat"), 0)
    again = Study(exam.photos, exam, smoke, tmp_path / "other", tmp_path / "others")
    with monkeypatch.context() as patch:
        patch.setattr(runner, "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            again.run(row_named("flat"), 0)
    assert again.result(row_named("flat"), 0) is None
    assert again.run(row_named("flat"), 0).figures == whole.figures


def test_codes_that_rows_share_change_no_figure(
    study: Study, exam: Exam, smoke: Scale, tmp_path: Path
) -> None:
    study.run(row_named("staged"), 0)  # its codes are known from here on
    shared = study.run(row_named("own"), 0).figures
    measure._CODES.clear()
    again = Study(exam.photos, exam, smoke, tmp_path / "other", tmp_path / "runs")
    assert again.run(row_named("own"), 0).figures == shared
    assert len(measure._CODES) == 2


def test_results_of_other_data_are_refused(
    study: Study, exam: Exam, smoke: Scale, tmp_path: Path
) -> None:
    row = row_named("staged")
    path = tmp_path / "study" / "staged-0.json"
    fewer = Study(
        SubsetSource(exam.photos, range(8)), exam, smoke, tmp_path / "study", tmp_path / "runs"
    )
    made = Result("staged", 0, study.identity(row, 0), {}, {}, {})
    path.write_text(made.to_json())
    assert study.result(row, 0) == made
    with pytest.raises(FormatError, match="staged-0.json is of another recipe or other data; del"):
        fewer.result(row, 0)
    path.write_text(json.dumps({"row": 1}))
    with pytest.raises(FormatError, match="is not a result of a study"):
        study.result(row, 0)
