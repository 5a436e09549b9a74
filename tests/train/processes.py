"""What the tests of killed and of several processes run in those processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

# Imports of the package and of torch stand inside the functions: pytest imports this file too.


def fork_context() -> ForkServerContext:
    """Starts processes that find everything imported, and no thread of ours."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "semhitok.train.run",
            "torch.utils.tensorboard",
            "transformers.models.mobilenet_v2.modeling_mobilenet_v2",
        ]
    )
    return context


def train(folder: Path, photos: Path, overrides: tuple[str, ...], pause_s: float) -> None:
    """A run as `semhitok train` makes it; each step takes a while, and can so be hit."""
    from semhitok.data.sources import FolderSource
    from semhitok.train.recipe import load_recipe
    from semhitok.train.run import Run
    from semhitok.train.updater import Updater

    update: Any = Updater.update

    def slow(self: Updater, step: int) -> Any:
        time.sleep(pause_s / 2)
        norm = update(self, step)
        time.sleep(pause_s / 2)
        return norm

    Updater.update = slow  # type: ignore[method-assign]
    Run(load_recipe("tiny", overrides), FolderSource(photos), folder).train()


def train_rank(
    rank: int, port: int, out: Path, photos: Path, overrides: tuple[str, ...], steps: int
) -> None:
    """`stages` as one of two ranks, and a whole run of both."""
    import torch

    from semhitok.data.sources import FolderSource
    from semhitok.train.recipe import load_recipe
    from semhitok.train.run import Run
    from semhitok.train.world import World

    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    world = World.join()
    torch.save(stages(overrides, steps, world), out / f"stages-{rank}.pt")
    assert world.broadcast(rank) == 0
    rows = torch.tensor([[10 * rank], [10 * rank + 1]])
    assert world.gather_rows(rows).tolist() == [[0], [10], [1], [11]]
    assert world.mean({"x": torch.tensor(float(rank))}) == {"x": 0.5}
    model = Run(load_recipe("tiny", overrides), FolderSource(photos), out / "run").train()
    torch.save(model.state_dict(), out / f"run-{rank}.pt")
    world.leave()


def stages(overrides: tuple[str, ...], steps: int, world: Any) -> dict[str, dict[str, Any]]:
    """Each stage alone, from its beginning: what it starts from, what it logs, what it ends in."""
    import torch

    from semhitok.model import SemHiTok
    from semhitok.train.recipe import load_recipe
    from semhitok.train.run import TRAINERS, load_teacher, tokenizer_config

    recipe = load_recipe("tiny", overrides)
    found: dict[str, dict[str, Any]] = {}
    torch.manual_seed(0)
    teacher = load_teacher(recipe)
    model = SemHiTok(tokenizer_config(recipe, teacher), teacher).eval()
    for name, trainer_class in TRAINERS.items():
        torch.manual_seed(0)
        trainer = trainer_class(model, teacher, recipe, world)
        batches = pictures(world)
        trainer.begin(batches)
        begun = copies(model.state_dict())
        logged = [world.mean(trainer.step(next(batches), step)) for step in range(steps)]
        found[name] = {
            "begun": begun,
            "logged": logged,
            "ended": copies(model.state_dict()),
            "trainer": flat(trainer.state_dict()),
        }
    return found


def pictures(world: Any) -> Any:
    """Endless batches of four smooth pictures, this rank's rows of them."""
    import torch

    generator = torch.Generator().manual_seed(1)
    while True:
        coarse = torch.rand(4, 3, 5, 5, generator=generator)
        images = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)
        yield images[world.rank :: world.size].contiguous()


def copies(state: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """Tensors of a nested state by their path."""
    import torch

    if isinstance(state, torch.Tensor):
        return {prefix: state.detach().clone()}
    if not isinstance(state, dict):
        return {}
    found: dict[str, Any] = {}
    for key, value in state.items():
        found |= flat(value, f"{prefix}/{key}")
    return found
