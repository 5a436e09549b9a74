"""What a study will take, from a few steps of each kind measured here and now."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch

from semhitok.study.rows import Row, row_named
from semhitok.study.runner import Study
from semhitok.train.recipe import StageSection
from semhitok.train.run import load_teacher, tokenizer_config
from semhitok.train.world import World

MEASURED_STEPS = 2
PASSES = 4
"""Of the networks over a measured picture: ours both ways, the teacher's, the judge's."""


def pending(study: Study, pairs: Iterable[tuple[Row, int]]) -> list[tuple[Row, int]]:
    """Rows and seeds without a result, and what they start from and nobody has trained."""
    wanted: dict[tuple[str, int], tuple[Row, int]] = {}
    for row, seed in pairs:
        if study.result(row, seed) is None:
            for other in row.starts.values():
                if not study.is_trained(row_named(other), seed):
                    wanted[other, seed] = (row_named(other), seed)
            wanted[row.name, seed] = (row, seed)
    return list(wanted.values())


def estimate(study: Study, pairs: Iterable[tuple[Row, int]]) -> float:
    """Seconds that training and measuring these will take on this machine, roughly."""
    known: dict[tuple[str, str], float] = {}
    exam = 0.0
    total = 0.0
    for row, seed in pairs:
        for stage in row.trainers:
            section: StageSection | None = getattr(study.recipe(row, seed), stage)
            if section is None or section.steps == 0:
                continue
            # Rows of one group differ little in what a step costs.
            kind = (stage, row.group if stage != "semantic" else str(row.trainers[stage]))
            if kind not in known:
                known[kind] = _step_seconds(study, row, seed, stage)
            total += known[kind] * section.steps
        if row.group != "parts":
            exam = exam or _exam_seconds(study, row, seed)
            total += exam
    return total


def _step_seconds(study: Study, row: Row, seed: int, stage: str) -> float:
    recipe = study.recipe(row, seed)
    teacher, world = load_teacher(recipe), World.join()
    model = row.build(recipe)(tokenizer_config(recipe, teacher), teacher).to(world.device).eval()
    trainer = row.trainers[stage](model, teacher.to(world.device), recipe, world)
    phase = getattr(recipe, stage).phases[0]
    images = torch.rand(phase.batch_size, 3, phase.crop, phase.crop, device=world.device)
    trainer.step(images, 0)
    started = time.monotonic()
    for step in range(1, 1 + MEASURED_STEPS):
        float(trainer.step(images, step)["loss/total"])
    return (time.monotonic() - started) / MEASURED_STEPS


def _exam_seconds(study: Study, row: Row, seed: int) -> float:
    scale, recipe = study.scale, study.recipe(row, seed)
    teacher, world = load_teacher(recipe), World.join()
    model = row.build(recipe)(tokenizer_config(recipe, teacher), teacher).to(world.device).eval()
    images = torch.rand(16, 3, scale.resolution, scale.resolution, device=world.device)
    model.encode(images)
    started = time.monotonic()
    model.decode(model.encode(images))
    a_picture = (time.monotonic() - started) / len(images)
    return PASSES * a_picture * (scale.photos + sum(scale.probe))
