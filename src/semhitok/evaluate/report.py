"""Figures, and the protocol without which they mean nothing."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import PIL
import torch
from jaxtyping import Int64
from rich.table import Table
from rich.text import Text
from torch import Tensor

import semhitok
from semhitok.errors import DataError, FormatError
from semhitok.evaluate.metrics import summarize


def package_versions() -> dict[str, str]:
    """Versions of what decides a figure's last digits."""
    return {
        "semhitok": semhitok.__version__,
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Report:
    """What was measured, and how."""

    figures: dict[str, Any]
    """Numbers by name; groups are dicts. A dict with `mean`, `low` and `high` is one figure."""
    protocol: dict[str, Any]
    """Data, resize and crop, value range, model hash, dtype, device, versions."""
    pictures: dict[str, list[Any]] = field(default_factory=dict)
    """Columns: `key`, and each figure that every picture has, so that models can be paired."""
    indices: list[int] = field(default_factory=list, compare=False, repr=False)
    """Where those pictures are in their source. Like `code_counts` for those who draw the report;
    neither is in its JSON."""
    code_counts: Int64[Tensor, "K m"] | None = field(default=None, compare=False, repr=False)
    """Patches by semantic code (row) and pixel code (column)."""

    def to_record(self) -> dict[str, Any]:
        """What goes into JSON."""
        return {name: getattr(self, name) for name in ("figures", "protocol", "pictures")}

    def to_json(self) -> str:
        """The record as JSON; `from_json` gives the same report back."""
        return json.dumps(self.to_record(), indent=2, allow_nan=False)

    def add(self, name: str, figures: dict[str, Any]) -> None:
        """Take in a group of figures that brings its own `protocol`."""
        self.figures[name] = {key: value for key, value in figures.items() if key != "protocol"}
        self.protocol[name] = figures["protocol"]

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what `to_json` wrote.

        Raises:
            FormatError: the text is not such a report.
        """
        try:
            data = json.loads(text)
            return cls(dict(data["figures"]), dict(data["protocol"]), dict(data["pictures"]))
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"not a report: {error!r}; give JSON that Report wrote") from error

    def table(self) -> Table:
        """Figures, for a terminal."""
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, value in figure_rows(self.figures):
            table.add_row(Text(name), Text(value))
        return table


def paired_differences(report: Report, base: Report) -> dict[str, dict[str, float]]:
    """Mean of what each picture's figure is above the base's, with its bootstrap interval.

    Raises:
        DataError: the two did not measure the same pictures.
    """
    if report.pictures["key"] != base.pictures["key"]:
        raise DataError("the two reports are of different pictures; measure both on the same")
    shared = [n for n in report.pictures if n != "key" and n in base.pictures]
    return {
        name: summarize(torch.tensor(report.pictures[name]) - torch.tensor(base.pictures[name]))
        for name in shared
    }


class Comparison:
    """Reports of the same pictures by one model or several; the first is what others stand beside.

    Attributes:
        labels: the models' names, with a number where one was there before.
        minus_first: of the second report and each further one, its `paired_differences`.
    """

    def __init__(self, reports: Sequence[Report]) -> None:
        """Raises:
        DataError: the reports are of different pictures.
        """
        self.reports = reports
        self.labels = unique([report.protocol["model"]["name"] for report in reports])
        self.minus_first = [paired_differences(report, reports[0]) for report in reports[1:]]

    def to_records(self) -> list[dict[str, Any]]:
        """For JSON: each report, from the second on with `minus_first`."""
        records = [report.to_record() for report in self.reports]
        for record, differences in zip(records[1:], self.minus_first, strict=True):
            record["minus_first"] = differences
        return records

    def figures(self) -> dict[str, list[Any]]:
        """By name, each with its value in every report: a number, a summary, or None."""
        return {n: [_at(r.figures, n) for r in self.reports] for n in _compared(self.reports)}

    def protocol(self) -> list[tuple[str, str]]:
        """How all of them were measured, then what is each model's own."""
        rows = [r for r in figure_rows(self.reports[0].protocol) if not r[0].startswith("model.")]
        for label, report in zip(self.labels, self.reports, strict=True):
            own = {k: v for k, v in report.protocol["model"].items() if k != "name"}
            rows += figure_rows(own, f"{label}.")
        return rows

    def table(self) -> Table:
        """A row a figure, a column a model, and each model's difference from the first one."""
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("")
        for number, label in enumerate(self.labels):
            table.add_column(Text(label), justify="right")
            if number:
                table.add_column("minus first (95%)", style="dim")
        for name, (first, *others) in self.figures().items():
            cells = [_cell(first)]
            for value, differences in zip(others, self.minus_first, strict=True):
                cells += [_cell(value), difference_text(differences.get(name))]
            table.add_row(Text(name), *cells)
        return table

    def protocol_table(self) -> Table:
        """The protocol, for a terminal."""
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in self.protocol():
            table.add_row(Text(name, "dim"), Text(value, "dim"))
        return table


def unique(names: Sequence[str]) -> list[str]:
    """The names, with "-2" and so on where one was there before; case does not tell them apart."""
    found: list[str] = []
    for name in names:
        label, number = name, 1
        while label.casefold() in map(str.casefold, found):
            number += 1
            label = f"{name}-{number}"
        found.append(label)
    return found


def _compared(reports: Sequence[Report]) -> list[str]:
    """Figures of any report, in order, without the failures; those in a group last."""
    names: dict[str, None] = {}
    for report in reports:
        figures = {k: v for k, v in report.figures.items() if k not in ("pictures", "failed")}
        names |= dict.fromkeys(_leaves(figures))
    return sorted(names, key=lambda name: "." in name)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and not _is_summary(value):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _at(figures: dict[str, Any], path: str) -> Any:
    value: Any = figures
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _cell(value: Any) -> str:
    value = value["mean"] if isinstance(value, dict) else value
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return "" if value is None else f"{value:,}"


def interval_text(value: Any) -> str:
    """A figure's mean and 95% interval; one without an interval as it is."""
    if isinstance(value, dict):
        return f"{value['mean']:.4g} ({value['low']:.4g} to {value['high']:.4g})"
    return _cell(value)


def difference_text(value: dict[str, float] | None) -> str:
    """A difference with its sign, and its interval; nothing where there is none."""
    if value is None:
        return ""
    return f"{value['mean']:+.3g} ({value['low']:+.3g} to {value['high']:+.3g})"


def figure_rows(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names with dots and values as text, figures with error and interval."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and not _is_summary(value):
            yield from figure_rows(value, f"{name}.")
        else:
            yield name, _text(value)


def _is_summary(value: dict[str, Any]) -> bool:
    return {"mean", "standard_error", "low", "high"} <= value.keys()


def _text(value: Any) -> str:
    if isinstance(value, dict):
        mean, error, low, high = (value[k] for k in ("mean", "standard_error", "low", "high"))
        return f"{mean:.4g} ± {error:.2g}  (95%: {low:.4g} to {high:.4g})"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "; ".join(map(_text, value)) or "none"
    return str(value)
