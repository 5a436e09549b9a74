"""The command line: one file a command, and what all of them promise (contract C8).

Results go to stdout, progress and messages to stderr. Exit codes: 0 all done; 2 wrong use or
unusable input; 3 finished, but some inputs failed and are named; 130 interrupted; 1 a defect of
ours, with its traceback. Nothing heavy is imported before a command runs, so that `--help` answers
at once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from semhitok import __version__
from semhitok.cli.ask import ask
from semhitok.cli.chat import chat
from semhitok.cli.console import message
from semhitok.cli.decode import decode
from semhitok.cli.demo import demo
from semhitok.cli.draw import draw
from semhitok.cli.encode import encode
from semhitok.cli.evaluate import evaluate
from semhitok.cli.info import info
from semhitok.cli.lm import lm
from semhitok.cli.study import study
from semhitok.cli.tokenize import tokenize
from semhitok.cli.train import train
from semhitok.errors import SemHiTokError

_Refusal = typer.BadParameter.__mro__[2]  # ClickException, which typer does not name in the open
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

app = typer.Typer(
    name="semhitok",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
for _command in (info, encode, decode, demo, evaluate, train, study, tokenize, ask, draw, chat):
    app.command()(_command)
app.add_typer(lm, name="lm")


def _show_version(wanted: bool) -> bool:
    if wanted:
        print(f"semhitok {__version__}")
        raise typer.Exit()
    return wanted


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Pictures to discrete tokens that carry meaning and appearance, and back."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read the results has gone; Python must not complain when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        message("interrupted")
        return 130


def _run(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        with command.make_context("semhitok", arguments) as context:
            command.invoke(context)
        return 0
    except typer.Exit as done:
        return done.exit_code
    except SemHiTokError as error:
        return _refuse(str(error))
    except _Refusal as error:
        return _refuse_usage(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        if not (isinstance(error, PermissionError) or error.errno in _DISK):
            raise
        return _refuse(f"{error.filename or 'the disk'}: {error.strerror}; choose another place")
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"):
            raise
        return _refuse("out of memory; use a smaller --batch-size or smaller pictures")


def _refuse(text: str) -> int:
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f" (rank {rank})"
    message(f"error{where}: " + " ".join(text.split()))
    return 2


def _refuse_usage(error: BaseException) -> int:
    """Wrong use as one line; no command at all gets the whole help."""
    text: str = error.format_message()  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError":
        message(text)
        return 2
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "semhitok"
    text = text.replace("Value error, ", "").rstrip(".")
    return _refuse(f"{text[:1].lower()}{text[1:]}; see {path} --help")
