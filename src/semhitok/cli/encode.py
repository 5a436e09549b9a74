"""`semhitok encode`: pictures to one token file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from semhitok.cli.console import (
    BatchOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    check_output_file,
    name_failures,
    parse_side,
    print_json,
    progress,
    why,
)

if TYPE_CHECKING:
    from torch import Tensor

    from semhitok.data.sources import ImageSource
    from semhitok.data.tokens import TokenMetadata, TokenRecord
    from semhitok.images import ImagePolicy
    from semhitok.model import SemHiTok

WAITING_BATCHES = 4
"""Batches' worth of pictures of several sizes that wait until a batch of one size is full."""

_TAKEN = {"key", "semantic", "pixel", "height", "width"}
"""Columns of every token file; what a data set calls the same is stored as `source_...`."""


def encode(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS",
            help="Pictures, folders, .parquet or .tar files, or Hub data sets.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The token file to write.")],
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
    batch_size: BatchOption = 16,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first broken picture; write nothing.")
    ] = False,
    device: DeviceOption = None,
    json_: JsonOption = False,
) -> None:
    """Pictures to one token file.

    It is parquet, in the order of the inputs. Broken pictures are left out and
    named; the exit code is then 3.
    """
    check_output_file(out)
    from semhitok.cli.models import load_model, pick_device
    from semhitok.data.sources import open_source
    from semhitok.data.tokens import write_tokens
    from semhitok.errors import DataError, StorageError
    from semhitok.images import ImagePolicy

    if any(Path(path).exists() and Path(path).resolve() == out.resolve() for path in paths):
        raise StorageError(f"{out} is one of the inputs; choose another --out")
    source = open_source(list(paths))
    where = pick_device(device)
    tok = load_model(model, where, parts=("encode",))
    side = parse_side(size, "--size", tok.config.image_size)
    policy = ImagePolicy(size=side, crop=crop, multiple=tok.patch_size)
    metadata = _metadata(model, policy)
    records: dict[int, TokenRecord] = {}
    failed: dict[str, str] = {}
    with progress("encoding", len(source)) as advance:
        for batch in _batches(source, policy, batch_size, failed, strict):
            records.update(_encoded(tok, source, batch))
            advance(len(records) + len(failed))
    if not records:
        key, reason = next(iter(failed.items()))
        raise DataError(f"not one of {len(source)} pictures can be read; {key}: {reason}")
    write_tokens(out, [records[index] for index in sorted(records)], metadata)
    _tell(out, records, failed, metadata, json_)
    name_failures(failed, len(source))


def _metadata(model: str, policy: ImagePolicy) -> TokenMetadata:
    from semhitok import __version__, hub
    from semhitok.cli.models import file_hash
    from semhitok.data.tokens import TokenMetadata

    folder = hub.resolve(model)
    config = hub.read_config(folder)
    return TokenMetadata(
        # A folder's path means nothing elsewhere; a Hub id does.
        model=config.name if Path(model).is_dir() else model,
        hash=file_hash(folder),
        num_semantic=config.semantic.num_codes,
        num_pixel=config.pixel.num_codes,
        patch_size=config.patch_size,
        policy=policy.describe(),
        dtype="float32",
        version=__version__,
    )


def _batches(
    source: ImageSource,
    policy: ImagePolicy,
    batch_size: int,
    failed: dict[str, str],
    strict: bool,
) -> Iterator[list[tuple[int, Tensor]]]:
    """Indices and pictures of one size; what cannot be read goes to `failed`."""
    from semhitok.errors import SemHiTokError
    from semhitok.images import to_tensor

    waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for index in range(len(source)):
        try:
            image = to_tensor(policy.apply(source.read(index)))
        except SemHiTokError as error:
            if strict:
                raise
            key = source.key(index)
            failed[_unused(key, failed)] = why(key, error)
            continue
        shape = tuple(image.shape)
        waiting.setdefault(shape, []).append((index, image))
        if len(waiting[shape]) == batch_size:
            yield waiting.pop(shape)
        elif sum(map(len, waiting.values())) > WAITING_BATCHES * batch_size:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def _unused(key: str, failed: dict[str, str]) -> str:
    """The key, or that with a number: files of several folders may have one name."""
    name, number = key, 1
    while name in failed:
        number += 1
        name = f"{key} ({number})"
    return name


def _encoded(
    tok: SemHiTok, source: ImageSource, batch: list[tuple[int, Tensor]]
) -> dict[int, TokenRecord]:
    import torch

    from semhitok.data.tokens import TokenRecord

    ids = tok.encode(torch.stack([image for _, image in batch])).cpu()
    return {
        index: TokenRecord(source.key(index), *tok.split(grid), _extra(source, index))
        for (index, _), grid in zip(batch, ids, strict=True)
    }


def _extra(source: ImageSource, index: int) -> dict[str, Any]:
    return {f"source_{k}" if k in _TAKEN else k: v for k, v in source.meta(index).items()}


def _tell(
    out: Path,
    records: dict[int, TokenRecord],
    failed: dict[str, str],
    metadata: TokenMetadata,
    as_json: bool,
) -> None:
    patches = sum(record.semantic.numel() for record in records.values())
    size = out.stat().st_size
    if as_json:
        print_json(
            {
                "out": str(out),
                "pictures": len(records),
                "ids": patches,
                "bytes": size,
                "model": metadata.model,
                "hash": metadata.hash,
                "policy": metadata.policy,
                "failed": failed,
            }
        )
        return
    print(f"{out}: {len(records):,} pictures, {patches:,} ids, {size:,} bytes; {metadata.policy}")
