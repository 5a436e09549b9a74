"""Verification finds what is not as the manifest says, and ids that do not come out again."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from semhitok.data.tokens import read_tokens, write_tokens
from semhitok.errors import FormatError
from semhitok.tokenize.job import TokenizeJob, write_manifest
from semhitok.tokenize.verify import Again, verify

Start = Callable[..., TokenizeJob]


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def again(start: Start, tmp_path: Path) -> Again:
    job = start(tmp_path / "again")
    return Again(job.source, job.policy, job.model, "abc")


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("tokens-*.parquet"))


def test_a_whole_folder_is_whole(folder: Path, again: Again) -> None:
    verdict = verify(folder, again)
    assert (verdict.shards, verdict.pictures, verdict.compared, verdict.wrong) == (4, 18, 18, [])
    assert verify(folder).compared == 0


@pytest.mark.parametrize("crop", ["random", "buckets"])
def test_the_other_crops_come_out_again(crop: str, start: Start, tmp_path: Path) -> None:
    job = start(tmp_path, crop=crop)
    job.run_rank()
    job.finish()
    verdict = verify(tmp_path, Again(job.source, job.policy, job.model, "abc"))
    assert verdict.compared == 18 and verdict.wrong == []


def test_a_changed_byte_a_missing_and_a_strange_shard_are_named(folder: Path) -> None:
    changed, missing = shards(folder)[1], shards(folder)[2]
    content = bytearray(changed.read_bytes())
    content[100] ^= 1
    changed.write_bytes(content)
    missing.unlink()
    shutil.copy(shards(folder)[0], folder / "tokens-000009-of-000009.parquet")
    wrong = verify(folder).wrong
    assert [line.split(":")[0] for line in wrong] == [
        "tokens-000009-of-000009.parquet", changed.name, missing.name,
    ]  # fmt: skip
    assert "not the file that the manifest names" in wrong[1] and "is missing" in wrong[2]


def test_ids_that_another_run_gave_are_found(folder: Path, again: Again, start: Start) -> None:
    path = shards(folder)[0]
    records = list(read_tokens(path))
    other = (records[0].pixel + 1) % 4
    records[0] = dataclasses.replace(records[0], pixel=other)
    plan = start(folder).plan
    write_tokens(path, records, plan.tokens)
    write_manifest(plan, folder)
    wrong = verify(folder, again).wrong
    assert wrong == ["twenty.parquet:0: 100.00% of its ids differ"]


def test_other_data_or_another_model_are_refused(folder: Path, again: Again) -> None:
    with pytest.raises(FormatError, match="with another model"):
        verify(folder, dataclasses.replace(again, model_hash="xyz"))
    (folder / "manifest.json").unlink()
    with pytest.raises(FormatError, match="manifest.json is missing or damaged"):
        verify(folder)


def test_the_model_decides(folder: Path, again: Again) -> None:
    with torch.no_grad():
        again.model.pixel.codebook.base.mul_(-1)
    assert verify(folder, again).wrong


def test_tar_files_are_written_and_checked(start: Start, tmp_path: Path, whole: Path) -> None:
    job = start(tmp_path / "plain")
    plan = dataclasses.replace(job.plan, webdataset=True)
    folder = tmp_path / "tars"
    plan.claim(folder)
    job = dataclasses.replace(job, plan=plan, folder=folder)
    stale = folder / f".{Path(plan.shard_name(0)).stem}.tar.0.tmp"
    stale.touch()
    job.run_rank()
    job.finish()
    assert not stale.exists()
    assert [path.name for path in shards(folder)] == [path.name for path in shards(whole)]
    tars = sorted(folder.glob("*.tar"))
    assert [path.stem for path in tars] == [path.stem for path in shards(folder)]
    assert verify(folder).wrong == []
    tars[0].write_bytes(tars[0].read_bytes()[:-1])
    tars[1].unlink()
    wrong = verify(folder).wrong
    assert [line.split(":")[0] for line in wrong] == [path.name for path in shards(folder)[:2]]
    assert all("its tar file is not the one" in line for line in wrong)


def test_in_bfloat16_a_few_ids_may_differ_and_many_not(start: Start, tmp_path: Path) -> None:
    job = start(tmp_path / "plain")
    tokens = dataclasses.replace(job.plan.tokens, dtype="bfloat16")
    plan = dataclasses.replace(job.plan, tokens=tokens, batch_size=4)
    folder = tmp_path / "reduced"
    plan.claim(folder)
    job = dataclasses.replace(job, plan=plan, folder=folder)
    job.run_rank()
    job.finish()
    again = Again(job.source, job.policy, job.model, "abc")
    assert verify(folder, again).wrong == []
    file = read_tokens(shards(folder)[0])
    records = list(file)
    records[0].pixel.copy_((records[0].pixel + 1) % 4)
    write_tokens(shards(folder)[0], records, file.metadata)
    write_manifest(plan, folder)
    assert verify(folder, again).wrong == [f"{records[0].key}: 100.00% of its ids differ"]
