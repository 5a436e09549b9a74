"""A frozen vision model read as a grid of features: (b, 3, H, W) to (b, h, w, D).

Models of `transformers` (`trunk.py`), found in a folder or on the Hub (`trunk_source.py`). The
library is imported when a trunk is built, never before.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semhitok.errors import FormatError, RangeError, ShapeError
from semhitok.model.config import TeacherConfig
from semhitok.model.precision import products_in
from semhitok.model.trunk import build_trunk, load_trunk, plan_reading
from semhitok.model.trunk_source import (
    read_model_config,
    read_normalisation,
    vision_architecture,
    with_output_stride,
)


class Teacher(nn.Module):
    """A frozen vision model as a function of images and a grid.

    `layers` are indices into the `hidden_states` that `transformers` gives for the model. -1 is the
    last one after the model's final norm, where the model applies one to its patches (all but CLIP,
    ConvNeXt and MobileNetV2); every other index, the last counted from the front included, is the
    raw state. MobileNetV2's -1 is its last block, 320 wide. What no asked layer needs is not kept.
    """

    def __init__(self, config: TeacherConfig, trunk: nn.Module) -> None:
        """Wrap a trunk that `from_config` or `from_pretrained` built for `config`."""
        super().__init__()
        self.config = config
        self.trunk = trunk
        self._plan = plan_reading(config.architecture, config.layers)
        if config.dim != sum(self._plan.widths):
            raise FormatError(
                f"teacher.dim is {config.dim}; layers {list(config.layers)} are "
                f"{sum(self._plan.widths)} wide: correct the config"
            )
        self.dim = config.dim
        self.precision = torch.float32
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        layers: Sequence[int] = (-1,),
        output_stride: int | None = None,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Teacher:
        """Load a folder or a model of the Hub; of a model with a text tower, the vision tower.

        Args:
            layers: hidden states to read; several are joined along channels.
            output_stride: 8, 16 or 32 pixels per cell, by dilation; MobileNetV2 only.
            revision: branch, tag or commit of a Hub model. The commit is written to `config`.
            dtype: of the network's parameters; images and features are float32 all the same.

        Raises:
            NotFoundError: there is no such folder or model.
            FormatError: its family is not supported, or weights that the layers need are missing.
            RangeError: the model has no such layer or output stride.
        """
        raw, revision = read_model_config(source, revision)
        architecture = vision_architecture(raw, str(source))
        if output_stride is not None:
            architecture = with_output_stride(architecture, output_stride)
        family = plan_reading(architecture, layers).family
        mean, std = read_normalisation(source, revision, family)
        config = describe_teacher(str(source), architecture, layers, mean, std)
        return cls._load(dataclasses.replace(config, revision=revision), dtype)

    @classmethod
    def from_config(cls, config: TeacherConfig) -> Teacher:
        """The same network with random weights; asks nobody."""
        return cls(config, build_trunk(config))

    @classmethod
    def _load(cls, config: TeacherConfig, dtype: torch.dtype) -> Teacher:
        """The network of `config` with the weights of its source, and their hash."""
        trunk = load_trunk(config)
        teacher = cls(config, trunk)
        teacher.config = dataclasses.replace(config, sha256=teacher.weights_hash())
        for parameter in trunk.parameters():  # and not the buffers: rotary angles need float32
            parameter.data = parameter.data.to(dtype)
        return teacher

    def forward(
        self, images: Float[Tensor, "b 3 height width"], grid: tuple[int, int]
    ) -> Float[Tensor, "b h w d"]:
        """Features of each cell, float32, computed in `precision` whatever autocast is on.

        Args:
            images: RGB in [0, 1]; resized (bicubic, antialiased) where they are not of the size
                that gives `grid`, which is `config.stride` pixels per cell.
            grid: cells (h, w).

        Raises:
            ShapeError: the network's own grid is another one.
        """
        states = self._states(images, grid)
        maps = [self._to_grid(state, place, grid) for place, state in enumerate(states)]
        return torch.cat(maps, dim=-1) if len(maps) > 1 else maps[0]

    def maps(self, images: Float[Tensor, "b 3 height width"]) -> list[Float[Tensor, "b c y x"]]:
        """Each asked layer at its own resolution; sides are multiples of `config.stride`."""
        grid = (images.shape[-2] // self.config.stride, images.shape[-1] // self.config.stride)
        return [
            state
            if state.ndim == 4
            else tokens_to_grid(state, self._plan.prefix, grid).permute(0, 3, 1, 2)
            for state in self._states(images, grid)
        ]

    def reading(self, layers: Sequence[int], *, output_stride: int = 32) -> Teacher:
        """A frozen teacher with these weights that reads other layers, none of them deeper.

        Args:
            output_stride: of a convolutional one; its own by default, since dilation only serves
                the grid of `forward`.

        Raises:
            RangeError: a layer is deeper than what this teacher keeps.
        """
        architecture = self.config.architecture
        if "output_stride" in architecture:
            architecture = with_output_stride(architecture, output_stride)
        plan = plan_reading(architecture, layers)
        if plan.deepest > self._plan.deepest or any(plan.normed) > any(self._plan.normed):
            raise RangeError(
                f"layers are {tuple(layers)}; this teacher was cut after its hidden state "
                f"{self._plan.deepest}: name layers up to that"
            )
        own = self.config
        config = describe_teacher(own.source, architecture, layers, own.mean, own.std)
        twin = Teacher.from_config(config)
        weights = self.state_dict()
        twin.load_state_dict({name: weights[name] for name in twin.state_dict()})
        return twin

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each asked layer."""
        return self._plan.widths

    def _states(
        self, images: Float[Tensor, "b 3 height width"], grid: tuple[int, int]
    ) -> list[Tensor]:
        """Hidden states of the asked layers, float32, as the network gives them."""
        images = self._normalise(images, grid)
        with products_in(self.precision, images.device):
            outputs = self.trunk(**self._inputs(images, grid))
        return [self._read(outputs, place).float() for place in range(len(self._plan.layers))]

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode: no dropout, whatever the caller's mode."""
        return super().train(False)

    def trainable_copy(self) -> Teacher:
        """A copy whose weights learn; its config names no hash any more."""
        twin = copy.deepcopy(self).requires_grad_(True)
        twin.config = dataclasses.replace(self.config, sha256=None)
        return twin

    def weights_hash(self) -> str:
        """SHA-256 over name, shape and float32 bytes of every tensor, in the names' order."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _normalise(
        self, images: Float[Tensor, "b 3 height width"], grid: tuple[int, int]
    ) -> Float[Tensor, "b 3 height2 width2"]:
        """Images at the network's size, less the mean, over the deviation."""
        size = (grid[0] * self.config.stride, grid[1] * self.config.stride)
        images = images.float()
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        mean = images.new_tensor(self.config.mean).view(3, 1, 1)
        std = images.new_tensor(self.config.std).view(3, 1, 1)
        return (images - mean) / std

    def _inputs(
        self, images: Float[Tensor, "b 3 height width"], grid: tuple[int, int]
    ) -> dict[str, Any]:
        """Arguments of the trunk."""
        family = self._plan.family
        images = images.to(next(self.trunk.parameters()).dtype)
        # One layer is what the pruned trunk ends in; only several have to be collected on the way.
        inputs: dict[str, Any] = {"output_hidden_states": len(self._plan.layers) > 1}
        if family.packed:
            return inputs | pack(images, grid)
        if family.stages is not None:
            # Twice as fast on a CPU as channels first, and Pointwise asks for it.
            images = images.contiguous(memory_format=torch.channels_last)
        if family.interpolates:
            inputs["interpolate_pos_encoding"] = True
        return inputs | {"pixel_values": images}

    def _read(self, outputs: Any, place: int) -> Tensor:
        """The layer at `place` of the asked ones."""
        plan = self._plan
        layer = plan.layers[place]
        # Where some layer wants the final norm, the raw last state is one of the collected ones.
        at_end = layer == plan.deepest and plan.normed[place] == any(plan.normed)
        state: Tensor = outputs.last_hidden_state if at_end else outputs.hidden_states[layer]
        return state

    def _to_grid(
        self, state: Tensor, place: int, grid: tuple[int, int]
    ) -> Float[Tensor, "b h w c"]:
        """A layer's state on the grid."""
        plan = self._plan
        if state.ndim == 3:
            return tokens_to_grid(state, plan.prefix, grid)
        return map_to_grid(state, grid, resize=plan.strides[place] < plan.stride)


def describe_teacher(
    source: str,
    architecture: dict[str, Any],
    layers: Sequence[int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> TeacherConfig:
    """Configuration of a teacher whose architecture is known; asks nobody."""
    plan = plan_reading(architecture, layers)
    return TeacherConfig(
        source=source,
        architecture=architecture,
        layers=tuple(layers),
        stride=plan.stride,
        dim=sum(plan.widths),
        mean=mean,
        std=std,
    )


def load_named(config: TeacherConfig, *, dtype: torch.dtype = torch.float32) -> Teacher:
    """The teacher of `config`, its weights from `config.source` at `config.revision`.

    Raises:
        NotFoundError: the source is not there.
        FormatError: it has other weights than those that `config.sha256` names, or lacks some.
    """
    teacher = Teacher._load(config, dtype)
    if config.sha256 not in (None, teacher.config.sha256):
        raise FormatError(
            f"teacher {config.source} has weights of hash {teacher.config.sha256}; the config "
            f"names {config.sha256}: use the model that the tokenizer was trained with"
        )
    return teacher


def tokens_to_grid(
    tokens: Float[Tensor, "b n c"], prefix: int, grid: tuple[int, int]
) -> Float[Tensor, "b h w c"]:
    """Patch tokens as a grid, without what stands before them."""
    num_patches = tokens.shape[1] - prefix
    if num_patches != grid[0] * grid[1]:
        raise ShapeError(
            f"the teacher gave {num_patches} patches; a grid of {grid[0]}x{grid[1]} has "
            f"{grid[0] * grid[1]}: check the stride in its config"
        )
    return tokens[:, prefix:].reshape(len(tokens), *grid, -1)


def map_to_grid(
    features: Float[Tensor, "b c y x"], grid: tuple[int, int], *, resize: bool
) -> Float[Tensor, "b h w c"]:
    """A feature map as a grid; one of a finer stage is averaged down to it if `resize`."""
    if resize:
        features = F.interpolate(features, grid, mode="bilinear", antialias=True)
    if features.shape[-2:] != grid:
        raise ShapeError(
            f"the teacher gave a map of {features.shape[-2]}x{features.shape[-1]}; the grid is "
            f"{grid[0]}x{grid[1]}: check the stride in its config"
        )
    return features.permute(0, 2, 3, 1)


def pack(images: Float[Tensor, "b 3 height width"], grid: tuple[int, int]) -> dict[str, Any]:
    """Inputs of a NaFlex SigLIP 2: rows of patches, none of them padding, and their grids."""
    (h, w), batch = grid, len(images)
    side = images.shape[2] // h
    cells = images.reshape(batch, 3, h, side, w, side)
    return {
        "pixel_values": cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, h * w, -1),
        "pixel_attention_mask": torch.ones(batch, h * w, dtype=torch.long, device=images.device),
        "spatial_shapes": torch.tensor([grid] * batch, device=images.device),
    }
