"""A comparison as Markdown, for GitHub and the like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from semhitok.evaluate.report import Comparison, difference_text, interval_text


@dataclass(frozen=True)
class Illustration:
    """A picture beside the report."""

    title: str
    file: str
    """Its name, in the report's own folder."""
    caption: str


def to_markdown(comparison: Comparison, illustrations: Sequence[Illustration]) -> str:
    """Figures with intervals, differences from the first model, pictures, failures, protocol."""
    reports, names = comparison.reports, comparison.labels
    data, metrics = (reports[0].protocol[key] for key in ("data", "metrics"))
    parts = [
        f"# Report: {', '.join(map(escape, names))}",
        f"{reports[0].figures['pictures']:,} pictures of {escape(data['name'])} (selected of its "
        f"{data['pictures']:,}: {escape(data['selection'])}; fingerprint "
        f"`{data['fingerprint']}`). The [protocol](#protocol) says how they were measured; "
        "[report.json](report.json) has everything, with the figures of each picture.",
        "## Figures",
        f"Means over pictures; in brackets the interval ({escape(metrics['interval'])}). "
        "Entropies and shares of codes are too low where there are few patches.",
        _figures(comparison),
    ]
    if len(reports) > 1:
        parts += [
            f"## Differences from {escape(names[0])}",
            "Picture by picture, so that the interval is that of the difference: where it leaves "
            "zero out, these pictures tell the two apart.",
            _differences(comparison),
        ]
    for each in illustrations:
        link = f"![{escape(each.title)}]({quote(each.file)})"
        parts += [f"## {escape(each.title)}", escape(each.caption), link]
    failed = {key: reason for r in reports for key, reason in r.figures["failed"].items()}
    if failed:
        rows = [(escape(key), escape(reason)) for key, reason in failed.items()]
        parts += ["## Failed pictures", table(("picture", "reason"), rows, numbers=False)]
    protocol = [(code(name), escape(value)) for name, value in comparison.protocol()]
    parts += ["## Protocol", table(("", ""), protocol, numbers=False)]
    return "\n\n".join(parts) + "\n"


def _figures(comparison: Comparison) -> str:
    rows = [
        (code(name), *map(interval_text, values)) for name, values in comparison.figures().items()
    ]
    return table(("", *map(escape, comparison.labels)), rows)


def _differences(comparison: Comparison) -> str:
    columns = comparison.minus_first
    shared = dict.fromkeys(name for column in columns for name in column)
    rows = [(code(n), *(difference_text(column.get(n)) for column in columns)) for n in shared]
    return table(("", *map(escape, comparison.labels[1:])), rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """Cells are Markdown already; numbers stand to the right."""
    rule = ["---", *["---:" if numbers else "---"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def code(name: str) -> str:
    """A name as code, where nothing in it needs escaping."""
    return f"`{name}`" if re.fullmatch(r"[\w.-]+", name) else escape(name)


def escape(text: str) -> str:
    """The text on one line, without what Markdown or HTML would take for its own."""
    return re.sub(r"([\\`*_\[\]<>|#~&$])", r"\\\1", " ".join(text.split()))
