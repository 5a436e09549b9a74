"""`semhitok encode`: pictures to one token file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semhitok.cli.console import (
    BatchOption,
    CropOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    SizeOption,
    check_output_file,
    name_failures,
    parse_side,
    print_json,
    progress,
)

if TYPE_CHECKING:
    from semhitok.data.tokens import Failure, TokenMetadata, TokenRecord


def encode(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS",
            help="Pictures, folders, .parquet, .tar or .jsonl files (paths or URLs), or Hub data "
            "sets.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The token file to write.")],
    model: ModelOption = "tiny",
    size: SizeOption = None,
    crop: CropOption = "square",
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
    from semhitok.cli.models import load_model, pick_device, token_metadata
    from semhitok.data.columns import Columns
    from semhitok.data.sources import open_source
    from semhitok.data.tokens import write_tokens
    from semhitok.errors import DataError, ImageError, StorageError
    from semhitok.images import ImagePolicy
    from semhitok.tokenize.reading import by_size, read_pictures
    from semhitok.tokenize.reading import encode as encode_batch

    if any(Path(path).exists() and Path(path).resolve() == out.resolve() for path in paths):
        raise StorageError(f"{out} is one of the inputs; choose another --out")
    source = open_source(list(paths))
    where = pick_device(device)
    tok = load_model(model, where, parts=("encode",))
    side = parse_side(size, "--size", tok.config.image_size)
    policy = ImagePolicy(size=side, crop=crop, multiple=tok.patch_size)
    metadata = token_metadata(model, policy)
    columns = Columns.of(source)
    readings = read_pictures(source, policy, columns, [range(len(source))], workers=0)
    records: dict[int, TokenRecord] = {}
    failures: dict[int, Failure] = {}
    with progress("encoding", len(source)) as advance:
        for batch in by_size(readings, batch_size, failures):
            if strict and failures:
                break
            records |= encode_batch(tok, batch)
            advance(len(records) + len(failures))
    failed: dict[str, str] = {}
    for _, failure in sorted(failures.items()):
        failed[_unused(failure.key, failed)] = failure.reason
    if strict and failed:
        key, reason = next(iter(failed.items()))
        raise ImageError(f"{key}: {reason}")
    if not records:
        key, reason = next(iter(failed.items()))
        raise DataError(f"not one of {len(source)} pictures can be read; {key}: {reason}")
    ordered = [records[index] for index in sorted(records)]
    write_tokens(out, ordered, metadata, columns=columns)
    _tell(out, records, failed, metadata, json_)
    name_failures(failed, len(source))


def _unused(key: str, failed: dict[str, str]) -> str:
    """The key, or that with a number: files of several folders may have one name."""
    name, number = key, 1
    while name in failed:
        number += 1
        name = f"{key} ({number})"
    return name


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
