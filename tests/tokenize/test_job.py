"""The same bytes whatever happens on the way; a broken picture costs itself alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from twenty import BROKEN, COUNT, contents

from semhitok import files
from semhitok.data import tokens
from semhitok.data.tokens import read_tokens, summarize_tokens
from semhitok.errors import FormatError, StorageError
from semhitok.images import to_tensor
from semhitok.tokenize import job as job_module
from semhitok.tokenize.job import TokenizeJob

Start = Callable[..., TokenizeJob]


class Crash(BaseException):
    """A kill, as far as one process can play it."""


def test_shards_hold_the_pictures_in_order_with_what_travels_along(
    whole: Path, start: Start, tmp_path: Path
) -> None:
    job = start(tmp_path)
    rows = [r for n in range(4) for r in read_tokens(whole / job.plan.shard_name(n))]
    good = [n for n in range(COUNT) if n not in BROKEN]
    assert [row.key for row in rows] == [f"twenty.parquet:{n}" for n in good]
    for index, row in zip(good, rows, strict=True):
        image = to_tensor(job.policy.apply(job.source.read(index)))
        semantic, pixel = job.model.split(job.model.encode(image[None])[0])
        assert row.semantic.equal(semantic) and row.pixel.equal(pixel)
        assert row.extra["label"] == index % 4
        assert row.extra["captions"] == [f"picture {index}"] * 2


def test_broken_pictures_are_named_and_cost_nothing_else(whole: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["pictures"] == COUNT - len(BROKEN) and manifest["failed"] == len(BROKEN)
    failures = [json.loads(x) for x in (whole / "failures.jsonl").read_text().splitlines()]
    assert [f["key"] for f in failures] == [f"twenty.parquet:{n}" for n in BROKEN]
    assert all(f["reason"] and "twenty" not in f["reason"] for f in failures)
    assert [s["failed"] for s in manifest["shards"]] == [1, 0, 1, 0]
    assert [s["rows"] for s in manifest["shards"]] == [5, 6, 5, 2]


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 7}, {"workers": 2}], ids=str)
def test_neither_batches_nor_workers_change_a_byte(
    options: dict[str, int], whole: Path, start: Start, tmp_path: Path
) -> None:
    job = start(tmp_path, **options)
    job.run_rank()
    job.finish()
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("crop", ["random", "buckets"])
def test_nor_with_the_other_crops(crop: str, start: Start, tmp_path: Path) -> None:
    jobs = [
        start(tmp_path / "one", crop=crop, batch_size=1),
        start(tmp_path / "two", crop=crop, batch_size=7, workers=2),
    ]
    for job in jobs:
        for shard in reversed(range(job.plan.num_shards)) if job is jobs[1] else range(4):
            job.run_shards([shard])
        job.finish()
    assert contents(jobs[0].folder) == contents(jobs[1].folder)
    grids = {
        (record.semantic.shape[0], record.semantic.shape[1])
        for shard in range(4)
        for record in read_tokens(jobs[0].folder / jobs[0].plan.shard_name(shard))
    }
    assert grids == ({(4, 4)} if crop == "random" else {(4, 4), (3, 5)})


def test_ranks_share_the_shards_and_change_no_byte(
    whole: Path, start: Start, tmp_path: Path
) -> None:
    first, second = start(tmp_path), start(tmp_path)
    second.run_rank(1, 2)
    assert first.pending() == [0, 2]
    with pytest.raises(FormatError, match="lacks 2 of 4 shards; start the job again"):
        second.finish()
    first.run_rank(0, 2)
    first.finish()
    assert contents(tmp_path) == contents(whole)


def test_a_kill_anywhere_changes_no_byte(
    whole: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"n": 0}

    def crash_at(owner: object, name: str, at: int) -> None:
        work = getattr(owner, name)

        def crashing(*args: object, **kwargs: object) -> object:
            calls["n"] += 1
            if calls["n"] == at:
                raise Crash
            return work(*args, **kwargs)

        calls["n"] = 0
        monkeypatch.setattr(owner, name, crashing)

    for owner, name, at in (
        (job_module, "encode", 1),
        (job_module, "encode", 3),
        (tokens.pq, "write_table", 1),
        (files.os, "replace", 2),
        (job_module, "write_bytes", 1),
        (job_module, "write_bytes", 2),
    ):
        with monkeypatch.context() as patch:
            crash_at(owner, name, at)
            with pytest.raises(Crash):
                job = start(tmp_path)
                job.run_rank()
                job.finish()
            patch.undo()
        monkeypatch.undo()
        for name in contents(tmp_path):  # what is visible is whole
            if name.startswith("tokens-"):
                assert contents(tmp_path)[name] == contents(whole)[name]
    job = start(tmp_path)
    job.run_rank()
    job.finish()
    assert contents(tmp_path) == contents(whole)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_what_is_done_is_not_done_again(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(tmp_path)
    job.run_rank()
    monkeypatch.setattr(job_module, "encode", None)
    start(tmp_path).run_rank()


def test_a_full_disk_is_one_line_and_loses_nothing(
    whole: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def full(descriptor: int) -> None:
        calls.append(1)
        if len(calls) == 7:  # each file and then its folder; the plan goes first
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        start(tmp_path).run_rank()
    monkeypatch.undo()
    assert start(tmp_path).pending() == [2, 3]
    job = start(tmp_path)
    job.run_rank()
    job.finish()
    assert contents(tmp_path) == contents(whole)


def test_all_shards_have_one_schema_and_others_read_them(whole: Path) -> None:
    paths = sorted(whole.glob("tokens-*.parquet"))
    schemas = [pq.read_schema(path).remove_metadata() for path in paths]
    assert all(schema == schemas[0] for schema in schemas)
    table = pq.read_table([str(p) for p in paths], columns=["semantic", "label"])
    assert len(table) == COUNT - len(BROKEN)
    assert summarize_tokens(paths[0]).metadata.model == "toy"


def test_progress_counts_every_picture(start: Start, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    start(tmp_path).run_rank(progress=lambda done, failed: seen.append((done, failed)))
    assert seen[-1] == (COUNT - len(BROKEN), len(BROKEN))
    assert seen == sorted(seen, key=sum)


def test_encoding_does_not_leave_gradients_on(start: Start, tmp_path: Path) -> None:
    start(tmp_path).run_rank()
    assert torch.is_grad_enabled()
