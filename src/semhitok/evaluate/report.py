"""Figures, and the protocol without which they mean nothing."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import PIL
import torch
from rich.table import Table
from rich.text import Text

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

    def to_json(self) -> str:
        """All parts as JSON; `from_json` gives the same report back."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

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
            parts = {name: dict(data[name]) for name in ("figures", "protocol", "pictures")}
            return cls(**parts)
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"not a report: {error!r}; give JSON that Report wrote") from error

    def table(self) -> Table:
        """Figures, for a terminal."""
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, value in _rows(self.figures):
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


def comparison_table(reports: Sequence[Report]) -> Table:
    """A row a figure, a column a model, and each model's difference from the first one."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("")
    for number, report in enumerate(reports):
        table.add_column(Text(report.protocol["model"]["name"]), justify="right")
        if number:
            table.add_column("minus first (95%)", style="dim")
    differences = [paired_differences(report, reports[0]) for report in reports]
    for name in _compared(reports):
        cells = []
        for number, report in enumerate(reports):
            cells.append(_cell(_at(report.figures, name)))
            if number:
                cells.append(_difference(differences[number].get(name)))
        table.add_row(Text(name), *cells)
    return table


def protocol_table(reports: Sequence[Report]) -> Table:
    """How all of them were measured, then what is each model's own."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _rows(reports[0].protocol):
        if not name.startswith("model."):
            table.add_row(Text(name, "dim"), Text(value, "dim"))
    for report in reports:
        described = dict(report.protocol["model"])
        name = described.pop("name")
        for key, value in _rows(described):
            table.add_row(Text(f"{name}.{key}", "dim"), Text(value, "dim"))
    return table


def _compared(reports: Sequence[Report]) -> list[str]:
    """Figures of any report, in order: summaries, numbers, and those of rate and codes."""
    names: dict[str, None] = {}
    for report in reports:
        for name, value in report.figures.items():
            if isinstance(value, float) or (isinstance(value, dict) and _is_summary(value)):
                names[name] = None
        for group in ("rate", "codes", "semantics", "similarity"):
            names |= dict.fromkeys(_leaves(report.figures.get(group, {}), f"{group}."))
    return list(names)


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[str]:
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
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else f"{value:.4g}"


def _difference(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{value['mean']:+.3g} ({value['low']:+.3g} to {value['high']:+.3g})"


def _rows(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and not _is_summary(value):
            yield from _rows(value, f"{name}.")
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
