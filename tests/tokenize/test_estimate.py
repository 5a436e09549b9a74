"""What a job would take, said beforehand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from semhitok.tokenize.estimate import estimate
from semhitok.tokenize.job import TokenizeJob


def test_a_dry_run_counts_and_writes_nothing(
    start: Callable[..., TokenizeJob], tmp_path: Path, whole: Path
) -> None:
    job = start(tmp_path, shard_size=6)
    before = sorted(tmp_path.iterdir())
    found = estimate(job)
    assert sorted(tmp_path.iterdir()) == before
    assert (found.pictures, found.shards, found.sampled, found.failed) == (20, 4, 20, 2)
    size = sum(path.stat().st_size for path in whole.glob("*.parquet"))
    assert abs(found.bytes / size - 1) < 0.1
    assert found.images_per_s > 0 and found.hours == 20 / found.images_per_s / 3600
    assert estimate(job, world_size=4).hours < found.hours * 2


def test_a_sample_of_many_is_scaled_up(start: Callable[..., TokenizeJob], tmp_path: Path) -> None:
    found = estimate(start(tmp_path, batch_size=1, shard_size=20))
    assert found.sampled == 8 and found.shards == 1 and found.pictures == 20
