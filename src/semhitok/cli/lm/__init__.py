"""`semhitok lm`: the multimodal model's data, training and evaluation; one file a command."""

from __future__ import annotations

import typer

from semhitok.cli.lm.draw_set import draw_set
from semhitok.cli.lm.evaluate import evaluate
from semhitok.cli.lm.prepare import prepare
from semhitok.cli.lm.train import train

lm = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The multimodal model.")
for _command in (prepare, train, evaluate, draw_set):
    lm.command()(_command)


@lm.callback()
def _group() -> None:
    """The multimodal model: a language model that reads and writes the tokenizer's ids."""
