"""`semhitok lm train`: all stages of a multimodal model's recipe, and on from where it stopped."""

from __future__ import annotations

import logging
import os
from typing import Annotated

import typer

from semhitok.cli.console import (
    JsonOption,
    RunOption,
    SetOption,
    log_to_stderr,
    message,
    print_json,
)


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name or .yaml file.", show_default=False)
    ],
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="NAME=FOLDER",
            help="What semhitok lm prepare wrote, under the name that the recipe has for it; may "
            "be repeated, also for one name.",
        ),
    ],
    out: RunOption,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Train a multimodal model, all stages.

    An interrupted run goes on where it was. Works under torchrun and accelerate launch too.
    """
    first = os.environ.get("RANK", "0") == "0"
    log_to_stderr(logging.INFO if first else logging.WARNING)
    from semhitok import hub
    from semhitok.errors import StorageError
    from semhitok.lm.language import hide_bars
    from semhitok.lm.processor import UnifiedProcessor
    from semhitok.lm.recipe import load_language_recipe
    from semhitok.lm.sequences import Sequences
    from semhitok.lm.training import LanguageRun

    hide_bars()
    folders = _folders(data)
    settings = load_language_recipe(recipe, set_ or ())
    if out.exists() and not out.is_dir():
        raise StorageError(f"{out} is a file; give a folder for the run")
    sequences = {name: Sequences(paths) for name, paths in folders.items()}
    words = next(iter(sequences.values())).identity["vocabulary"]
    processor = UnifiedProcessor.for_language(
        settings.language.source,
        hub.load(settings.tokenizer),
        max_side=words["max_side"],
        size=settings.image_size,
    )
    try:
        LanguageRun(settings, processor, sequences, out).train()
    except KeyboardInterrupt as error:
        if first:
            message("interrupted; the same command continues")
        raise typer.Exit(130) from error
    if not first:
        return
    if json_:
        print_json({"model": str(out / "model"), "name": settings.name})
    else:
        print(f"{out / 'model'}: {settings.name}")


def _folders(data: list[str]) -> dict[str, list[str]]:
    """Raises:
    RangeError: not NAME=FOLDER.
    """
    from semhitok.errors import RangeError

    found: dict[str, list[str]] = {}
    for item in data:
        name, equals, folder = item.partition("=")
        if not (name and equals and folder):
            raise RangeError(f"--data is {item!r}; needed: NAME=FOLDER, as the recipe has names")
        found.setdefault(name, []).append(folder)
    return found
