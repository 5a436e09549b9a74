"""What a job would take, from a short sample of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from semhitok.data.columns import Columns
from semhitok.data.tokens import Failure, TokenRecord, tokens_bytes
from semhitok.model.precision import PRECISIONS
from semhitok.tokenize.flips import sample_evenly
from semhitok.tokenize.job import TokenizeJob
from semhitok.tokenize.plan import Plan
from semhitok.tokenize.reading import by_size, encode, read_pictures

BATCHES = 8


@dataclass(frozen=True)
class Estimate:
    """Of a whole job on the machine that made it, with as many ranks as it was told of."""

    pictures: int
    shards: int
    bytes: int
    """Of all shards."""
    hours: float
    sampled: int
    """Pictures that were read and encoded for this."""
    failed: int
    """Of those, how many could not be read."""
    images_per_s: float
    """Of one rank, once it runs."""


def estimate(job: TokenizeJob, world_size: int = 1) -> Estimate:
    """Read and encode a few batches, evenly spaced over the data; nothing is written.

    The first batch is not timed: it waits for the workers to start.
    """
    plan, columns = job.plan, Columns(job.plan.columns)
    job.model.set_precision(PRECISIONS[plan.tokens.dtype])
    indices = sample_evenly(plan.pictures, BATCHES * job.batch_size)
    readings = read_pictures(job.source, job.policy, columns, [indices], job.workers)
    records: dict[int, TokenRecord] = {}
    failures: dict[int, Failure] = {}
    started, before = time.monotonic(), 0
    for number, batch in enumerate(by_size(readings, job.batch_size, failures)):
        records |= encode(job.model, batch)
        if number == 0 and len(indices) > job.batch_size:
            started, before = time.monotonic(), len(records) + len(failures)
    seconds = time.monotonic() - started
    rate = (len(records) + len(failures) - before) / max(seconds, 1e-9)
    return Estimate(
        pictures=plan.pictures,
        shards=plan.num_shards,
        bytes=_bytes(list(records.values()), plan, len(indices)),
        hours=plan.pictures / max(rate, 1e-9) / world_size / 3600,
        sampled=len(indices),
        failed=len(failures),
        images_per_s=rate,
    )


def _bytes(records: list[TokenRecord], plan: Plan, sampled: int) -> int:
    """Of all shards: what a shard of one picture takes, and what each further one adds."""
    if not records:
        return 0
    one, all_ = (
        len(tokens_bytes(rows, plan.tokens, columns=Columns(plan.columns)))
        for rows in (records[:1], records)
    )
    each = (all_ - one) / max(1, len(records) - 1)
    pictures = plan.pictures * len(records) / sampled
    return round(plan.num_shards * (one - each) + each * pictures)
