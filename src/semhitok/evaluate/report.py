"""Figures, and the protocol without which they mean nothing."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import PIL
import torch
from rich.table import Table
from rich.text import Text

import semhitok
from semhitok.errors import FormatError


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

    def to_json(self) -> str:
        """Both parts as JSON of two keys; `from_json` gives the same report back."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what `to_json` wrote.

        Raises:
            FormatError: the text is not such a report.
        """
        try:
            data = json.loads(text)
            return cls(figures=dict(data["figures"]), protocol=dict(data["protocol"]))
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"not a report: {error!r}; give JSON that Report wrote") from error

    def table(self) -> Table:
        """Figures, an empty line, and the protocol below, for a terminal."""
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, value in _rows(self.figures):
            table.add_row(Text(name), Text(value))
        table.add_row("", "")
        for name, value in _rows(self.protocol):
            table.add_row(Text(name, "dim"), Text(value, "dim"))
        return table


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
