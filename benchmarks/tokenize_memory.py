"""Does the memory of `semhitok tokenize` grow with the pictures that it has done?

python benchmarks/tokenize_memory.py ../shared/data/tiny-imagenet-train.parquet

Small pictures, encoded small, so that a hundred thousand take minutes; where the data hold fewer,
they come again. Measured is what the process and its workers have to themselves, with their part
of what they share (PSS), which no sharing between them hides or counts twice. Linux only.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch

from semhitok import SemHiTok
from semhitok.data.sources import SubsetSource, open_source
from semhitok.data.tokens import TokenMetadata
from semhitok.images import ImagePolicy
from semhitok.tokenize.job import TokenizeJob
from semhitok.tokenize.plan import Plan

MARKS = 10
WARM = 1000


def memory_mb() -> float:
    """PSS of this process and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    total = 0
    for process in (str(os.getpid()), *children):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="anything that holds pictures")
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=32, help="side in pixels")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--model", default="tiny")
    options = parser.parse_args()

    model = SemHiTok.from_pretrained(options.model, parts=("encode",))
    whole = open_source(options.data)
    source = SubsetSource(whole, [n % len(whole) for n in range(options.pictures)])
    policy = ImagePolicy(options.size, "square", model.patch_size)
    metadata = TokenMetadata(
        model=model.config.name, hash="benchmark", num_semantic=model.config.semantic.num_codes,
        num_pixel=model.config.pixel.num_codes, patch_size=model.patch_size,
        policy=policy.describe(), dtype="float32", version="benchmark",
    )  # fmt: skip
    print(
        f"{options.pictures:,} pictures at {options.size} px, {options.workers} workers, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}\n{'done':>10}      MB"
    )
    marks: dict[int, float] = {}
    step = options.pictures // MARKS

    def look(done: int, failed: int) -> None:
        due = WARM if not marks else len(marks) * step
        if done >= due:
            marks[done] = memory_mb()
            print(f"{done:10,} {marks[done]:7.0f}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        plan = Plan.make(source, metadata, 4096)
        plan.claim(Path(folder))
        job = TokenizeJob(plan, source, policy, model, Path(folder), 64, options.workers)
        job.run_rank(progress=look)
    values = list(marks.values())
    print(f"grown by {max(values[1:]) - values[0]:.0f} MB since the first {WARM:,}")


if __name__ == "__main__":
    main()
