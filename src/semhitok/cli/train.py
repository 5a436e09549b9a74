"""`semhitok train`: all stages of a recipe, and on from where an earlier call stopped."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semhitok.cli.console import (
    DataOption,
    JsonOption,
    ProbeOption,
    RunOption,
    SetOption,
    log_to_stderr,
    message,
    print_json,
)

if TYPE_CHECKING:
    from semhitok.train.run import Evaluation


def train(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="Name or .yaml file.", show_default=False),
    ],
    data: DataOption,
    out: RunOption,
    set_: SetOption = None,
    probe: ProbeOption = None,
    json_: JsonOption = False,
) -> None:
    """Train a tokenizer, all stages.

    An interrupted run goes on where it was. Works under torchrun too.
    """
    first = os.environ.get("RANK", "0") == "0"
    log_to_stderr(logging.INFO if first else logging.WARNING)
    from semhitok.data.sources import open_source
    from semhitok.errors import StorageError
    from semhitok.train.recipe import load_recipe
    from semhitok.train.run import Run

    settings = load_recipe(recipe, set_ or ())
    if out.exists() and not out.is_dir():
        raise StorageError(f"{out} is a file; give a folder for the run")
    source = open_source(list(data))
    evaluation = None if probe is None else _evaluation(*probe)
    try:
        run = Run(settings, source, out, evaluation=evaluation)
        model = run.train()
        run.world.leave()
    except KeyboardInterrupt as error:
        if first:
            message("interrupted; the same command continues")
        raise typer.Exit(130) from error
    if not first:
        return
    record: dict[str, Any] = {"model": str(out / "model"), "name": model.config.name}
    record["hash"] = model.hash
    if json_:
        print_json(record)
    else:
        print(f"{record['model']}: {record['name']}, hash {record['hash']}")


def _evaluation(train_data: str, val_data: str) -> Evaluation:
    """What `Run` calls at the end of stage 1; the data are opened, and refused, now."""
    from semhitok.data.sources import open_source
    from semhitok.evaluate.semantics import check_labels, probe_semantics

    train_source, val_source = open_source(train_data), open_source(val_data)
    check_labels(train_source)
    check_labels(val_source)

    def evaluation(model: Any, extras: dict[str, Any]) -> dict[str, Any]:
        size = model.config.image_size
        return probe_semantics(model, train_source, val_source, size, pixel=False, **extras)

    return evaluation
