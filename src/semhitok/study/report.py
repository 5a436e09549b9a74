"""Results as tables, plots and the differences that a claim rests on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semhitok.errors import DataError
from semhitok.extras import require
from semhitok.files import write_file
from semhitok.study.rows import ROWS, Row, row_named
from semhitok.study.runner import SURVEY, Result, results_in
from semhitok.study.scales import find_scale
from semhitok.study.survey import from_json
from semhitok.study.survey import table as survey_table
from semhitok.yaml_recipes import merge

BASE = "staged"
"""Row that differences are taken to, seed by seed."""

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Student's t of a 95% interval, by the number of seeds."""


@dataclass(frozen=True)
class Column:
    """One figure of every row."""

    title: str
    path: str
    digits: int
    scale: float = 1.0

    def value(self, result: Result) -> float:
        """The figure; NaN where a row has none."""
        node: Any = result.figures
        for key in self.path.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        return math.nan if node is None else self.scale * float(node)


COLUMNS = (
    Column("bits", "bits_per_patch", 1),
    Column("PSNR, dB", "psnr_db", 2),
    Column("SSIM", "ssim", 3),
    Column("LPIPS", "lpips_squeeze", 3),
    Column("fd_judge", "fd_judge", 0),
    Column("probe of codes, %", "semantics.codes", 1, 100.0),
    Column("probe of told features, %", "semantics.told", 1, 100.0),
    Column("cosine to teacher", "semantics.cosine", 3),
    Column("entropy, bits", "joint_entropy", 2),
)
PSNR, PROBE = COLUMNS[1], COLUMNS[5]
COMPARED = (COLUMNS[1], COLUMNS[3], COLUMNS[4], COLUMNS[5], COLUMNS[7])


def by_row(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results of each row, in the rows' order."""
    found: dict[str, list[Result]] = {}
    for row in ROWS:
        of_row = sorted((r for r in results if r.row == row.name), key=lambda r: r.seed)
        if of_row:
            found[row.name] = of_row
    return found


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and the deviation over seeds; 0 of a single one."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def difference(
    column: Column, results: Sequence[Result], base: Sequence[Result]
) -> tuple[float, float] | None:
    """Mean of a row's figure less the base's at the same seed, and half its 95% interval.

    The interval is Student's over seeds; None with fewer than two seeds in common.
    """
    others = {result.seed: column.value(result) for result in base}
    pairs = [column.value(r) - others[r.seed] for r in results if r.seed in others]
    if len(pairs) < 2:
        return None
    mean, deviation = spread(pairs)
    return mean, T_95[min(len(pairs), max(T_95))] * deviation / math.sqrt(len(pairs))


# --------------------------------------------------------------------------------------- tables


def table(rows: Sequence[Row], results: dict[str, list[Result]]) -> str:
    """Figures of the rows, mean ± deviation over seeds, as Markdown."""
    lines = [
        "| row | seeds | " + " | ".join(column.title for column in COLUMNS) + " |",
        "|---|---" + "|---:" * len(COLUMNS) + "|",
    ]
    for row in rows:
        if row.name in results:
            cells = [_cell(column, results[row.name]) for column in COLUMNS]
            lines.append(f"| {row.title} | {len(results[row.name])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(rows: Sequence[Row], results: dict[str, list[Result]]) -> str:
    """What each row is above `staged`, with its 95% interval, as Markdown."""
    lines = [
        "| row less row 4 | " + " | ".join(column.title for column in COMPARED) + " |",
        "|---" + "|---:" * len(COMPARED) + "|",
    ]
    for row in rows:
        if row.name == BASE or row.name not in results:
            continue
        found = [difference(c, results[row.name], results[BASE]) for c in COMPARED]
        if not any(found):
            continue
        cells = [_signed(c, d) for c, d in zip(COMPARED, found, strict=True)]
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(column: Column, results: Sequence[Result]) -> str:
    mean, deviation = spread([column.value(result) for result in results])
    if math.isnan(mean):
        return ""
    text = f"{mean:,.{column.digits}f}"
    return text if len(results) == 1 else f"{text} ± {deviation:.{column.digits}f}"


def _signed(column: Column, found: tuple[float, float] | None) -> str:
    if found is None or math.isnan(found[0]):
        return ""
    return f"{found[0]:+,.{column.digits}f} ± {found[1]:,.{column.digits}f}"


# ---------------------------------------------------------------------------------------- pages


def page(results: Sequence[Result], surveyed: dict[str, Any] | None = None) -> str:
    """All tables of a study, with their protocol; the findings are for a person to write.

    Args:
        surveyed: what `survey.to_json` gave.

    Raises:
        DataError: no results.
    """
    found = by_row(results)
    if not found:
        raise DataError("no results here; run some rows first: semhitok study --data ...")
    parts = [f"## Headline rows\n\n{table(_of('headline'), found)}"]
    if BASE in found:
        parts.append(differences(_of("headline"), found))
    for group in dict.fromkeys(row.group for row in ROWS):
        rows = [row for row in _of(group) if row.name in found]
        if group in ("headline", "parts") or not rows:
            continue
        reference = row_named("enhanced" if group in ("critic", "noise") else BASE)
        parts.append(f"## {GROUPS[group]}\n\n{table([reference, *rows], found)}")
    if surveyed is not None:
        parts.append(f"## Pixels of one semantic code\n\n{survey_table(from_json(surveyed))}")
    parts.append(f"## Protocol\n\n{_protocol(results)}")
    return "\n\n".join(parts) + "\n"


GROUPS = {
    "codes": "K and m",
    "fusion": "Fusion",
    "learning": "How sub-codebooks learn",
    "critic": "Critic of the Enhance Decoder",
    "noise": "Noise on the ids",
    "trunk": "What sees the picture",
    "depth": "Depth of the teacher",
}


def _of(group: str) -> list[Row]:
    return [row for row in ROWS if row.group == group]


def _protocol(results: Sequence[Result]) -> str:
    first = results[0].protocol
    exam = first["exam"]
    hours = sum(sum(r.seconds.values()) for r in results) / 3600
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    lines = [
        f"Scale `{first['scale']}`; {len(results)} results, {hours:.1f} h of {first['device']}.",
        f"Trained on {first['data']['name']} (fingerprint {first['data']['fingerprint'][:16]}).",
        *(
            f"{name}: {data['name']} (fingerprint {data['fingerprint'][:16]})."
            for name, data in exam.items()
        ),
        f"Versions: {versions}.",
        "Figures: mean ± deviation over seeds; differences: mean over seeds of the same seed's two "
        "rows, ± half of Student's 95% interval.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def write_report(folder: Path) -> Path:
    """`tables.md` and plots from the results in a folder; the path of the tables.

    Raises:
        DataError: there are no results.
    """
    found = results_in(folder)
    survey = folder / SURVEY
    surveyed = json.loads(survey.read_text()) if survey.is_file() else None
    path, text = folder / "tables.md", page(found, surveyed)
    write_file(path, lambda temporary: temporary.write_text(text))
    plots = {"headline.png": plot_headline}
    if any(row_named(result.row).group == "codes" for result in found):
        plots["codes.png"] = plot_codes
    for name, plot in plots.items():
        write_file(folder / name, lambda temporary, plot=plot: plot(found, temporary))
    return path


# ---------------------------------------------------------------------------------------- plots


def plot_headline(results: Sequence[Result], path: Path) -> None:
    """Fidelity against meaning: a point a seed, a mark a row."""
    found = by_row(results)
    axes, save = _axes("PSNR, dB", "linear probe of the code vectors, %")
    for number, row in enumerate(r for r in _of("headline") if r.name in found):
        xs = [PSNR.value(result) for result in found[row.name]]
        ys = [PROBE.value(result) for result in found[row.name]]
        # Filled and hollow in turn: rows that fall on one another can still be told apart.
        mark, fill = "os^Dv<>ph*X"[number % 11], ("full", "none")[number % 2]
        axes.plot(xs, ys, mark, fillstyle=fill, markersize=9, alpha=0.8, label=row.title)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    save(path)


def plot_codes(results: Sequence[Result], path: Path) -> None:
    """(K, m): at constant K * m, and at growing m."""
    found = by_row(results)
    axes, save = _axes("pixel codes of a semantic code, m", "PSNR, dB")
    right = axes.twinx()
    right.set_ylabel("linear probe of the code vectors, %")
    for prefix, label, colour in (("k-", "K * m constant", "C0"), ("m-", "K constant", "C1")):
        rows = [n for n in found if n.startswith(prefix) or n == BASE]
        points = sorted((_pixel_codes(found[n][0]), found[n]) for n in rows)
        xs = [m for m, _ in points]
        psnr = [spread([PSNR.value(r) for r in rs])[0] for _, rs in points]
        probe = [spread([PROBE.value(r) for r in rs])[0] for _, rs in points]
        axes.plot(xs, psnr, "o-", color=colour, label=f"PSNR, {label}")
        right.plot(xs, probe, "s--", color=colour, alpha=0.6, label=f"probe, {label}")
    axes.set_xscale("log", base=2)
    axes.figure.legend(fontsize=7, loc="upper center", ncols=4, frameon=False)
    save(path)


def _pixel_codes(result: Result) -> int:
    scale = find_scale(result.protocol["scale"])
    recipe = merge(scale.overlay(), row_named(result.row).overlay(scale))
    return int(recipe["model"]["pixel"]["num_codes"])


def _axes(x: str, y: str) -> tuple[Any, Callable[[Path], None]]:
    """Axes with their labels, and what writes them to a file."""
    figure_module = require("matplotlib.figure", extra="evaluate")
    figure = figure_module.Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return axes, lambda path: figure.savefig(path, dpi=150, format="png")
