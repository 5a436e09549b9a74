"""Recipes: everything that decides the result of a training, as YAML that is checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pydantic
from pydantic import Field

from semhitok.yaml_recipes import Optimizer, Section, load


class TeacherSection(Section):
    """Which vision model gives the features."""

    source: str | None = None
    """Folder or Hub id; None takes the semantic encoder that the bundled `tiny` carries."""
    revision: str | None = None
    layers: tuple[int, ...] = (-1,)
    output_stride: int | None = None
    """For convolutional teachers: pixels per cell of the grid that they give."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    licence: str | None = None
    """Of its weights, where they become part of the model."""
    architecture: dict[str, Any] | None = None
    """Its configuration in `transformers`, so that the model can be planned without its weights."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Normalisation of a planned teacher; a loaded one tells its own."""


class DataSection(Section):
    """How training pictures are cut from photos."""

    scale: tuple[int, int]
    """Short side in pixels, drawn anew each time, before the random crop."""
    flip: bool = True
    threads: int = Field(default=1, ge=1)
    cache_gb: float = Field(default=6.0, ge=0)
    """Memory for decoded photos."""


class Phase(Section):
    """Some steps at one crop size."""

    steps: int = Field(ge=0)
    crop: int = Field(ge=1)
    """Side of the training pictures, in pixels."""
    batch_size: int = Field(ge=1)
    """Pictures a step, over all ranks and accumulated micro-batches."""
    enlarge: bool = False
    """Use pictures smaller than the crop, enlarged; else they are passed over."""


class StageSection(Section):
    """What every stage has."""

    start: str | None = None
    """A model, by folder or name, whose parts of this stage are taken instead of a start fitted to
    the data; with no steps they stay as they are."""
    phases: tuple[Phase, ...]
    optimizer: Optimizer
    ema: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the averaged weights, which are what is saved."""
    weights: dict[str, float]
    """Weight of each loss, by the name that it is logged with."""

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)


class SemanticStage(StageSection):
    """Stage 1: the semantic codebook and its decoder."""

    buffer_rows: int = Field(default=131_072, ge=1)
    """Latents that start the codebook (k-means)."""
    kmeans_iterations: int = Field(default=10, ge=0)
    codebook_decay: float = Field(default=0.99, ge=0, lt=1)
    restart_below: float = Field(default=0.02, ge=0)
    """A code chosen less often than this share of the mean restarts at a random latent."""
    restart_every: int = Field(default=20, ge=1)
    trunk_lr: float = Field(default=0.1, ge=0)
    """Rate of a finetuned trunk over the rate of all else; a student learns at the full rate."""


class Adversarial(Section):
    """Discriminator of stages 2 and 3."""

    kind: Literal["patch", "features"] = "patch"
    """PatchGAN on pixels, or heads on the frozen teacher's features."""
    width: int = 32
    depth: int = 3
    """Strided convolutions, for `patch`."""
    layers: tuple[int, ...] = ()
    """Hidden states of the teacher, for `features`."""
    start: int = Field(default=0, ge=0)
    """Step from which the decoder hears it; it learns from `start - warmup` on."""
    warmup: int = Field(default=200, ge=0)
    optimizer: Optimizer


class Perceptual(Section):
    """Feature loss of stages 2 and 3: of the teacher's hidden states, or LPIPS."""

    layers: tuple[int, ...] = ()
    """Hidden states of the teacher."""
    lpips: str | None = None
    """Folder with SqueezeNet's and LPIPS' weights; what they trained they must not grade."""

    @pydantic.model_validator(mode="after")
    def _one_of_both(self) -> Perceptual:
        if bool(self.layers) == (self.lpips is not None):
            raise ValueError("give either the teacher's layers or the folder of lpips")
        return self


class PixelStage(StageSection):
    """Stage 2: pixel encoder, sub-codebooks, decoder."""

    buffer_rows: int = Field(default=65_536, ge=1)
    kmeans_iterations: int = Field(default=10, ge=0)
    offsets_lr: float = Field(default=0.1, ge=0)
    """Rate of the parents' offsets over the rate of all else."""
    learning: Literal["gradient", "ema"] = "gradient"
    """Sub-codebooks learn by gradient, or as moving means of their latents."""
    codebook_decay: float = Field(default=0.99, ge=0, lt=1)
    restart_below: float = Field(default=0.02, ge=0)
    restart_every: int = Field(default=50, ge=1)
    perceptual: Perceptual | None = None
    adversarial: Adversarial | None = None


class EnhanceStage(StageSection):
    """Stage 3: the Enhance Decoder."""

    noise: float = Field(default=0.0, ge=0, le=1)
    """Share of pixel codes replaced by others of the same parent."""
    perceptual: Perceptual | None = None
    adversarial: Adversarial | None = None


class Recipe(Section):
    """A whole training."""

    name: str
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the networks under autocast; quantizers and losses are always float32."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches a step."""
    checkpoint_every: int = Field(default=250, ge=1)
    log_every: int = Field(default=25, ge=1)
    sample_every: int = Field(default=1000, ge=1)
    teacher: TeacherSection
    model: dict[str, Any]
    """`config.json` without what the teacher tells: see `semhitok.model.config`."""
    data: DataSection
    semantic: SemanticStage
    pixel: PixelStage
    enhance: EnhanceStage | None = None


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a tokenizer's recipe; see `yaml_recipes.load`."""
    return load(Recipe, name, overrides=overrides)
