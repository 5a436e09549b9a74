"""`semhitok demo`: what a tokenizer makes of photos, on a contact sheet, a page and in a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semhitok.cli.console import (
    DeviceOption,
    JsonOption,
    ModelOption,
    make_table,
    message,
    name_failures,
    print_json,
    print_table,
    progress,
    why,
)

if TYPE_CHECKING:
    from semhitok.data.sources import ImageSource
    from semhitok.evaluate.showcase import Exhibit
    from semhitok.model import SemHiTok

PHOTOS = {
    "astronaut.png": "astronaut",
    "coffee.png": "coffee",
    "chelsea.png": "cat",
    "rocket.jpg": "rocket",
    "motorcycle_left.png": "motorcycle",
    "hubble_deep_field.jpg": "galaxies",
}
"""Files that scikit-image's wheel carries, and what they show."""


def demo(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGES",
            help="Pictures or folders; by default photos that come with scikit-image.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = "tiny",
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")] = Path("demo"),
    max_images: Annotated[
        int, typer.Option("--max-images", min=1, help="Of more, so many evenly spaced.")
    ] = 24,
    device: DeviceOption = None,
    json_: JsonOption = False,
) -> None:
    """Photos beside what their tokens give back.

    With a table against JPEG, WebP and AVIF. Writes contact_sheet.png, index.html (open it in a
    browser) and ids.json.
    """
    from semhitok.cli.models import load_model, pick_device
    from semhitok.data.sources import SubsetSource, open_source
    from semhitok.errors import StorageError
    from semhitok.evaluate.reconstruction import evenly_spaced
    from semhitok.evaluate.showcase import contact_sheet_of, ids_of, page_of
    from semhitok.extras import require
    from semhitok.files import check_writable, write_file

    if out.exists() and not out.is_dir():
        raise StorageError(f"{out} is a file; give a folder")
    require("torchmetrics", "evaluate")
    source = open_source(images) if images else photos()
    if len(source) > max_images:
        message(f"{len(source)} pictures; showing {max_images}, evenly spaced (--max-images)")
        source = SubsetSource(source, evenly_spaced(len(source), max_images))
    tok = load_model(model, pick_device(device))
    check_writable(out, needed_bytes=0)
    exhibits, failed = _exhibits(tok, source, named=not images)
    digest = tok.hash
    sheet, page, ids = (out / name for name in ("contact_sheet.png", "index.html", "ids.json"))
    write_file(sheet, lambda temporary: contact_sheet_of(exhibits).save(temporary, "PNG"))
    html = page_of(tok.config, digest, exhibits)
    write_file(page, lambda temporary: temporary.write_text(html, encoding="utf-8"))
    text = json.dumps(ids_of(tok.config, digest, exhibits)) + "\n"
    write_file(ids, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    if json_:
        files = {"contact_sheet": str(sheet), "page": str(page), "ids": str(ids)}
        pictures = {exhibit.name: exhibit.figures for exhibit in exhibits}
        print_json({"hash": digest, "pictures": pictures, "files": files, "failed": failed})
    else:
        print_table(make_table(*_table(exhibits)))
        print(f"\n{sheet}\n{page}\n{ids}")
    name_failures(failed, len(source))


def photos() -> ImageSource:
    """The photos of the installed scikit-image; those that a version lacks are passed over.

    Raises:
        DataError: it has none of them.
        MissingExtraError: scikit-image is not installed.
    """
    from semhitok.data.sources import FolderSource
    from semhitok.errors import DataError
    from semhitok.extras import require

    root = Path(require("skimage", "demo").__path__[0]) / "data"
    files = [file for file in PHOTOS if (root / file).is_file()]
    if not files:
        raise DataError("this scikit-image carries no photos; give pictures: semhitok demo IMAGES")
    return FolderSource(root, {file: (root / file).stat().st_size for file in files})


def _exhibits(
    tok: SemHiTok, source: ImageSource, named: bool
) -> tuple[list[Exhibit], dict[str, str]]:
    from semhitok.errors import DataError, SemHiTokError
    from semhitok.evaluate.showcase import exhibit

    exhibits, failed = [], {}
    with progress("pictures", len(source)) as advance:
        for index in range(len(source)):
            key = source.key(index)
            name = PHOTOS[key] if named else key
            try:
                picture = source.read(index)
            except SemHiTokError as error:
                failed[key] = why(key, error)
                continue
            exhibits.append(exhibit(tok, picture, name))
            advance(index + 1)
    if not exhibits:
        key, reason = next(iter(failed.items()))
        raise DataError(f"not one of {len(source)} pictures can be read; {key}: {reason}")
    return exhibits, failed


def _table(exhibits: list[Exhibit]) -> tuple[list[str], list[list[str]]]:
    """A row a picture, and the means."""
    from semhitok.evaluate.showcase import COLUMNS, cells, mean_figures

    rows = [[e.name, *cells(e.figures)] for e in exhibits]
    if len(exhibits) > 1:
        rows.append(["mean", *cells(mean_figures(exhibits))])
    return ["picture", *COLUMNS], rows
