"""A report as a folder: JSON, Markdown, pictures for the eye and plots of code use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from semhitok.data.sources import ImageSource
from semhitok.evaluate.adapters import Adapter
from semhitok.evaluate.markdown import Illustration, to_markdown
from semhitok.evaluate.plots import plot_codes
from semhitok.evaluate.report import Comparison, Report, unique
from semhitok.evaluate.sheets import contact_sheet, with_headings
from semhitok.files import check_writable, write_file
from semhitok.images import ImagePolicy, to_pil, to_tensor

PICKED = 4
"""Pictures shown of the best, as many of the middle, and of the worst."""

COMPARED = 8
"""Pictures shown as all models give them back."""


def write_folder(
    folder: Path,
    comparison: Comparison,
    adapters: Sequence[Adapter],
    source: ImageSource,
    policy: ImagePolicy,
) -> None:
    """Write what was measured, and what it looks like.

    `report.json` (the reports, from the second on with their differences from the first),
    `report.md`; for each model `MODEL-pictures.png` (best, median and worst reconstructions) and,
    where it has codes, `MODEL-codes.png`; for several models `compared.png`. The pictures that are
    shown are encoded and decoded once more, one at a time. Files of these names are replaced,
    others left alone.

    Args:
        comparison: of the adapters' reports, in their order, as `evaluate` returned them.
        source: the pictures that all of them saw.
        policy: how the pictures came to their size there.

    Raises:
        MissingExtraError: there are codes, and matplotlib is not installed.
        StorageError: the folder cannot be written.
    """
    check_writable(folder, needed_bytes=0)
    viewer = _Viewer(source, policy)
    illustrations = []
    for illustration, image in _draw(comparison, adapters, viewer):
        _save(folder / illustration.file, image)
        illustrations.append(illustration)
    text = json.dumps(comparison.to_records(), indent=2, allow_nan=False) + "\n"
    _write(folder / "report.json", text)
    _write(folder / "report.md", to_markdown(comparison, illustrations))


def ranking(report: Report) -> list[int]:
    """Places of a report's pictures, best first, by the figure that `ranked_by` names."""
    name = ranked_by(report)
    values = report.pictures[name]
    return sorted(range(len(values)), key=values.__getitem__, reverse=name == "psnr_db")


def ranked_by(report: Report) -> str:
    """An LPIPS, which tells better than PSNR what people see, where one was measured."""
    return next((name for name in report.pictures if name.startswith("lpips")), "psnr_db")


def extremes(order: list[int]) -> dict[str, list[int]]:
    """The best, the middle ones, and the worst with the very worst first.

    Each place once: of one or two, groups that have nothing left are left out.
    """
    count = max(1, min(PICKED, len(order) // 3))
    middle = (len(order) - count) // 2
    groups = {
        "best": order[:count],
        "median": order[middle : middle + count],
        "worst": order[::-1][:count],
    }
    if len(order) < len(groups):
        del groups["median"]
    if len(order) == 1:
        del groups["worst"]
    return groups


class _Viewer:
    """Pictures as the models saw them, and as they come back."""

    def __init__(self, source: ImageSource, policy: ImagePolicy) -> None:
        self.source, self.policy = source, policy

    def original(self, index: int) -> Image.Image:
        return self.policy.apply(self.source.read(index))

    @torch.inference_mode()
    def reconstruction(self, adapter: Adapter, original: Image.Image) -> Image.Image:
        return to_pil(adapter.decode(adapter.encode(to_tensor(original)[None]))[0])


def _draw(
    comparison: Comparison, adapters: Sequence[Adapter], viewer: _Viewer
) -> Iterator[tuple[Illustration, Image.Image]]:
    reports, names = comparison.reports, comparison.labels
    stems = unique([_file_stem(name) for name in names])
    if len(reports) > 1:
        yield (
            Illustration(
                "Side by side",
                "compared.png",
                f"Evenly spread over the ranking of {names[0]}, from best to worst "
                f"({_measure(reports[0])}).",
            ),
            _compared(comparison, adapters, viewer),
        )
    for report, adapter, name, stem in zip(reports, adapters, names, stems, strict=True):
        yield (
            Illustration(
                f"{name}: best, median and worst pictures",
                f"{stem}-pictures.png",
                f"By {_measure(report)}. Each original stands above what comes "
                "back from its tokens or bytes.",
            ),
            _extremes_sheet(report, adapter, viewer),
        )
        if report.code_counts is not None:
            yield (
                Illustration(
                    f"{name}: use of codes",
                    f"{stem}-codes.png",
                    "With few patches, rare codes are not seen yet and entropies are too low.",
                ),
                plot_codes(report.code_counts, name),
            )


def _extremes_sheet(report: Report, adapter: Adapter, viewer: _Viewer) -> Image.Image:
    """Two rows a group: originals, and below them what comes back."""
    sheets = {}
    for group, places in extremes(ranking(report)).items():
        above, below = [], []
        for place in places:
            original = viewer.original(report.indices[place])
            caption = _caption(report, place, (ranked_by(report), "psnr_db", "ssim"))
            above.append((original, report.pictures["key"][place]))
            below.append((viewer.reconstruction(adapter, original), caption))
        sheets[f"{group}, by {_measure(report)}"] = contact_sheet([above, below])
    return with_headings(sheets)


def _compared(comparison: Comparison, adapters: Sequence[Adapter], viewer: _Viewer) -> Image.Image:
    """A row a picture: the original, then each model's."""
    first = comparison.reports[0]
    order = ranking(first)
    rows = []
    for rank in sorted({round(n) for n in np.linspace(0, len(order) - 1, COMPARED)}):
        place = order[rank]
        original = viewer.original(first.indices[place])
        key = first.pictures["key"][place]
        row = [(original, f"{rank + 1} of {len(order)}: {key}")]
        for label, report, adapter in zip(
            comparison.labels, comparison.reports, adapters, strict=True
        ):
            figures = _caption(report, place, (ranked_by(report), "psnr_db"))
            row.append((viewer.reconstruction(adapter, original), f"{label}: {figures}"))
        rows.append(row)
    return contact_sheet(rows)


def _caption(report: Report, place: int, names: Sequence[str]) -> str:
    """The picture's own figures."""
    values = {name: report.pictures[name][place] for name in names}
    return ", ".join(
        f"{value:.2f} dB" if name == "psnr_db" else f"{name.partition('_')[0].upper()} {value:.3f}"
        for name, value in values.items()
    )


def _measure(report: Report) -> str:
    """What the ranking is by, for people: PSNR, or LPIPS and its network."""
    name, _, network = ranked_by(report).partition("_")
    return "PSNR" if name == "psnr" else f"{name.upper()} ({network})"


def _file_stem(name: str) -> str:
    """A model's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "model"


def _save(path: Path, image: Image.Image) -> None:
    write_file(path, lambda temporary: image.save(temporary, "PNG"))


def _write(path: Path, text: str) -> None:
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
