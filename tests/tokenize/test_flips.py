"""How many ids bfloat16 changes, told in the manifest; and the job is as exact in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from twenty import contents

from semhitok.data.tokens import read_tokens
from semhitok.errors import FormatError
from semhitok.tokenize.flips import measure_flips, sample_evenly
from semhitok.tokenize.job import TokenizeJob

Start = Callable[..., TokenizeJob]


def test_samples_are_evenly_spaced() -> None:
    assert sample_evenly(10, 3) == [0, 3, 6] and sample_evenly(3, 10) == [0, 1, 2]


def test_nothing_flips_where_nothing_is_reduced(start: Start, tmp_path: Path) -> None:
    job = start(tmp_path)
    found = measure_flips(job.model, job.source, job.policy, torch.float32)
    assert (found.pictures, found.ids, found.semantic, found.pixel) == (18, 0.0, 0.0, 0.0)


def test_flips_are_shares_of_the_patches(start: Start, tmp_path: Path) -> None:
    job = start(tmp_path)
    exact, calls = job.model.encode, []

    def encode(image: torch.Tensor) -> torch.Tensor:
        """Every second call changes the first id's pixel code and the second id's parent."""
        ids = exact(image)
        calls.append(1)
        if len(calls) % 2 == 0:
            ids = ids.clone()
            ids[0, 0, 0] += 1 if ids[0, 0, 0] % 4 < 3 else -1
            ids[0, 0, 1] = (ids[0, 0, 1] + 4) % 64
        return ids

    job.model.encode = encode  # type: ignore[method-assign]
    patches = sum(
        exact(image[None]).numel()
        for image in map(pixels_of(job), [n for n in range(20) if n not in (3, 17)])
    )
    found = measure_flips(job.model, job.source, job.policy, torch.float32)
    assert found.pictures == 18 and found.ids == 36 / patches and found.semantic == 18 / patches
    assert found.pixel == 18 / (patches - 18)


def pixels_of(job: TokenizeJob) -> Callable[[int], torch.Tensor]:
    from semhitok.images import to_tensor

    return lambda index: to_tensor(job.policy.apply(job.source.read(index)))


def in_bfloat16(job: TokenizeJob, folder: Path, batch_size: int = 4) -> TokenizeJob:
    tokens = dataclasses.replace(job.plan.tokens, dtype="bfloat16")
    plan = dataclasses.replace(job.plan, tokens=tokens, batch_size=batch_size)
    plan.claim(folder)
    return dataclasses.replace(job, plan=plan, folder=folder, batch_size=batch_size)


def test_a_job_in_bfloat16_tells_its_flips_and_is_exact(start: Start, tmp_path: Path) -> None:
    for name in ("a", "b"):
        job = in_bfloat16(start(tmp_path / "plain" / name), tmp_path / name)
        job.run_shards([2, 0] if name == "b" else [0, 1, 2, 3])
        job.run_rank()
        job.finish()
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["tokens"]["dtype"] == "bfloat16" and manifest["flips"]["pictures"] == 18
    assert 0 <= manifest["flips"]["ids"] < 0.5
    (record, *_) = read_tokens(tmp_path / "a" / job.plan.shard_name(0))
    job.model.set_precision(torch.bfloat16)
    ids = job.model.encode(pixels_of(job)(0)[None])[0]
    assert ((record.semantic * 4 + record.pixel) == ids).float().mean() > 0.9


def test_another_batch_size_would_be_another_job_in_bfloat16(start: Start, tmp_path: Path) -> None:
    job = start(tmp_path / "plain")
    in_bfloat16(job, tmp_path / "a", batch_size=4)
    with pytest.raises(FormatError, match="with another batch_size"):
        in_bfloat16(job, tmp_path / "a", batch_size=8)
