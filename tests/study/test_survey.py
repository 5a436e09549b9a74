"""The survey: shares are near one for codes dealt at random, and least for k-means on pixels."""

from __future__ import annotations

import json

import pytest

from semhitok.hub import bundled_teacher
from semhitok.study.measure import Exam
from semhitok.study.survey import Finding, describe, from_json, survey, table, to_json


@pytest.fixture(scope="module")
def findings(exam: Exam) -> list[Finding]:
    teachers = {"bundled": bundled_teacher()}
    source = exam.photos
    return list(
        survey(teachers, source, source, pictures=24, layers=(2, -1), patches=(32,), codes=(4, 8))
    )


def test_every_layer_and_size_has_a_finding(findings: list[Finding]) -> None:
    assert [(f.layer, f.patch, f.num_codes) for f in findings] == [
        (2, 32, 4), (2, 32, 8), (-1, 32, 4), (-1, 32, 8),
    ]  # fmt: skip


def test_random_codes_say_nothing_and_k_means_on_pixels_the_most(findings: list[Finding]) -> None:
    for finding in findings:
        assert finding.random["mean"] == pytest.approx(1.0, abs=0.1)
        assert finding.bound["mean"] < min(finding.within["mean"], finding.random["mean"])
    early = [finding for finding in findings if finding.layer == 2]  # it sees colour
    assert all(finding.within["mean"] < 0.98 * finding.random["mean"] for finding in early)


def test_a_survey_survives_json_and_makes_a_table(findings: list[Finding], exam: Exam) -> None:
    data = to_json(findings, describe(exam.photos, exam.photos, 24))
    assert from_json(json.loads(json.dumps(data))) == findings
    lines = table(findings).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| bundled | 2 | 32 | ")
    assert f"{findings[1].within['mean']:.2f} ± " in lines[2]
