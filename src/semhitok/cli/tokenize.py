"""`semhitok tokenize`: a data set into token shards; killed anywhere, it goes on."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from semhitok.cli.console import (
    SOME_FAILED,
    BatchOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    SizeOption,
    duration,
    log_to_stderr,
    make_pairs,
    message,
    parse_side,
    print_json,
    print_table,
    progress,
)

if TYPE_CHECKING:
    from semhitok.images import ImagePolicy
    from semhitok.model import SemHiTok
    from semhitok.storage import Place
    from semhitok.tokenize.job import TokenizeJob

Crop = Literal["square", "grid", "random", "buckets"]
NAMED_FAILURES = 10


def tokenize(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA...",
            help="Folders, .parquet, .tar or .jsonl files (paths or URLs), or Hub data sets.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", help="The folder of the shards, a path or a URL; a stopped job goes on."
        ),
    ] = None,
    model: ModelOption = "tiny",
    size: SizeOption = None,
    crop: Annotated[
        Crop,
        typer.Option(
            "--crop",
            help="The middle square, only to whole patches, a square at a random place, or the "
            "nearest in ratio of a few sizes.",
        ),
    ] = "square",
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the random places; by default 0.")
    ] = None,
    reduced: Annotated[
        bool,
        typer.Option(
            "--reduced-decode",
            help="Decode JPEGs more than four times as large as needed at 1/2 to 1/8: faster, "
            "with a few other ids.",
        ),
    ] = False,
    shard_size: Annotated[
        int, typer.Option("--shard-size", min=1, help="Pictures of a shard.")
    ] = 4096,
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(
            "--dtype", help="Of the networks' products; the manifest tells what bfloat16 changes."
        ),
    ] = "float32",
    webdataset: Annotated[
        bool, typer.Option("--webdataset", help="Beside each shard a tar file for WebDataset.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            help="Processes that read beside a model; by default all cores but one, a quarter "
            "of them where the model is on the CPU.",
        ),
    ] = None,
    batch_size: BatchOption = 32,
    device: DeviceOption = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option("--engine", help="Here, or on the Ray cluster that RAY_ADDRESS names."),
    ] = "local",
    verify: Annotated[
        str | None,
        typer.Option(
            "--verify",
            metavar="DIR",
            help="Check the shards there instead; with DATA a sample is encoded again.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write nothing: tell shards, bytes and time by a sample."),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """A data set into token shards.

    Parquet, with captions, labels and keys; manifest.json and failures.jsonl beside them. Killed
    and started again it ends with the same bytes. Under torchrun ranks share the shards; with
    --engine ray the workers of a cluster do.
    """
    from semhitok.errors import DataError, RangeError
    from semhitok.storage import locate

    if verify is None and not out and not dry_run or verify is not None and (out or dry_run):
        raise RangeError(
            "give one of --out, to write shards, --dry-run, to see what that would take, and "
            "--verify, to check some"
        )
    policy_for = functools.partial(_policy, size, crop, seed, reduced)
    if verify is not None:
        _verify(locate(verify), data, model, policy_for, device, json_)
        return
    if not data:
        raise DataError("no DATA is given; name what is to be tokenized")
    from semhitok.cli.models import load_model, pick_device, token_metadata
    from semhitok.data.sources import open_source
    from semhitok.tokenize.job import TokenizeJob
    from semhitok.tokenize.plan import Plan

    on_ray = engine == "ray"
    gpus = _check_ray(device) if on_ray else None
    source = open_source(list(data))
    where = pick_device("cpu" if on_ray else device or _local_device())
    tok = load_model(model, where, parts=("encode",))
    policy = policy_for(tok)
    plan = Plan.make(
        source,
        token_metadata(model, policy, dtype),
        shard_size,
        batch_size=batch_size,
        webdataset=webdataset,
    )
    folder = locate(out or ".")
    folder = folder.absolute() if isinstance(folder, Path) else folder
    job = TokenizeJob(plan, source, policy, tok, folder, batch_size)
    if dry_run:
        _tell_estimate(job, workers, json_)
        return
    plan.claim(folder)
    if on_ray:
        _run_on_ray(job, data, gpus, workers)
    else:
        _run_here(job, workers)
    if job.pending():
        message("this rank has done its part; others have not yet")
        return
    _tell(folder, job.finish(), json_)


def _policy(
    size: str | None, crop: Crop, seed: int | None, reduced: bool, tok: SemHiTok
) -> ImagePolicy:
    from semhitok.images import ImagePolicy

    return ImagePolicy(
        size=parse_side(size, "--size", tok.config.image_size),
        crop=crop,
        multiple=tok.patch_size,
        seed=0 if crop == "random" and seed is None else seed,
        reduced=reduced,
    )


def _run_here(job: TokenizeJob, workers: int | None) -> None:
    """This rank's shards; torchrun tells which they are."""
    rank, world_size = _ranks()
    total = sum(len(job.plan.pictures_of(n)) for n in job.pending() if n % world_size == rank)
    what = "tokenizing" if world_size == 1 else f"rank {rank}"
    with progress(what, total) as advance:
        _with_workers(job, workers).run_rank(
            rank, world_size, lambda done, failed: advance(done + failed, failed)
        )


def _with_workers(job: TokenizeJob, workers: int | None) -> TokenizeJob:
    """By default the cores of a rank but one, which feeds the GPU; a quarter where the model needs
    the cores itself: a thread that waits for a core keeps all the others waiting."""
    if workers is None:
        cores = (os.cpu_count() or 1) // _ranks()[1]
        workers = cores // 4 if job.model.device.type == "cpu" else max(0, cores - 1)
    return dataclasses.replace(job, workers=workers)


def _ranks() -> tuple[int, int]:
    """This rank, and how many there are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _tell_estimate(job: TokenizeJob, workers: int | None, as_json: bool) -> None:
    from semhitok.tokenize.estimate import estimate

    found = estimate(_with_workers(job, workers), _ranks()[1])
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    rows = {
        "pictures": f"{found.pictures:,}",
        "shards": f"{found.shards:,}",
        "bytes": f"{found.bytes:,} ({found.bytes / found.pictures:,.0f} a picture)",
        "time": f"{duration(3600 * found.hours)} at {found.images_per_s:,.1f} pictures/s",
        "sample": f"{found.sampled:,} pictures, {found.failed:,} of them failed",
    }
    print_table(make_pairs(rows))


def _check_ray(device: str | None) -> bool | None:
    """Whether each worker takes a GPU; None where that is the cluster's affair.

    Raises:
        MissingExtraError: Ray is not installed.
        RangeError: a device that Ray does not deal.
    """
    from semhitok.errors import RangeError
    from semhitok.extras import require

    require("ray", extra="ray")
    if device not in (None, "cpu", "cuda"):
        raise RangeError(
            f"--device is {device!r}; with --engine ray: cpu, or cuda, which Ray deals"
        )
    return None if device is None else device == "cuda"


def _run_on_ray(job: TokenizeJob, data: list[str], gpus: bool | None, workers: int | None) -> None:
    import logging

    from semhitok.tokenize.ray_engine import run_on_ray

    log_to_stderr(logging.WARNING)
    # The workers have working folders of their own.
    places = [str(Path(item).absolute()) if Path(item).exists() else item for item in data]
    with progress("shards", len(job.pending())) as advance:
        run_on_ray(job, places, gpus=gpus, workers=workers, progress=advance)


def _local_device() -> str | None:
    """Each rank of a machine has a GPU of its own, where there are some."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is None:
        return None
    import torch

    return f"cuda:{rank}" if torch.cuda.is_available() else None


def _tell(out: Place, manifest: dict[str, Any], as_json: bool) -> None:
    from semhitok.storage import read_file
    from semhitok.tokenize.plan import FAILURES

    size = sum(shard["bytes"] for shard in manifest["shards"])
    if as_json:
        print_json({"out": str(out), **manifest})
    else:
        print(
            f"{out}: {manifest['pictures']:,} pictures in {len(manifest['shards'])} shards, "
            f"{size:,} bytes; {manifest['failed']} failed"
        )
        if flips := manifest.get("flips"):
            print(
                f"bfloat16 changes {flips['ids']:.2%} of the ids (float32 on the same device, "
                f"{flips['pictures']} pictures)"
            )
    if manifest["failed"]:
        lines = read_file(out / FAILURES).decode().splitlines()
        for line in lines[:NAMED_FAILURES]:
            message(f"failed: {line}")
        if len(lines) > NAMED_FAILURES:
            message(f"and {len(lines) - NAMED_FAILURES} more: {out / FAILURES}")
        raise typer.Exit(SOME_FAILED)


def _verify(
    folder: Place,
    data: list[str] | None,
    model: str,
    policy_for: Callable[[SemHiTok], ImagePolicy],
    device: str | None,
    as_json: bool,
) -> None:
    from semhitok.cli.models import file_hash, load_model, pick_device
    from semhitok.data.sources import open_source
    from semhitok.errors import FormatError
    from semhitok.hub import resolve
    from semhitok.tokenize.verify import Again, verify

    again = None
    if data:
        tok = load_model(model, pick_device(device), parts=("encode",))
        again = Again(open_source(list(data)), policy_for(tok), tok, file_hash(resolve(model)))
    verdict = verify(folder, again)
    if as_json:
        print_json(dataclasses.asdict(verdict))
    if verdict.wrong:
        more = f" (and {len(verdict.wrong) - 1} more)" if len(verdict.wrong) > 1 else ""
        raise FormatError(f"{folder}: {verdict.wrong[0]}{more}")
    if not as_json:
        ids = f"ids of {verdict.compared} came out again" if data else "ids not compared: no DATA"
        print(
            f"{folder}: {verdict.pictures:,} pictures in {verdict.shards} shards are whole; {ids}"
        )
