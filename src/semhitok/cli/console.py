"""What all commands share: where text goes, tables, progress, and checks before work begins."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from semhitok.errors import RangeError, StorageError

if TYPE_CHECKING:
    from rich.table import Table

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
    typer.Option("--data", help="Folder, .parquet, .tar or Hub data set; may be repeated."),
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
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Pictures at once.")]
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


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal; the function takes how many are done."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


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
