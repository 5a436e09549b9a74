"""Vision models of `transformers` as trunks: how each family is built, cut short, and loaded.

The place that knows the library's vision classes; imported when a trunk is built, never before.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from semhitok.errors import FormatError, RangeError
from semhitok.model.config import TeacherConfig

Triple = tuple[float, float, float]

HALF: Triple = (0.5, 0.5, 0.5)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the models of one `model_type` are built, cut short, and read."""

    model: str
    """Class in `transformers`."""
    mean: Triple = IMAGENET_MEAN
    """What the family's models were trained with, for a folder without a preprocessor config."""
    std: Triple = IMAGENET_STD
    stages: str | None = None
    """Where a convolutional network's blocks stand; a transformer's count is in its config."""
    final_norm: str | None = None
    """Norm between the last hidden state and `last_hidden_state`."""
    unused: tuple[str, ...] = ()
    """Modules that only serve pooling or classification."""
    prefix: int = 0
    """Tokens before the patches in `last_hidden_state`, registers aside."""
    interpolates: bool = False
    """Whether another image size has to be asked for by `interpolate_pos_encoding`."""
    packed: bool = False
    """Whether the model takes rows of patches and their grids rather than images."""
    build: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the class, over its config."""


FAMILIES = {
    "clip_vision_model": Family(
        model="CLIPVisionModel",
        mean=CLIP_MEAN,
        std=CLIP_STD,
        unused=("post_layernorm",),
        prefix=1,
        interpolates=True,
    ),
    "convnext": Family(model="ConvNextModel", stages="encoder.stages", unused=("layernorm",)),
    "dinov2": Family(model="Dinov2Model", final_norm="layernorm", prefix=1),
    "dinov2_with_registers": Family(
        model="Dinov2WithRegistersModel", final_norm="layernorm", prefix=1
    ),
    "dinov3_convnext": Family(
        model="DINOv3ConvNextModel", stages="model.stages", final_norm="layer_norm", prefix=1
    ),
    "dinov3_vit": Family(model="DINOv3ViTModel", final_norm="norm", prefix=1),
    "mobilenet_v2": Family(
        model="MobileNetV2Model",
        mean=HALF,
        std=HALF,
        stages="layer",
        unused=("conv_1x1",),
        build={"add_pooling_layer": False},
    ),
    "siglip2_vision_model": Family(
        model="Siglip2VisionModel", mean=HALF, std=HALF, final_norm="post_layernorm", packed=True
    ),
    "siglip_vision_model": Family(
        model="SiglipVisionModel",
        mean=HALF,
        std=HALF,
        final_norm="post_layernorm",
        interpolates=True,
    ),
    "vit": Family(
        model="ViTModel",
        mean=HALF,
        std=HALF,
        final_norm="layernorm",
        prefix=1,
        interpolates=True,
        build={"add_pooling_layer": False},
    ),
}

# Width and stride of MobileNetV2's blocks, which its config does not tell.
MOBILENET_V2_WIDTHS = (24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
MOBILENET_V2_STRIDES = (4, 4, 8, 8, 8, 16, 16, 16, 16, 16, 16, 16, 32, 32, 32, 32)


@dataclass(frozen=True)
class Plan:
    """Which hidden states of a model are read, and what they look like."""

    family: Family
    library_config: Any
    """Configuration object of `transformers`."""
    layers: tuple[int, ...]
    """The asked layers counted from the front."""
    normed: tuple[bool, ...]
    """For each of them, whether it is read after the final norm (-1 alone is)."""
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    """Channels, and pixels per cell, of each of them."""

    @property
    def deepest(self) -> int:
        """The last hidden state that is computed."""
        return max(self.layers)

    @property
    def stride(self) -> int:
        """Pixels per cell of the coarsest layer: the grid's."""
        return max(self.strides)

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return self.family.prefix + int(getattr(self.library_config, "num_register_tokens", 0))


def plan_reading(architecture: dict[str, Any], layers: Sequence[int]) -> Plan:
    """What to build and read for `layers`.

    Raises:
        RangeError: the model has no such hidden state.
    """
    library_config = build_library_config(architecture)
    states = hidden_states(library_config)
    count = len(states)
    for layer in layers:
        if not -count <= layer < count:
            raise RangeError(
                f"layers has {layer}; {architecture['model_type']} has hidden states 0 to "
                f"{count - 1}, or -{count} to -1"
            )
    if not layers:
        raise RangeError("layers is empty; name at least one hidden state, -1 for the last")
    family = FAMILIES[architecture["model_type"]]
    places = tuple(layer % count for layer in layers)
    return Plan(
        family=family,
        library_config=library_config,
        layers=places,
        normed=tuple(layer == -1 and family.final_norm is not None for layer in layers),
        widths=tuple(states[place][0] for place in places),
        strides=tuple(states[place][1] for place in places),
    )


def hidden_states(config: Any) -> list[tuple[int, int]]:
    """(channels, pixels per cell) of each hidden state of a model."""
    if config.model_type == "mobilenet_v2":
        from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import apply_depth_multiplier

        widths = [apply_depth_multiplier(config, width) for width in MOBILENET_V2_WIDTHS]
        return [
            (width, min(stride, config.output_stride))
            for width, stride in zip(widths, MOBILENET_V2_STRIDES, strict=True)
        ]
    if config.model_type in ("convnext", "dinov3_convnext"):
        stem = getattr(config, "patch_size", 4)
        stages = [(width, stem * 2**n) for n, width in enumerate(config.hidden_sizes)]
        # Before the first stage: ConvNeXt's stem, and for DINOv3, whose stem is in it, the pixels.
        first = stages[0] if config.model_type == "convnext" else (config.num_channels, 1)
        return [first, *stages]
    return [(config.hidden_size, config.patch_size)] * (config.num_hidden_layers + 1)


def build_library_config(architecture: dict[str, Any]) -> Any:
    """Configuration object of `transformers` for a supported vision model.

    Raises:
        FormatError: the family is not supported, or refuses the values.
    """
    check_family(architecture.get("model_type"), "teacher.architecture")
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**architecture)
    except Exception as error:  # whatever the library's own checks raise
        raise FormatError(
            f"transformers refuses the teacher's architecture: {one_line(error)}"
        ) from error


def check_family(model_type: object, where: str) -> None:
    """Refuse models that this file does not know how to read."""
    if model_type in FAMILIES:
        return
    supported = ", ".join(sorted(name.removesuffix("_vision_model") for name in FAMILIES))
    raise FormatError(f"{where} has model_type {model_type!r}; a teacher can be: {supported}")


def build_trunk(config: TeacherConfig) -> nn.Module:
    """The pruned network with random weights; asks nobody."""
    plan = plan_reading(config.architecture, config.layers)
    trunk = model_class(plan.family)(depth_config(plan), **plan.family.build)
    prune(trunk, plan)
    fold_batch_norms(trunk)
    assert isinstance(trunk, nn.Module)
    return trunk


def load_trunk(config: TeacherConfig) -> nn.Module:
    """The pruned network in float32, with the weights of `config.source`.

    Raises:
        FormatError: weights are missing, unreadable, or of other shapes.
    """
    plan = plan_reading(config.architecture, config.layers)
    arguments = {"config": depth_config(plan), **plan.family.build}
    trunk, missing = load_library_model(model_class(plan.family), config, **arguments)
    prune(trunk, plan)
    missing &= set(trunk.state_dict())
    missing = {name for name in missing if not name.endswith("num_batches_tracked")}
    refuse_missing(missing, config, "its layers need")
    fold_batch_norms(trunk)
    assert isinstance(trunk, nn.Module)
    return trunk


def load_library_model(
    library_class: Any, teacher: TeacherConfig, **arguments: Any
) -> tuple[Any, set[str]]:
    """A model in float32 with the weights of `teacher.source`, and the names of those it lacks.

    Raises:
        FormatError: weights are unreadable, or of other shapes.
    """
    from safetensors import SafetensorError

    with quiet_library():
        try:
            model, report = library_class.from_pretrained(
                teacher.source,
                revision=teacher.revision or "main",
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **arguments,
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise FormatError(
                f"weights of teacher {teacher.source} cannot be loaded: {one_line(error)}"
            ) from error
    return model, set(report["missing_keys"])


def refuse_missing(missing: set[str], config: TeacherConfig, purpose: str) -> None:
    """Raise a FormatError that names the first of the missing weights, where there are some."""
    if missing:
        raise FormatError(
            f"teacher {config.source} lacks {len(missing)} of the weights that {purpose}: "
            f"{', '.join(sorted(missing)[:3])}{', ...' if len(missing) > 3 else ''}; "
            "get a whole copy of it"
        )


def model_class(family: Family) -> Any:
    """The family's class in `transformers`."""
    import transformers

    return getattr(transformers, family.model)


def depth_config(plan: Plan) -> Any:
    """The library's config less the transformer blocks and the pooling head that nobody reads."""
    config = copy.deepcopy(plan.library_config)
    if plan.family.stages is None:
        config.num_hidden_layers = plan.deepest
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = False
    return config


def prune(trunk: nn.Module, plan: Plan) -> None:
    """Take out of a trunk what no asked layer needs, so that it ends in the deepest."""
    family = plan.family
    if family.stages is not None:
        blocks = trunk.get_submodule(family.stages)
        assert isinstance(blocks, nn.ModuleList)
        # MobileNetV2's hidden states start after its first block, the others' before theirs.
        first = 1 if family.model == "MobileNetV2Model" else 0
        del blocks[plan.deepest + first :]
    for name in family.unused:
        setattr(trunk, name, nn.Identity())
    if family.final_norm is not None and not any(plan.normed):
        setattr(trunk, family.final_norm, nn.Identity())
    embeddings: Any = getattr(trunk, "embeddings", None)
    if hasattr(embeddings, "mask_token"):
        embeddings.mask_token = None


class Pointwise(nn.Linear):
    """A 1x1 convolution as a matrix product over a channels-last map.

    On one CPU thread torch computes small batches of 1x1 convolutions by another routine than large
    ones, in other bits; a matrix product does not care how many pictures its rows are of (C5).
    """

    def forward(self, features: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d y x"]:
        """Mix the channels of each cell."""
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def fold_batch_norms(trunk: nn.Module) -> None:
    """MobileNetV2's frozen batch norms into its convolutions: the same function, in half the time.

    Layers of stride 1 then pad by themselves too, as TensorFlow's padding is symmetric there.
    """
    layer: Any
    for layer in trunk.modules():
        if type(layer).__name__ != "MobileNetV2ConvLayer":
            continue
        layer.convolution = fold(layer.convolution, layer.normalization)
        layer.normalization = None
        if isinstance(layer.convolution, Pointwise) or layer.convolution.stride == (1, 1):
            layer.config = copy.copy(layer.config)
            layer.config.tf_padding = False


def fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d | Pointwise:
    """One layer that does what the two do in evaluation mode."""
    assert norm.running_mean is not None and norm.running_var is not None
    # In double, so that weights that were float16 under a trivial norm still are.
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = (convolution.weight.double() * scale.view(-1, 1, 1, 1)).float()
    bias = (norm.bias.double() - norm.running_mean.double() * scale).float()
    folded: nn.Conv2d | Pointwise
    if convolution.kernel_size == (1, 1):
        folded, weight = Pointwise(weight.shape[1], weight.shape[0]), weight.flatten(1)
    else:
        folded = copy.deepcopy(convolution)
        if folded.stride == (1, 1):
            folded.padding = tuple(
                d * (k // 2) for d, k in zip(folded.dilation, folded.kernel_size, strict=True)
            )
    folded.weight, folded.bias = nn.Parameter(weight), nn.Parameter(bias)
    return folded


@contextlib.contextmanager
def quiet_library() -> Iterator[None]:
    """No progress bars, nor reports of unread text towers and classifiers, while a model loads."""
    import transformers

    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def one_line(error: Exception) -> str:
    """The first line of a message, without its full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".:")
