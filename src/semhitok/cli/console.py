"""What all commands share: where text goes, tables, progress, and checks before work begins."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import typer

from semhitok.errors import RangeError, StorageError

if TYPE_CHECKING:
    from rich.table import Table

LINE_EVERY_S = 60.0
"""How often progress goes into a log that is no terminal."""

SOME_FAILED = 3
"""Exit code of a command that finished, though some inputs failed."""

PLAIN_WIDTH = 1000
"""Columns of a table that goes into a file or a pipe: nothing is wrapped there."""

ModelOption = Annotated[
    str, typer.Option("--model", help="Bundled name, model folder, or Hub id owner/name.")
]
SizeOption = Annotated[
    str | None,
    typer.Option("--size", help="Short side in pixels, or 'native'; by default the model's own."),
]
CropOption = Annotated[
    Literal["square", "grid"],
    typer.Option("--crop", help="Cut to a square, or only to whole patches."),
]
DataOption = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="Folder, .parquet, .tar or .jsonl (path or URL), or Hub data set; may be repeated.",
    ),
]
ProbeOption = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--probe", metavar="TRAIN VAL", help="Labelled data on which the semantics are measured."
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:N or mps; by default the best.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override path.to.key of the recipe."),
]
RunOption = Annotated[
    Path, typer.Option("--out", help="The run folder; an interrupted run goes on.")
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Pictures at once.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of chance.")]
MultimodalArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder of a multimodal model, as semhitok lm train writes it, or Hub id owner/name.",
        show_default=False,
    ),
]
ImageTokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="Image tokenizer: bundled name, folder or Hub id; by default the model's own.",
    ),
]
PatchesOption = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="HxW",
        help="Height and width of pictures in patches; by default that of training.",
    ),
]
GuidanceOption = Annotated[
    float, typer.Option("--guidance", min=0, help="Classifier-free guidance; 1 is none.")
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", min=0, help="Of image codes; 0 takes the likeliest.")
]
TopKOption = Annotated[
    int | None, typer.Option("--top-k", min=1, help="Only the k likeliest codes of each level.")
]
TopPOption = Annotated[
    float,
    typer.Option(
        "--top-p", help="Only the likeliest codes that together have this share, at each level."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def message(text: str) -> None:
    """A line for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def log_to_stderr(level: int) -> None:
    """Log lines of this package; short times at a terminal, dates in a file."""
    times = "%H:%M:%S" if sys.stderr.isatty() else "%Y-%m-%d %H:%M:%S"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", times))
    logger = logging.getLogger("semhitok")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False


def print_json(record: Any) -> None:
    """A result as JSON."""
    print(json.dumps(record, indent=2))


def print_table(table: Table) -> None:
    """A table as wide as the terminal; in a file or a pipe as plain text, unwrapped."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(table)
        return
    text = io.StringIO()
    Console(file=text, width=PLAIN_WIDTH, color_system=None).print(table)
    print("\n".join(line.rstrip() for line in text.getvalue().rstrip("\n").split("\n")))


def make_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Text in the first column, numbers in the others."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def make_pairs(pairs: Mapping[str, str]) -> Table:
    """Names and values, a line each."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(Text(name), Text(value))
    return table


class Advance(Protocol):
    """Takes how many are done, the failed ones among them."""

    def __call__(self, done: int, failed: int = 0) -> None: ...


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Done, rate, failures, time left: a bar where stderr is a terminal, else a line a minute."""
    if not sys.stderr.isatty():
        yield _Lines(what, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    note = TextColumn("{task.fields[note]}")
    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), note, Remaining())
    started = time.monotonic()
    with Progress(*shown, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, note="")

        def advance(done: int, failed: int = 0) -> None:
            note = _rate(done, failed, time.monotonic() - started)
            bar.update(task, completed=done, note=note)

        yield advance


class _Lines:
    """Progress for a log file."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.started = self.told = time.monotonic()

    def __call__(self, done: int, failed: int = 0) -> None:
        now = time.monotonic()
        if now - self.told < LINE_EVERY_S or not done:
            return
        self.told = now
        left = (now - self.started) / done * (self.total - done)
        message(
            f"{self.what}: {done:,} of {self.total:,} ({done / max(self.total, 1):.1%}), "
            f"{_rate(done, failed, now - self.started)}, {duration(left)} left"
        )


def _rate(done: int, failed: int, seconds: float) -> str:
    rate = f"{done / max(seconds, 1e-9):,.1f}/s"
    return f"{rate}, {failed:,} failed" if failed else rate


def duration(seconds: float) -> str:
    """As one reads it: 45 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def name_failures(failed: Mapping[str, str], total: int) -> None:
    """Each failed input on a line of stderr, and the exit code that says so.

    Raises:
        typer.Exit: with SOME_FAILED, where any failed.
    """
    for key, why in failed.items():
        message(f"failed: {key}: {why}")
    if failed:
        message(f"{len(failed)} of {total} pictures failed")
        raise typer.Exit(SOME_FAILED)


def why(key: str, error: Exception) -> str:
    """The error as one line, without the picture's name where it begins with it."""
    return " ".join(str(error).split()).removeprefix(f"{key}: ")


def parse_side(text: str | None, option: str, default: int | None) -> int | None:
    """A side in pixels; None for "native".

    Raises:
        RangeError: neither a number nor "native".
    """
    if text is None:
        return default
    if text == "native":
        return None
    if not text.isdecimal():
        raise RangeError(f"{option} is {text!r}; allowed: pixels of the short side, or 'native'")
    return int(text)


def parse_patches(
    text: str | None, allowed: str = "height x width in patches, such as 8x12"
) -> tuple[int, int] | None:
    """Height and width in patches, of "HxW".

    Args:
        allowed: what a refusal says.

    Raises:
        RangeError: it is something else.
    """
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise RangeError(f"--size is {text!r}; allowed: {allowed}")
    return int(sides[0]), int(sides[1])


def check_output_file(path: Path) -> None:
    """Say before the work that a file cannot be written after it.

    Raises:
        StorageError: it is a folder, or its folder is missing or cannot be written.
    """
    if path.is_dir():
        raise StorageError(f"{path} is a folder; give the name of a file in it")
    folder = path.parent
    if not folder.is_dir():
        raise StorageError(f"{folder} is no folder; make it, or choose another --out")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"{folder} cannot be written; choose another --out")
    if path.exists() and not path.is_file():
        raise StorageError(f"{path} is not a regular file; choose another --out")


def check_output_folder(path: Path) -> None:
    """Say before the work that a folder cannot be made or filled after it; nothing is made.

    Raises:
        StorageError: it or a folder above it is a file, or cannot be written.
    """
    there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise StorageError(f"{there} is a file; give a folder as --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(f"{there} cannot be written; choose another --out")
