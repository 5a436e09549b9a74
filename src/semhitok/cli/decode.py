"""`semhitok decode`: token files back to pictures."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from semhitok.cli.console import BatchOption, DeviceOption, JsonOption, print_json, progress

if TYPE_CHECKING:
    from PIL import Image

    from semhitok.data.tokens import TokenRecord
    from semhitok.storage import Place

QUALITY = 95
"""Of JPEG and WebP."""

LONGEST_NAME = 120
"""Characters of a file or folder name that are kept of a key."""

_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f\x7f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def decode(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="TOKENS...",
            help="Token files, or folders of shards; paths or URLs.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder for the pictures.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="By default the model that the token file names."),
    ] = None,
    decoder: Annotated[
        Literal["pixel", "enhance"] | None,
        typer.Option("--decoder", help="By default the best that the model has."),
    ] = None,
    format_: Annotated[
        Literal["png", "jpg", "webp"],
        typer.Option("--format", help=f"jpg and webp are written at quality {QUALITY}."),
    ] = "png",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace pictures that are already there.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only so many pictures, from the first.")
    ] = None,
    batch_size: BatchOption = 16,
    device: DeviceOption = None,
    json_: JsonOption = False,
) -> None:
    """Token files back to pictures.

    They are named after their keys, folders included.
    """
    import torch

    from semhitok.cli.models import load_model, pick_device
    from semhitok.data.tokens import token_files
    from semhitok.errors import StorageError
    from semhitok.files import check_writable
    from semhitok.images import to_pil

    shards = token_files(files)
    (name, digest), keys = _agreed_model(shards, model), _read_keys(shards, limit)
    tok = load_model(name, pick_device(device), parts=("decode",))
    if out.exists() and not out.is_dir():
        raise StorageError(f"{out} is a file; give a folder")
    targets = _targets(keys, out, format_, overwrite)
    if decoder is not None:
        tok.decode(torch.zeros(1, 1, 1, dtype=torch.int64), decoder=decoder)  # refuses at once
    check_writable(out, needed_bytes=0)
    done = 0
    with progress("decoding", len(keys)) as advance:
        for batch in _batches(shards, len(keys), batch_size):
            for image in tok.decode(_join(tok, batch), decoder=decoder):
                _save(to_pil(image), targets[done], format_)
                done += 1
            advance(done)
    if json_:
        record: dict[str, Any] = {"out": str(out), "pictures": done, "model": name}
        record |= {"hash": digest, "files": [str(path) for path in targets]}
        print_json(record)
        return
    print(f"{out}: {done:,} pictures")


def _agreed_model(shards: Sequence[Place], name: str | None) -> tuple[str, str]:
    """Name and hash of the model, once it is sure that it wrote all the files."""
    from semhitok import hub
    from semhitok.cli.models import file_hash
    from semhitok.data.tokens import summarize_tokens
    from semhitok.errors import FormatError, NotFoundError

    authors = [summarize_tokens(path).metadata for path in shards]
    wrote = authors[0]
    try:
        folder = hub.resolve(name or wrote.model)
    except NotFoundError as error:
        if name is not None:
            raise
        raise NotFoundError(
            f"{shards[0]} was written by {wrote.model!r}, which is no bundled model here; give "
            "its folder or Hub id: --model"
        ) from error
    found = file_hash(folder)
    chosen = name or wrote.model
    for path, wrote in zip(shards, authors, strict=True):
        if found != wrote.hash:
            raise FormatError(
                f"{path} was written by {wrote.model!r} with hash {wrote.hash}; "
                f"{chosen!r} has hash {found}: give the model that wrote it, --model"
            )
    return chosen, found


def _read_keys(shards: Sequence[Place], limit: int | None) -> list[str]:
    """Keys of the pictures, in order; every file that is needed is checked as a whole."""
    from semhitok.data.tokens import read_tokens

    keys: list[str] = []
    for path in shards:
        if limit is not None and len(keys) >= limit:
            break
        keys += read_tokens(path).keys
    return keys[:limit]


def _batches(shards: Sequence[Place], count: int, batch_size: int) -> Iterator[list[TokenRecord]]:
    """The first `count` pictures; neighbours of one grid together."""
    from semhitok.data.tokens import read_tokens

    batch: list[TokenRecord] = []
    records = (record for path in shards for record in read_tokens(path))
    for record in itertools.islice(records, count):
        if batch and (len(batch) == batch_size or batch[0].semantic.shape != record.semantic.shape):
            yield batch
            batch = []
        batch.append(record)
    if batch:
        yield batch


def _join(tok: Any, batch: Sequence[TokenRecord]) -> Any:
    import torch

    semantic = torch.stack([record.semantic for record in batch])
    return tok.join(semantic, torch.stack([record.pixel for record in batch]))


# ---------------------------------------------------------------------------------------- files


def _targets(keys: Sequence[str], out: Path, suffix: str, overwrite: bool) -> list[Path]:
    """Paths of the pictures, all of them inside `out`."""
    from semhitok.errors import StorageError

    targets = [out / name for name in plan_names(keys, suffix)]
    inside = out.resolve()
    for path in targets:
        if not path.resolve().is_relative_to(inside):
            raise StorageError(f"{path} leads out of {out} by a link; choose another --out")
        if not overwrite and path.exists():
            raise StorageError(f"{path} is there already; choose another --out, or --overwrite")
    return targets


def plan_names(keys: Sequence[str], suffix: str) -> list[str]:
    """A relative path for each key: its folders and name, made safe, and all different.

    Steps upwards, drives and characters that some system refuses are dropped or become "_"; names
    that differ in nothing but case count as equal, and the later ones get numbers.
    """
    from semhitok.images import picture_suffixes

    pictures = picture_suffixes()
    used: set[str] = set()
    names = []
    for key in keys:
        steps = [s for s in re.split(r"[/\\]+", key) if s.strip(" .")] or ["picture"]
        *folders, last = steps
        stem, dot, kind = last.rpartition(".")
        if stem and f".{kind.lower()}" in pictures:
            last = stem
        # A folder never ends as a picture does, so the two cannot meet.
        folders = [f"{f}_" if f.lower().endswith(f".{suffix}") else f for f in map(_safe, folders)]
        path = "/".join([*folders, _safe(last)])
        name, number = f"{path}.{suffix}", 1
        while name.casefold() in used:
            number += 1
            name = f"{path}-{number}.{suffix}"
        used.add(name.casefold())
        names.append(name)
    return names


def _safe(step: str) -> str:
    name = _FORBIDDEN.sub("_", step.encode("utf-8", "replace").decode())
    if len(name.encode()) > LONGEST_NAME:
        name = name.encode()[:LONGEST_NAME].decode(errors="ignore")
    name = name.strip().rstrip(".") or "_"
    return f"_{name}" if _RESERVED.fullmatch(name) else name


def _save(image: Image.Image, path: Path, format_: str) -> None:
    from semhitok.files import storage_error

    options = {} if format_ == "png" else {"quality": QUALITY}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[format_], **options)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise storage_error(path, error) from error
