"""Who goes on with a job must mean the same job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from semhitok.errors import FormatError, RangeError, StorageError
from semhitok.tokenize.job import TokenizeJob
from semhitok.tokenize.plan import Plan, read_plan

Start = Callable[..., TokenizeJob]


def test_pictures_are_dealt_once_and_in_order(start: Start, tmp_path: Path) -> None:
    plan = start(tmp_path).plan
    assert plan.num_shards == 4
    assert [n for shard in range(4) for n in plan.pictures_of(shard)] == list(range(20))
    assert read_plan(tmp_path) == plan
    with pytest.raises(RangeError, match="shard_size is 0; it must be at least 1"):
        Plan.make(start(tmp_path).source, plan.tokens, 0)


def test_another_job_is_refused(start: Start, tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(FormatError, match="another job, with another shard_size; use the same"):
        start(tmp_path, shard_size=7)


def test_files_of_somebody_else_are_left_alone(start: Start, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StorageError, match=r"files that no tokenizing wrote \(thesis.tex\)"):
        start(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_plan_of_another_version_or_cut_short(start: Start, tmp_path: Path) -> None:
    start(tmp_path)
    path = tmp_path / "plan.json"
    text = path.read_text()
    path.write_text(text.replace('"format": 1\n}', '"format": 9\n}'))
    assert json.loads(path.read_text())["format"] == 9
    with pytest.raises(FormatError, match="has format 9; this version reads 1"):
        read_plan(tmp_path)
    path.write_text(text[:40])
    with pytest.raises(FormatError, match="is no plan of a tokenizing"):
        read_plan(tmp_path)
