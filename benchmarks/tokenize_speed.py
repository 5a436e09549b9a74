"""`semhitok tokenize` from JPEGs to shards, against what its parts cost one by one.

python benchmarks/tokenize_speed.py ../shared/data/kodak-test.parquet

The photos are stored as JPEGs of `--side` in a parquet file, again and again until they are enough.
First the core-seconds of a picture, on one thread and with nothing beside it: to decode, to resize
and cut, to encode. No job can be faster than all cores busy with these and nothing else. Then
whole jobs with all cores; the rate is of their second half, so that neither imports nor the
workers' start count.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from decode_jpeg import as_jpeg
from protocol import bar, protocol, show

from semhitok import SemHiTok
from semhitok.data.sources import ImageSource, open_source
from semhitok.data.tokens import TokenMetadata
from semhitok.images import ImagePolicy, read_image, to_tensor
from semhitok.tokenize.job import TokenizeJob
from semhitok.tokenize.plan import Plan

SAMPLE = 128


def write_photos(source: ImageSource, path: Path, count: int, side: int) -> None:
    """Parquet of `count` JPEGs."""
    files = [as_jpeg(source.read(n), side, quality=90) for n in range(min(len(source), 64))]
    rows = [{"bytes": files[n % len(files)], "path": f"{n}.jpg"} for n in range(count)]
    pq.write_table(pa.table({"image": rows}), path, row_group_size=100)


def core_seconds(model: SemHiTok, source: ImageSource, policy: ImagePolicy) -> dict[str, float]:
    """Seconds of a picture for each part, on one thread."""
    torch.set_num_threads(1)
    count = min(SAMPLE, len(source))
    marks = [time.perf_counter()]
    stored = [source.read_bytes(n) for n in range(count)]
    marks.append(time.perf_counter())
    decoded = [read_image(data) for data in stored]
    marks.append(time.perf_counter())
    cut = [policy.apply(image) for image in decoded]
    marks.append(time.perf_counter())
    batches = torch.stack([to_tensor(image) for image in cut]).split(32)
    model.encode(batches[0])
    marks.append(time.perf_counter())
    for batch in batches:
        model.encode(batch)
    marks.append(time.perf_counter())
    took = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    names = ("fetch", "decode", "resize and cut", "", "encode")
    return {name: t / count for name, t in zip(names, took, strict=True) if name}


def job_rate(
    model: SemHiTok, source: ImageSource, policy: ImagePolicy, workers: int, threads: int
) -> float:
    """Pictures a second of the second half of a job."""
    torch.set_num_threads(threads)
    metadata = TokenMetadata(
        model=model.config.name,
        hash="benchmark",
        num_semantic=model.config.semantic.num_codes,
        num_pixel=model.config.pixel.num_codes,
        patch_size=model.patch_size,
        policy=policy.describe(),
        dtype="float32",
        version="benchmark",
    )
    marks: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan.make(source, metadata, 512)
        plan.claim(Path(folder))
        job = TokenizeJob(plan, source, policy, model, Path(folder), 32, workers)
        job.run_rank(progress=lambda done, failed: marks.append((time.perf_counter(), done)))
        job.finish()
    middle = next(mark for mark in marks if mark[1] >= len(source) // 2)
    return (marks[-1][1] - middle[1]) / (marks[-1][0] - middle[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="anything that holds pictures")
    parser.add_argument("--side", type=int, default=500, help="long side of the JPEGs in pixels")
    parser.add_argument("--pictures", type=int, default=2048)
    parser.add_argument("--model", default="tiny")
    options = parser.parse_args()

    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    model = SemHiTok.from_pretrained(options.model, parts=("encode",))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photos.parquet"
        write_photos(open_source(options.data), path, options.pictures, options.side)
        measure(model, open_source(path), options, cores, threads)


def measure(
    model: SemHiTok, source: ImageSource, options: argparse.Namespace, cores: int, threads: int
) -> None:
    """All tables."""
    policy = ImagePolicy(model.config.image_size, "square", model.patch_size)
    print(protocol(1, f"{len(source)} JPEGs of {options.side} px, model {options.model}"))
    parts = core_seconds(model, source, policy)
    total = sum(parts.values())
    bound = cores / total
    show(
        ("part", "core-ms a picture", "share"),
        [(name, f"{1000 * t:.2f}", f"{t / total:.0%}") for name, t in parts.items()],
    )
    print(f"\nno job on {cores} cores is faster than {bound:.1f} pictures/s")
    rates = {}
    for workers, own in dict.fromkeys(
        ((cores // 4, threads), (0, threads), (max(0, cores - 1), threads), (cores, 1))
    ):
        rate = job_rate(model, source, policy, workers, own)
        rates[f"{workers} workers, {own} threads for the model"] = rate
    show(
        ("job", "pictures/s", "of the bound"),
        [(name, f"{rate:.1f}", f"{rate / bound:.2f}") for name, rate in rates.items()],
    )
    default = next(iter(rates.values()))
    print(bar("the default job against the bound", default / bound, 0.9))


if __name__ == "__main__":
    main()
