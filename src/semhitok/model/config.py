"""What a tokenizer is made of, as plain data: `config.json` of a model folder, and the presets."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from semhitok.errors import FormatError, RecipeError, near_matches

FORMAT_VERSION = 1

Part = Literal["encode", "decode", "features"]
LATER = "later"
"""Mark of keys that a version after the first added: see `TokenizerConfig.to_dict`."""

ALL_PARTS: tuple[Part, ...] = ("encode", "decode", "features")
"""What a model can be loaded for; the codebooks always come along. "features" is the prediction of
the teacher's features, `semantic_features`."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A vision model of the `transformers` library, read as a grid of features.

    `source`, `revision` and `sha256` say where its weights come from; `architecture` is the
    library's own configuration, so that the network can be built without asking anybody.
    """

    source: str
    """Hub id or name of the model; a note for the reader when `bundled` is true."""
    architecture: dict[str, Any]
    """`transformers` configuration of the vision tower, `model_type` included."""
    layers: tuple[int, ...] = (-1,)
    """Indices into the model's hidden states; several are joined along channels."""
    stride: int
    """Pixels of the teacher's input per cell of its grid: its patch size or output stride."""
    dim: int
    """Channels of the features, all layers joined."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    revision: str | None = None
    sha256: str | None = None
    """Hash of the weights that were loaded (`Teacher.weights_hash`); checked on every load."""
    licence: str | None = None


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A stack of transformer blocks with 2-D rotary positions."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    window: int | None = field(default=None, metadata={LATER: True})
    """Patches see others of their own window alone, a square of so many patches a side, which moves
    by half of that from block to block; None lets each see the whole picture."""


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """A small encoder that carries the teacher's features (VQ-KD), in the teacher's place."""

    transformer: TransformerConfig


@dataclass(frozen=True, kw_only=True)
class FeedbackConfig:
    """Error feedback of the semantic search, over the whole picture: see `SemanticCodebook`."""

    rounds: int
    """Searches after the first."""
    rate: float = 0.25
    """Share of the error that each round adds to the latents."""


@dataclass(frozen=True, kw_only=True)
class SemanticConfig:
    """The semantic branch: trunk, projection, codebook, decoder."""

    teacher: TeacherConfig
    num_codes: int
    """K."""
    code_dim: int
    """Width of a semantic code vector; the teacher's own width for `standardize`."""
    projection: Literal["standardize", "pca", "mlp"] = "standardize"
    """From features to latents, all l2-normalised: each channel over its deviation; that and its
    leading principal components; or VQ-KD's trained Linear-Tanh-Linear."""
    trunk: Literal["frozen", "finetuned", "student"] = "frozen"
    """What sees the picture: the teacher's own trunk, a copy trained in stage 1, or a student."""
    bundled: bool = True
    """Whether the trunk's weights are part of the model folder, or fetched by `teacher.source`."""
    student: StudentConfig | None = None
    feedback: FeedbackConfig | None = field(default=None, metadata={LATER: True})
    """Makes the mean of a picture's codes resemble that of its latents."""
    decoder: TransformerConfig
    """Predicts the teacher's features from the code vectors."""


@dataclass(frozen=True, kw_only=True)
class PixelDecoderConfig:
    """Transformer blocks at the grid, then residual convolutions at finer and finer scales."""

    transformer: TransformerConfig
    stage_widths: tuple[int, ...] = ()
    """Channels at 2x, 4x, ... the grid's resolution, as many as there are convolution stages."""
    stage_depths: tuple[int, ...] = ()
    """Residual blocks of each stage."""


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """The pixel branch: encoder, sub-codebooks, decoder, Enhance Decoder."""

    num_codes: int
    """m: pixel codes of each semantic code."""
    code_dim: int
    offset_rank: int | None = None
    """Sub-codebook of parent i = shared base + offsets of i. None keeps K x m free offsets; a rank
    r makes them mixtures of r tables, for K x m too large to store."""
    encoder: TransformerConfig
    decoder: PixelDecoderConfig
    enhance: PixelDecoderConfig | None = None
    """Enhance Decoder (stage 3); None before that stage."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Everything that decides the network's shape; `from_dict` is its only parser."""

    name: str
    patch_size: int
    """Pixels per side of a patch."""
    image_size: int
    """Side of the square that `preprocess` makes by default; any multiple of the patch works."""
    semantic: SemanticConfig
    pixel: PixelConfig
    format_version: int = field(default=FORMAT_VERSION)

    def __post_init__(self) -> None:
        check(self)

    @property
    def vocab_size(self) -> int:
        """K * m."""
        return self.semantic.num_codes * self.pixel.num_codes

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` gives the same config back.

        Keys that were added later are left out where they are at their default, so that a model
        made before has the same config, and hash, as ever.
        """
        return typing.cast(dict[str, Any], _plain(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokenizerConfig:
        """Parse `config.json`.

        Raises:
            FormatError: a key is unknown or missing, a value has the wrong type, or a newer version
                of this package wrote it.
        """
        version = data.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise FormatError(
                f"config has format_version {version}; this version of semhitok reads up to "
                f"{FORMAT_VERSION}: upgrade semhitok"
            )
        return typing.cast(TokenizerConfig, _parse(cls, data, "config"))


def check(config: TokenizerConfig) -> None:
    """Refuse what cannot be built, with the reason."""
    semantic, pixel = config.semantic, config.pixel
    positive = {
        "patch_size": config.patch_size,
        "image_size": config.image_size,
        "semantic.num_codes": semantic.num_codes,
        "semantic.code_dim": semantic.code_dim,
        "semantic.teacher.stride": semantic.teacher.stride,
        "pixel.num_codes": pixel.num_codes,
        "pixel.code_dim": pixel.code_dim,
    }
    if pixel.offset_rank is not None:
        positive["pixel.offset_rank"] = pixel.offset_rank
    for name, value in positive.items():
        if value < 1:
            raise RecipeError(f"{name} is {value}; it must be at least 1")
    if config.image_size % config.patch_size:
        raise RecipeError(
            f"image_size {config.image_size} is not a multiple of patch_size {config.patch_size}"
        )
    if semantic.feedback is not None:
        rounds, rate = semantic.feedback.rounds, semantic.feedback.rate
        if rounds < 1 or not 0 < rate <= 1:
            raise RecipeError(
                f"semantic.feedback: rounds is {rounds} and rate {rate:g}; rounds must be at least "
                "1, rate more than 0 and at most 1"
            )
    if semantic.trunk == "student" and semantic.student is None:
        raise RecipeError("semantic.trunk is 'student'; semantic.student must describe it")
    transformers = {
        "semantic.decoder": semantic.decoder,
        "pixel.encoder": pixel.encoder,
        "pixel.decoder.transformer": pixel.decoder.transformer,
    }
    if semantic.student is not None:
        transformers["semantic.student.transformer"] = semantic.student.transformer
    if pixel.enhance is not None:
        transformers["pixel.enhance.transformer"] = pixel.enhance.transformer
    for name, t in transformers.items():
        if t.depth < 0 or not t.mlp_ratio > 0:
            raise RecipeError(
                f"{name}: depth is {t.depth} and mlp_ratio {t.mlp_ratio:g}; depth must be at "
                "least 0, mlp_ratio more than 0"
            )
        if t.window is not None and (t.window < 2 or t.window % 2):
            raise RecipeError(f"{name}: window is {t.window}; it must be even, and at least 2")
        if t.heads < 1 or t.width < 1 or t.width % (4 * t.heads):
            raise RecipeError(
                f"{name}: width {t.width} must be a multiple of 4 x heads ({t.heads}), "
                "as 2-D rotary positions turn pairs of channels along two axes"
            )
    for name, decoder in {"decoder": pixel.decoder, "enhance": pixel.enhance}.items():
        if decoder is None:
            continue
        stages = len(decoder.stage_widths)
        if stages != len(decoder.stage_depths):
            raise RecipeError(
                f"pixel.{name}: {stages} stage_widths and {len(decoder.stage_depths)} "
                "stage_depths; they must be as many"
            )
        if any(n < 1 for n in decoder.stage_widths) or any(n < 0 for n in decoder.stage_depths):
            raise RecipeError(
                f"pixel.{name}: stage_widths are {list(decoder.stage_widths)} and stage_depths "
                f"{list(decoder.stage_depths)}; widths must be at least 1, depths at least 0"
            )
        if config.patch_size % 2**stages:
            raise RecipeError(
                f"pixel.{name}: {stages} stages double the grid {stages} times; patch_size "
                f"{config.patch_size} is not a multiple of {2**stages}"
            )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        items = [(f, getattr(value, f.name)) for f in dataclasses.fields(value)]
        return {f.name: _plain(v) for f, v in items if LATER not in f.metadata or v != f.default}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _parse(kind: Any, value: Any, where: str) -> Any:
    """Read `value` as the annotated type `kind`, strictly."""
    if dataclasses.is_dataclass(kind):
        return _parse_fields(typing.cast(type, kind), value, where)
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _parse(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            raise FormatError(f"{where} is {value!r}; allowed: {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise FormatError(f"{where} is {value!r}; a list is needed")
        if Ellipsis not in arguments and len(value) != len(arguments):
            raise FormatError(f"{where} has {len(value)} values; {len(arguments)} are needed")
        return tuple(_parse(arguments[0], v, f"{where}[{n}]") for n, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise FormatError(f"{where} is {value!r}; a mapping is needed")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise FormatError(f"{where} is {value!r}; {kind.__name__} is needed")
    return value


def _parse_fields(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise FormatError(f"{where} is {value!r}; a mapping is needed")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise FormatError(f"{where} has an unknown key {key!r}{near_matches(key, fields)}")
    hints = typing.get_type_hints(kind)
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise FormatError(f"{where} lacks the key {name!r}")
    return kind(**{k: _parse(hints[k], v, f"{where}.{k}") for k, v in value.items()})
