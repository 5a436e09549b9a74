"""What is left of a study, and that its cost is measured rather than guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from semhitok.study import cost
from semhitok.study.cost import estimate, pending
from semhitok.study.measure import Exam
from semhitok.study.rows import row_named
from semhitok.study.runner import Result, Study
from semhitok.study.scales import Scale


def test_what_a_row_starts_from_is_counted_once_and_what_is_done_is_not(
    exam: Exam, smoke: Scale, tmp_path: Path
) -> None:
    study = Study(exam.photos, exam, smoke, tmp_path, tmp_path / "runs")
    pairs = [(row_named(name), 0) for name in ("staged", "union", "flat")]
    names = [row.name for row, _ in pending(study, pairs)]
    assert names == ["semantic", "staged", "union", "semantic-one", "flat"]
    done = Result("flat", 0, study.identity(row_named("flat"), 0), {}, {}, {})
    (tmp_path / "flat-0.json").write_text(done.to_json())
    assert [row.name for row, _ in pending(study, pairs)] == ["semantic", "staged", "union"]


def test_the_estimate_is_of_every_step_and_every_exam(
    exam: Exam, smoke: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(exam.photos, exam, smoke, tmp_path, tmp_path / "runs")
    monkeypatch.setattr(cost, "_step_seconds", lambda *_: 2.0)
    monkeypatch.setattr(cost, "_exam_seconds", lambda *_: 100.0)
    stage_1, staged = (row_named("semantic"), 0), (row_named("staged"), 0)
    assert estimate(study, [stage_1]) == 2 * smoke.semantic_steps
    assert estimate(study, [stage_1, staged]) == 2 * (3 + smoke.pixel_steps) + 100


def test_a_step_is_measured(exam: Exam, smoke: Scale, tmp_path: Path) -> None:
    study = Study(exam.photos, exam, smoke, tmp_path, tmp_path / "runs")
    assert estimate(study, [(row_named("staged"), 0), (row_named("joint"), 0)]) > 0
