"""The loop that all three stages run in."""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from semhitok.data.batches import Batch, DecodedPictures, TrainBatches
from semhitok.errors import TrainingError
from semhitok.extras import require
from semhitok.files import write_file
from semhitok.images import to_pil
from semhitok.train.checkpoint import prune_checkpoints, save_checkpoint
from semhitok.train.recipe import Phase, Recipe
from semhitok.train.stage import Losses, StageTrainer
from semhitok.train.world import World

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
SAMPLES = 8


class PhasedBatches:
    """The batches of a stage: some steps at one crop size, then some at another."""

    def __init__(
        self, pictures: DecodedPictures, phases: tuple[Phase, ...], recipe: Recipe, world: World,
        seed: int,
    ) -> None:  # fmt: skip
        self.phases = [
            TrainBatches(
                pictures,
                crop=phase.crop,
                smallest=max(phase.crop, recipe.data.scale[0]),
                batch_size=phase.batch_size,
                seed=seed + number,
                rank=world.rank,
                world_size=world.size,
                flip=recipe.data.flip,
                enlarge=phase.enlarge,
                threads=recipe.data.threads,
            )
            for number, phase in enumerate(phases)
        ]
        self.steps = [phase.steps for phase in phases]

    def iterate(self, start: int) -> Iterator[Batch]:
        """Batches from step `start` to the end."""
        for batches, steps in zip(self.phases, self.steps, strict=True):
            if start < steps:
                yield from batches.iterate(start, steps)
            start = max(0, start - steps)

    def first_pictures(self) -> Iterator[Tensor]:
        """Pictures of the first phase, without end; for what is fitted to data."""
        step = 0
        while True:
            yield self.phases[0].batch(step).images
            step += 1

    def batch_size(self, step: int) -> int:
        """Pictures of that step, over all ranks."""
        for batches, steps in zip(self.phases, self.steps, strict=True):
            if step < steps:
                return batches.batch_size
            step -= steps
        return self.phases[-1].batch_size


class RunLog:
    """`metrics.jsonl`, `tensorboard/`, `samples/` and the progress bar; the first rank's."""

    def __init__(self, folder: Path, stage: str, start: int, total: int, world: World) -> None:
        self.folder, self.stage, self.world = folder, stage, world
        self.images, self.since = 0, time.monotonic()
        if not world.is_first:
            return
        forget_metrics(folder / "metrics.jsonl", stage, start)
        tensorboard = require("torch.utils.tensorboard", extra="train")
        self.board = tensorboard.SummaryWriter(
            str(folder / "tensorboard" / stage), purge_step=start
        )
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[rate]:.0f} images/s"), TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.task: TaskID = self.progress.add_task(
            f"stage {stage}", total=total, completed=start, rate=0.0, figures=""
        )
        self.progress.start()

    def advance(self, images: int) -> None:
        """One step is done."""
        self.images += images
        if self.world.is_first:
            self.progress.update(self.task, advance=1)

    def write(self, step: int, total: int, values: dict[str, float]) -> None:
        """Log one step's figures, and the rate since the last."""
        rate = self.images / max(1e-9, time.monotonic() - self.since)
        self.images, self.since = 0, time.monotonic()
        if not self.world.is_first:
            return
        record: dict[str, float | int | str] = {"stage": self.stage, "step": step, **values}
        record["images_per_second"] = rate
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({k: _short(v) for k, v in record.items()}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        main = "loss/psnr" if "loss/psnr" in values else "loss/total"
        figures = f"{main.removeprefix('loss/')} {values[main]:.3f}"
        self.progress.update(self.task, rate=rate, figures=figures)
        log.info("%s %d/%d %s %.0f images/s", self.stage, step, total, figures, rate)

    def sample(self, step: int, originals: Tensor, painted: Tensor | None) -> None:
        """A row of originals above a row of reconstructions."""
        if not self.world.is_first or painted is None:
            return
        rows = torch.stack([originals.cpu(), painted.float().cpu()])
        sheet = rows.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).permute(2, 0, 1)
        path = self.folder / "samples" / f"{self.stage}-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        to_pil(sheet).save(path)

    def close(self) -> None:
        if self.world.is_first:
            self.progress.stop()
            self.board.close()


class Interruption:
    """Holds Ctrl-C back until the step that it comes in has ended; a second one is not held.

    In the middle of a step weights, averages and codebooks are not of one and the same step. Of
    several ranks each may be in another step, so that they stop at once, without a checkpoint.
    """

    def __init__(self, world: World) -> None:
        self.world, self.asked = world, False
        self._former: Any = None

    def __enter__(self) -> Interruption:
        if self.world.size == 1 and threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        log.info("interrupted: a checkpoint follows when this step has ended")


def run_stage(
    trainer: StageTrainer,
    batches: PhasedBatches,
    recipe: Recipe,
    folder: Path,
    start: int,
    world: World,
    snapshot: Callable[[int], tuple[str, dict[str, Any]]],
) -> None:
    """Train one stage from step `start` to its end.

    Args:
        snapshot: `snapshot(step)` gives the path and the whole state of a checkpoint.

    Raises:
        TrainingError: a loss is not finite; nothing of that step is kept.
        KeyboardInterrupt: with one rank after the step that it came in, and a checkpoint of it.
    """
    total = sum(batches.steps)
    run_log = RunLog(folder, trainer.name, start, total, world)
    samples = batches.phases[-1].batch(0).images[:SAMPLES].to(world.device)
    step = start
    try:
        with Interruption(world) as interruption:
            for batch in batches.iterate(start):
                values = trainer.step(batch.images.to(world.device), step)
                run_log.advance(batches.batch_size(step))
                step += 1
                # At every step: a checkpoint must never hold what is not finite.
                stop_unless_finite(values, trainer.name, step, batch.keys)

                if step % recipe.log_every == 0 or step == total:
                    run_log.write(step, total, world.mean(values))

                if step % recipe.sample_every == 0 or step == total:
                    run_log.sample(step, samples, trainer.samples(samples))

                if interruption.asked or (step % recipe.checkpoint_every == 0 and step < total):
                    write_checkpoint(folder, *snapshot(step), world)
                if interruption.asked:
                    raise KeyboardInterrupt
    finally:
        run_log.close()


def write_checkpoint(folder: Path, name: str, state: dict[str, Any], world: World) -> None:
    """Save, then remove older ones; the first rank writes for all."""
    if world.is_first:
        save_checkpoint(folder / "checkpoints" / name, state)
        prune_checkpoints(folder / "checkpoints", KEPT_CHECKPOINTS)
    world.barrier()


def stop_unless_finite(values: Losses, stage: str, step: int, keys: list[str]) -> None:
    """Refuse to go on from a loss or gradient that is not finite."""
    numbers = torch.stack([value.detach().float().reshape(()) for value in values.values()])
    bad = [name for name, x in zip(values, numbers.tolist(), strict=True) if not math.isfinite(x)]
    if bad:
        raise TrainingError(
            f"stage {stage}, step {step}: {', '.join(bad)} not finite, pictures {', '.join(keys)}; "
            "lower the learning rate, or set dtype=float32; the last checkpoint is whole"
        )


def forget_metrics(path: Path, stage: str, start: int) -> None:
    """Drop what a killed run had logged beyond the checkpoint from which it goes on."""
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    kept = "".join(line + "\n" for line in lines if not _beyond(line, stage, start))
    if kept != path.read_text():
        write_file(path, lambda temporary: temporary.write_text(kept))


def _beyond(line: str, stage: str, start: int) -> bool:
    try:
        record = json.loads(line)
    except ValueError:  # a line that the kill cut short
        return True
    return bool(record.get("stage") == stage and record["step"] > start)


def _short(value: float | int | str) -> float | int | str:
    return float(f"{value:.6g}") if isinstance(value, float) else value
