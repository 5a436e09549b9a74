"""A report of several parts, each with figures and a protocol of its own, as a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from semhitok.evaluate.markdown import Illustration, code, escape, table
from semhitok.evaluate.metrics import BOOTSTRAP_SAMPLES
from semhitok.evaluate.report import Report, figure_rows
from semhitok.files import check_writable, write_file

INTERVAL = (
    f"95%, bootstrap over pictures or sequences, {BOOTSTRAP_SAMPLES} samples, seed 0; a Frechet "
    "distance has none"
)


def write_sections(
    folder: Path,
    title: str,
    report: Report,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    sheets: Sequence[tuple[Illustration, Image.Image]],
) -> None:
    """Write `report.json`, `report.md`, the illustrations, and `NAME.jsonl` for each of `rows`.

    Raises:
        StorageError: the folder cannot be written.
    """
    check_writable(folder, needed_bytes=0)
    for name, each in rows.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in each]
        _write(folder / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
    for illustration, image in sheets:
        write_file(folder / illustration.file, lambda path, image=image: image.save(path, "PNG"))
    _write(folder / "report.json", report.to_json() + "\n")
    illustrations = [illustration for illustration, _ in sheets]
    _write(folder / "report.md", sections_markdown(title, report, illustrations))


def sections_markdown(title: str, report: Report, illustrations: Sequence[Illustration]) -> str:
    """Each part's figures with intervals and its protocol, pictures, and what all parts share."""
    parts = [
        f"# Report: {escape(title)}",
        f"In brackets the interval ({INTERVAL}). [report.json](report.json) has all digits.",
    ]
    shared = {k: v for k, v in report.protocol.items() if k not in report.figures}
    for name, figures in report.figures.items():
        parts += [f"## {escape(name)}", _pairs(figures)]
        parts += ["How it was measured:", _pairs(report.protocol[name])]
    for each in illustrations:
        link = f"![{escape(each.title)}]({quote(each.file)})"
        parts += [f"## {escape(each.title)}", escape(each.caption), link]
    parts += ["## Protocol", _pairs(shared)]
    return "\n\n".join(parts) + "\n"


def _pairs(tree: dict[str, Any]) -> str:
    rows = [(code(name), escape(text)) for name, text in figure_rows(tree)]
    return table(("", ""), rows, numbers=False)


def _write(path: Path, text: str) -> None:
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
