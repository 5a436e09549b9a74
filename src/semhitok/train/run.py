"""A whole training: stage after stage, in a run folder that can go on (contract C9)."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from semhitok.data.batches import DecodedPictures
from semhitok.data.sources import ImageSource
from semhitok.errors import FormatError, RecipeError, TrainingError
from semhitok.files import check_writable, write_file
from semhitok.hub import bundled_teacher, load, save
from semhitok.model import SemHiTok, Teacher, TeacherConfig, TokenizerConfig
from semhitok.model.teacher import describe_teacher
from semhitok.train.checkpoint import load_checkpoint, newest_checkpoint, remove_temporaries
from semhitok.train.enhance import EnhanceTrainer
from semhitok.train.loop import PhasedBatches, run_stage, write_checkpoint
from semhitok.train.pixel import PixelTrainer
from semhitok.train.recipe import Recipe, StageSection, load_recipe
from semhitok.train.semantic import SemanticTrainer
from semhitok.train.stage import StageTrainer
from semhitok.train.world import World
from semhitok.yaml_recipes import parse

log = logging.getLogger(__name__)

Trainers = Mapping[str, Callable[[SemHiTok, Teacher, Recipe, World], StageTrainer]]
"""What trains each stage, in order; the names are those of the recipe's sections."""

TRAINERS: Trainers = {
    "semantic": SemanticTrainer,
    "pixel": PixelTrainer,
    "enhance": EnhanceTrainer,
}

Evaluation = Callable[[SemHiTok, dict[str, Tensor]], dict[str, Any]]
"""Figures of a model at the end of stage 1; the mapping holds `kmeans_codes`, the baseline's."""


class Run:
    """One run folder: `recipe.yaml`, `metrics.jsonl`, `checkpoints/`, ..., at the end `model/`."""

    def __init__(
        self,
        recipe: Recipe,
        source: ImageSource,
        folder: Path,
        *,
        evaluation: Evaluation | None = None,
        pictures: DecodedPictures | None = None,
        build: Callable[[TokenizerConfig, Teacher], SemHiTok] = SemHiTok,
        trainers: Trainers = TRAINERS,
    ) -> None:
        """Args:
        evaluation: called once, when stage 1 has ended; its figures go into `semantic.json`.
        pictures: those of `source` as the recipe scales them, where several runs share them.
        build: makes the model; a study's variant is a SemHiTok with other parts in it.
        trainers: of the stages that are run.

        Raises:
            RecipeError: the folder holds a run of another recipe or of other data.
            StorageError: the folder cannot be written, or the disk has too little space.
        """
        self.recipe, self.source, self.folder = recipe, source, folder
        self.evaluation, self.trainers = evaluation, trainers
        self.stages = [name for name in trainers if getattr(recipe, name) is not None]
        self.world = World.join()
        torch.manual_seed(recipe.seed)
        self.teacher = load_teacher(recipe)
        self.model = build(tokenizer_config(recipe, self.teacher), self.teacher)
        self.model.to(self.world.device).eval()
        self.teacher.to(self.world.device)
        self.semantic_hash: str | None = None
        if pictures is None:
            cache_bytes = int(recipe.data.cache_gb * 2**30)
            pictures = DecodedPictures(source, recipe.data.scale[1], cache_bytes)
        # Of all stages at once: what the last of them refuses is refused before the first step.
        self.batches = [
            PhasedBatches(
                pictures, self._section(name).phases, recipe, self.world, recipe.seed + 1000 * n
            )
            for n, name in enumerate(self.stages)
        ]
        self._claim_folder()

    def train(self) -> SemHiTok:
        """Run what is left of the stages; the model, also written to `model/`."""
        stage, start, trainer_state = self._resume()
        while stage < len(self.stages):
            self._run_stage(stage, start, trainer_state)
            stage, start, trainer_state = stage + 1, 0, None
        self.model.requires_grad_(False)
        if self.world.is_first:
            metrics = {"training": json.loads(self._semantic_report())}
            save(self.model, self.folder / "model", metrics=metrics)
        self.world.barrier()
        return self.model

    def _run_stage(self, number: int, start: int, state: dict[str, Any] | None) -> None:
        name, batches = self.stages[number], self.batches[number]
        self._check_semantics(name)
        # A critic starts alike, whether or not the stages before ran in this process.
        torch.manual_seed(self.recipe.seed + 1000 * number)
        given = self._section(name).start
        if state is None and given is not None:
            log.info("stage %s: starting from %s", name, given)
            take_stage(self.model, load(given), name)
        trainer = self.trainers[name](self.model, self.teacher, self.recipe, self.world)
        if state is None:
            if given is None:
                log.info("stage %s: fitting its start to data", name)
                first = (images.to(self.world.device) for images in batches.first_pictures())
                trainer.begin(first)
            write_checkpoint(self.folder, *self._snapshot(number, 0, trainer), self.world)
        else:
            trainer.load_state_dict(state)
        run_stage(
            trainer,
            batches,
            self.recipe,
            self.folder,
            start,
            self.world,
            lambda step: self._snapshot(number, step, trainer),
        )
        trainer.finish()
        if name == "semantic":
            self.semantic_hash = self.model.semantic_hash
        if isinstance(trainer, SemanticTrainer):
            self._report_semantics({"kmeans_codes": trainer.kmeans_codes})
        self._check_semantics(name)
        write_checkpoint(self.folder, *self._snapshot(number + 1, 0, None), self.world)

    def _section(self, name: str) -> StageSection:
        section: StageSection = getattr(self.recipe, name)
        return section

    # -- folder --------------------------------------------------------------------------------

    def _claim_folder(self) -> None:
        """Write down what is trained on what, or see that it is the same as before."""
        resolved = {
            "recipe": self.recipe.model_dump(mode="json"),
            "data": {"name": self.source.name, "fingerprint": self.source.fingerprint()},
        }
        path = self.folder / "recipe.yaml"
        if self.world.broadcast(path.is_file()):
            if self.world.is_first:
                remove_temporaries(self.folder)
            before = yaml.safe_load(path.read_text())
            # Read as a recipe, so that keys which a newer version added have their defaults.
            before["recipe"] = parse(Recipe, before["recipe"]).model_dump(mode="json")
            different = sorted(_differences(before, resolved))
            if different:
                raise RecipeError(
                    f"{self.folder} holds a run with another {', '.join(different[:3])}; "
                    "use the same recipe and data to go on with it, or another --out"
                )
            return
        if self.world.is_first:
            state = sum(t.numel() * t.element_size() for t in self.model.state_dict().values())
            # Weights, average and two moments a parameter; two checkpoints and one being written.
            check_writable(self.folder, 3 * 4 * state)
            (self.folder / "checkpoints").mkdir(exist_ok=True)
            text = yaml.safe_dump(resolved, sort_keys=False)
            write_file(path, lambda temporary: temporary.write_text(text))
        self.world.barrier()

    def _snapshot(
        self, stage: int, step: int, trainer: StageTrainer | None
    ) -> tuple[str, dict[str, Any]]:
        """Name and content of a checkpoint; no trainer: the stage has not begun."""
        state: dict[str, Any] = {
            "stage": stage,
            "step": step,
            "semantic_hash": self.semantic_hash,
            "model": self._model_state(),
        }
        # A stage that has begun sorts after one that has not.
        begun = int(trainer is not None)
        if trainer is not None:
            state["trainer"] = trainer.state_dict()
        return f"{stage}-{begun}-{step:08d}.safetensors", state

    def _model_state(self) -> dict[str, Tensor]:
        """The model's state, without a trunk that never changes."""
        frozen = self.model.config.semantic.trunk == "frozen"
        state = self.model.state_dict()
        return {n: t for n, t in state.items() if not (frozen and n.startswith("semantic.trunk."))}

    def _resume(self) -> tuple[int, int, dict[str, Any] | None]:
        """Stage, step and trainer's state to go on from."""
        path = newest_checkpoint(self.folder / "checkpoints")
        if path is None:
            return 0, 0, None
        state = load_checkpoint(path)
        log.info("going on from %s", path.name)
        own = self._model_state()
        if set(state["model"]) != set(own):
            raise FormatError(f"{path} holds another model; delete it or use another --out")
        self.model.load_state_dict(state["model"], strict=False)
        self.semantic_hash = state["semantic_hash"]
        return state["stage"], state["step"], state.get("trainer")

    # -- semantics -----------------------------------------------------------------------------

    def _check_semantics(self, stage: str) -> None:
        """Stages 2 and 3 find and leave the semantic branch as stage 1 wrote it (contract C3)."""
        if self.semantic_hash is not None and self.model.semantic_hash != self.semantic_hash:
            raise TrainingError(
                f"stage {stage}: the semantic branch is not the one that stage 1 wrote; it must "
                "stay frozen: start again in another --out"
            )

    def _report_semantics(self, extras: dict[str, Tensor]) -> None:
        if self.evaluation is None or not self.world.is_first:
            return
        figures = self.evaluation(self.model, extras)
        text = json.dumps(figures, indent=2) + "\n"
        write_file(self.folder / "semantic.json", lambda temporary: temporary.write_text(text))

    def _semantic_report(self) -> str:
        path = self.folder / "semantic.json"
        return path.read_text() if path.is_file() else "{}"


def take_stage(model: SemHiTok, given: SemHiTok, stage: str) -> None:
    """Copy what a stage trains from a model that has been through it.

    Raises:
        RecipeError: the two are not built alike there.
    """
    parts = {
        "semantic": lambda m: [m.semantic],
        "pixel": lambda m: [m.pixel.codebook, m.pixel.encoder, m.pixel.decoder],
        "enhance": lambda m: [m.pixel.enhance],
    }
    for ours, theirs in zip(parts[stage](model), parts[stage](given), strict=True):
        learned = {} if theirs is None else theirs.state_dict()
        shapes = {name: tensor.shape for name, tensor in learned.items()}
        needed = {name: tensor.shape for name, tensor in ours.state_dict().items()}
        if shapes != needed:
            odd = sorted(n for n in shapes | needed if shapes.get(n) != needed.get(n))
            raise RecipeError(
                f"{stage}.start: {given.config.name} is built otherwise ({len(odd)} tensors, first "
                f"{odd[0]}); start from a model with the same {stage} settings"
            )
        ours.load_state_dict(learned)


def load_teacher(recipe: Recipe) -> Teacher:
    """The teacher that a recipe names, or the bundled semantic encoder."""
    section = recipe.teacher
    if section.source is None:
        teacher = bundled_teacher()
        stride = section.output_stride or teacher.config.stride
        if (section.layers, stride) == (teacher.config.layers, teacher.config.stride):
            return teacher
        return teacher.reading(section.layers, output_stride=stride)
    return Teacher.from_pretrained(
        section.source,
        layers=section.layers,
        output_stride=section.output_stride,
        revision=section.revision,
        dtype=getattr(torch, section.dtype),
    )


def planned_config(name: str) -> TokenizerConfig:
    """The model that a recipe will train, without loading its teacher's weights.

    Args:
        name: a bundled recipe's name, or a file's path.

    Raises:
        RecipeError: the recipe does not tell its teacher's architecture.
    """
    recipe = load_recipe(name)
    section = recipe.teacher
    if section.architecture is None:
        raise RecipeError(
            f"recipe {name} does not tell teacher.architecture; ask for the model that it trained"
        )
    assert section.source is not None
    config = describe_teacher(
        section.source, section.architecture, section.layers, section.mean, section.std
    )
    return _with_teacher(recipe, config)


def tokenizer_config(recipe: Recipe, teacher: Teacher) -> TokenizerConfig:
    """The recipe's model with what its teacher tells.

    Raises:
        FormatError, RecipeError: it cannot be built.
    """
    planned = recipe.teacher.architecture
    if planned is not None and planned != teacher.config.architecture:
        raise RecipeError(
            f"teacher {recipe.teacher.source} has another architecture than the recipe tells: "
            f"{', '.join(sorted(_differences(planned, teacher.config.architecture)))}"
        )
    return _with_teacher(recipe, teacher.config)


def _with_teacher(recipe: Recipe, teacher: TeacherConfig) -> TokenizerConfig:
    data = dict(recipe.model)
    semantic = dict(data.get("semantic", {}))
    if semantic.get("bundled", True) and Path(teacher.source).is_dir():
        # The folder's place on this machine says nothing to the users of the model.
        teacher = dataclasses.replace(teacher, source=Path(teacher.source).name)
    if recipe.teacher.licence is not None:
        teacher = dataclasses.replace(teacher, licence=recipe.teacher.licence)
    semantic["teacher"] = dataclasses.asdict(teacher)
    semantic.setdefault("code_dim", teacher.dim)
    data["semantic"] = semantic
    config = TokenizerConfig.from_dict({"name": recipe.name, **data})
    if recipe.pixel.learning == "ema" and config.pixel.offset_rank is not None:
        raise RecipeError(
            f"pixel.learning is 'ema' and model.pixel.offset_rank {config.pixel.offset_rank}; "
            "moving means need an offset for each code: set the rank to null"
        )
    if (config.pixel.enhance is None) != (recipe.enhance is None):
        raise RecipeError(
            "recipe has one of model.pixel.enhance and enhance; stage 3 needs both, or neither"
        )
    return config


def _differences(before: Any, now: Any, path: str = "") -> set[str]:
    """Paths at which two nested mappings differ."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return set() if before == now else {path or "recipe"}
    found: set[str] = set()
    for key in before.keys() | now.keys():
        found |= _differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    return found
