"""`semhitok tokenize`: a data set into token shards; killed anywhere, it goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from semhitok.cli.console import (
    SOME_FAILED,
    BatchOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    message,
    parse_side,
    print_json,
    progress,
)

NAMED_FAILURES = 10


def tokenize(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA...", help="Folders, .parquet or .tar files, or Hub data sets."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder of the shards; a stopped job goes on.")
    ] = None,
    model: ModelOption = "tiny",
    size: Annotated[
        str | None,
        typer.Option(
            "--size", help="Short side in pixels, or 'native'; by default the model's own."
        ),
    ] = None,
    crop: Annotated[
        Literal["square", "grid"],
        typer.Option("--crop", help="Cut to a square, or only to whole patches."),
    ] = "square",
    shard_size: Annotated[
        int, typer.Option("--shard-size", min=1, help="Pictures of a shard.")
    ] = 4096,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=0, help="Processes that read; by default all cores but one."),
    ] = None,
    batch_size: BatchOption = 32,
    device: DeviceOption = None,
    verify: Annotated[
        Path | None,
        typer.Option(
            "--verify",
            metavar="DIR",
            help="Check the shards there instead; with DATA a sample is encoded again.",
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """A data set into token shards.

    Parquet, with captions, labels and keys; manifest.json and failures.jsonl beside them. Killed
    and started again it ends with the same bytes. Under torchrun ranks share the shards.
    """
    from semhitok.errors import DataError, RangeError

    if (verify is None) == (out is None):
        raise RangeError("give one of --out, to write shards, and --verify, to check some")
    if verify is not None:
        _verify(verify, data, model, size, crop, device, json_)
        return
    assert out is not None
    if not data:
        raise DataError("no DATA is given; name what is to be tokenized")
    from semhitok.cli.models import load_model, pick_device, token_metadata
    from semhitok.data.sources import open_source
    from semhitok.images import ImagePolicy
    from semhitok.tokenize.job import TokenizeJob
    from semhitok.tokenize.plan import Plan

    rank, world_size = (int(os.environ.get(n, d)) for n, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    source = open_source(list(data))
    where = pick_device(device or _local_device())
    tok = load_model(model, where, parts=("encode",))
    side = parse_side(size, "--size", tok.config.image_size)
    policy = ImagePolicy(size=side, crop=crop, multiple=tok.patch_size)
    plan = Plan.make(source, token_metadata(model, policy), shard_size)
    plan.claim(out)
    reading = max(0, (os.cpu_count() or 1) // world_size - 1) if workers is None else workers
    job = TokenizeJob(plan, source, policy, tok, out, batch_size, reading)
    total = sum(len(plan.pictures_of(n)) for n in job.pending() if n % world_size == rank)
    with progress("tokenizing", total) as advance:
        job.run_rank(rank, world_size, lambda done, failed: advance(done + failed))
    if job.pending():
        message(f"rank {rank} has done its part; other ranks have not yet")
        return
    _tell(out, job.finish(), json_)


def _local_device() -> str | None:
    """Each rank of a machine has a GPU of its own, where there are some."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is None:
        return None
    import torch

    return f"cuda:{rank}" if torch.cuda.is_available() else None


def _tell(out: Path, manifest: dict[str, Any], as_json: bool) -> None:
    size = sum(shard["bytes"] for shard in manifest["shards"])
    if as_json:
        print_json({"out": str(out), **manifest})
    else:
        print(
            f"{out}: {manifest['pictures']:,} pictures in {len(manifest['shards'])} shards, "
            f"{size:,} bytes; {manifest['failed']} failed"
        )
    if manifest["failed"]:
        lines = (out / "failures.jsonl").read_text().splitlines()
        for line in lines[:NAMED_FAILURES]:
            message(f"failed: {line}")
        if len(lines) > NAMED_FAILURES:
            message(f"and {len(lines) - NAMED_FAILURES} more: {out / 'failures.jsonl'}")
        raise typer.Exit(SOME_FAILED)


def _verify(
    folder: Path,
    data: list[str] | None,
    model: str,
    size: str | None,
    crop: Literal["square", "grid"],
    device: str | None,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from semhitok.cli.models import file_hash, load_model, pick_device
    from semhitok.data.sources import open_source
    from semhitok.errors import FormatError
    from semhitok.hub import resolve
    from semhitok.images import ImagePolicy
    from semhitok.tokenize.verify import Again, verify

    again = None
    if data:
        tok = load_model(model, pick_device(device), parts=("encode",))
        side = parse_side(size, "--size", tok.config.image_size)
        policy = ImagePolicy(size=side, crop=crop, multiple=tok.patch_size)
        again = Again(open_source(list(data)), policy, tok, file_hash(resolve(model)))
    verdict = verify(folder, again)
    if as_json:
        print_json(asdict(verdict))
    if verdict.wrong:
        more = f" (and {len(verdict.wrong) - 1} more)" if len(verdict.wrong) > 1 else ""
        raise FormatError(f"{folder}: {verdict.wrong[0]}{more}")
    if not as_json:
        ids = f"ids of {verdict.compared} came out again" if data else "ids not compared: no DATA"
        print(
            f"{folder}: {verdict.pictures:,} pictures in {verdict.shards} shards are whole; {ids}"
        )
