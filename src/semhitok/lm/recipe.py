"""Recipes of the multimodal model: all that decides the result, but for the folders of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pydantic
from pydantic import Field

from semhitok.lm.heads import HeadName
from semhitok.lm.inputs import InputName
from semhitok.yaml_recipes import Optimizer, Section, load

FAMILY = "lm"
"""The folder of the bundled ones."""


class LanguageSection(Section):
    """The language model that pictures are added to."""

    source: str
    """A folder, or a Hub id: config, text tokenizer, weights."""
    revision: str | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    """Random ones need only the config."""


class LoraSection(Section):
    """Low-rank updates of the language model's linear layers, merged into them in the end.

    Reference: Hu et al., LoRA, arXiv:2106.09685.
    """

    rank: int = Field(default=64, ge=1)
    alpha: float = Field(default=128.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    layers: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    """Last parts of the layers' names."""


class LanguageStage(Section):
    """Some steps on one mixture of data."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    trains: Literal["added", "lora", "all"]
    """What is added to the language model (adapter, markers, heads); that and low-rank updates of
    the language model; or everything. The tokenizer never."""
    data: dict[str, float] = Field(min_length=1)
    """Names to which `--data NAME=FOLDER` gives folders, and how often an epoch has each of their
    sequences."""
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    """Items a step, over all ranks and accumulated micro-batches."""
    micro_batch: int = Field(ge=1)
    """Items at once on each rank."""
    length: int = Field(ge=1)
    """Tokens of an item."""
    drop: float = Field(default=0.1, ge=0, le=1)
    """Share of the drawings that lose the text they are drawn from, for guidance."""
    image_loss: float = Field(default=1.0, ge=0)
    """Weight of an image id's loss beside a text id's."""
    lora: LoraSection | None = None
    optimizer: Optimizer

    @pydantic.model_validator(mode="after")
    def _lora_where_it_is_trained(self) -> LanguageStage:
        if (self.trains == "lora") != (self.lora is not None):
            raise ValueError("'lora' goes with trains: lora, and only with that")
        return self


class LanguageRecipe(Section):
    """A whole training, stage after stage."""

    name: str
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the products, under autocast; weights stay float32."""
    tokenizer: str = "tiny"
    """Bundled name, folder or Hub id; its hash is checked against the data's."""
    image_size: int | tuple[int, int] | None = None
    """Of pictures that it will be shown and will draw: pixels of a square's side, or height and
    width in patches; None for the tokenizer's own."""
    language: LanguageSection
    image_input: InputName = "dual"
    image_head: HeadName | None = None
    """None: flat up to 2^18 ids, factorised beyond."""
    head_width: int = Field(default=256, ge=1)
    gradient_checkpointing: bool = False
    checkpoint_every: int = Field(default=250, ge=1)
    log_every: int = Field(default=25, ge=1)
    stages: tuple[LanguageStage, ...] = Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _names_of_their_own(self) -> LanguageRecipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names) or "model" in names:
            raise ValueError("stages need names of their own, and none is 'model'")
        return self


def load_language_recipe(name: str, overrides: Sequence[str] = ()) -> LanguageRecipe:
    """Read a recipe of the multimodal model; see `yaml_recipes.load`."""
    return load(LanguageRecipe, name, FAMILY, overrides)
