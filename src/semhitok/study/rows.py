"""What the study compares: each row is a recipe's overlay and, where that is not enough, an object.

A row says what it changes of the staged tokenizer, `staged`, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from semhitok.errors import NotFoundError, near_matches
from semhitok.model import SemHiTok
from semhitok.study.joint import (
    HierarchicalQuantizer,
    JointTrainer,
    MakeQuantizer,
    Quantizer,
    SharedQuantizer,
    joint,
)
from semhitok.study.scales import Scale
from semhitok.study.variants import (
    Build,
    OwnCodebook,
    PixelOnlyDecoder,
    RotationCodebook,
    SequenceDecoder,
    SimVQCodebook,
    UnionSemHiTok,
    with_codebook,
    with_decoder,
)
from semhitok.train.recipe import Recipe
from semhitok.train.run import TRAINERS, Trainers
from semhitok.train.world import World

Values = dict[str, Any]
Overlay = Callable[[Scale], Values]


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    title: str
    group: str
    """Table that it stands in; rows of `parts` are only what others start from."""
    overlay: Overlay = lambda scale: {}
    starts: Mapping[str, str] = field(default_factory=dict)
    """Stage to the row whose model it takes from there, trained no further."""
    build: Callable[[Recipe], Build] = lambda recipe: SemHiTok
    trainers: Trainers = field(default_factory=lambda: TRAINERS)


SEMANTIC = {"semantic": "semantic"}
STAGED = {"semantic": "semantic", "pixel": "staged"}


# -------------------------------------------------------------------------------------- overlays


def model(semantic: dict[str, Any] | None = None, pixel: dict[str, Any] | None = None) -> Values:
    """Changes of the model alone."""
    return {"model": {"semantic": semantic or {}, "pixel": pixel or {}}}


def no_pixels(overlay: Overlay) -> Overlay:
    """Of a row that is only a semantic branch: no pixel steps."""

    def shortened(scale: Scale) -> Values:
        return {**overlay(scale), "pixel": {"phases": scale.phases(0)}}

    return shortened


def times(factor: float, size: str) -> Callable[[Scale], int]:
    """A multiple of one of the scale's sizes."""
    return lambda scale: max(1, round(factor * getattr(scale, size)))


def codes(k: Callable[[Scale], int], m: Callable[[Scale], int]) -> Overlay:
    """K and m by the scale's."""
    return lambda scale: model({"num_codes": k(scale)}, {"num_codes": m(scale)})


def student(scale: Scale) -> Values:
    """A transformer that reads the pixels instead of the teacher's trunk."""
    width = 2 * scale.width
    transformer = {"width": width, "depth": 2 * scale.encoder_depth, "heads": width // 32}
    return model({"trunk": "student", "student": {"transformer": transformer}})


def depth(layers: list[int]) -> Overlay:
    """Other hidden states of the teacher."""
    return lambda scale: {"teacher": {"layers": layers}}


def enhance(scale: Scale, **changes: Any) -> Values:
    """Stage 3: a larger decoder that is trained for its looks."""
    # As wide at the grid as the one before: so it starts from that one's pictures.
    width, depth = scale.width, scale.decoder_depth + 2
    decoder = {
        "transformer": {"width": width, "depth": depth, "heads": width // 32},
        "stage_widths": [2 * w for w in scale.stage_widths],
        "stage_depths": [2] * len(scale.stage_widths),
    }
    stage = {
        "phases": scale.phases(scale.enhance_steps),
        "optimizer": {"lr": 1.0e-3, "warmup": 30, "weight_decay": 0.01},
        "ema": 0.98,
        "weights": {"l1": 1.0, "mse": 4.0, "perceptual": 0.02, "adversarial": 0.005},
        "noise": 0.01,
        "perceptual": {"layers": [0, 2, 6, 12]},
        "adversarial": {
            "kind": "patch",
            "start": scale.enhance_steps // 3,
            "warmup": scale.enhance_steps // 4,
            "optimizer": {"lr": 3.0e-4, "betas": [0.0, 0.95]},
        },
    }
    return {**model(pixel={"enhance": decoder}), "enhance": {**stage, **changes}}


# ---------------------------------------------------------------------------------- quantizers


def hierarchical(model: SemHiTok, recipe: Recipe, world: World) -> Quantizer:
    return HierarchicalQuantizer(model, recipe, world)


def shared(levels: Callable[[int, int], tuple[int, ...]], *, mixed: bool) -> MakeQuantizer:
    """One space for both latents, with codes in these levels (from K and m)."""

    def make(model: SemHiTok, recipe: Recipe, world: World) -> Quantizer:
        semantic, pixel = model.config.semantic, model.config.pixel
        return SharedQuantizer(
            semantic.code_dim,
            pixel.code_dim,
            levels(semantic.num_codes, pixel.num_codes),
            mixed=mixed,
            decay=recipe.semantic.codebook_decay,
        )

    return make


def joint_row(name: str, title: str, make: MakeQuantizer) -> Row:
    """A headline row whose branches learn together."""
    return Row(
        name,
        title,
        "headline",
        build=lambda recipe: joint(make, recipe),
        trainers={"semantic": JointTrainer},
    )


# ---------------------------------------------------------------------------------------- rows


def _with_stage_1(name: str, title: str, group: str, overlay: Overlay) -> list[Row]:
    """A row that needs a stage 1 of its own, and that stage."""
    part = f"semantic-{name}"
    return [
        Row(part, f"stage 1, {title}", "parts", no_pixels(overlay)),
        Row(name, title, group, overlay, {"semantic": part}),
    ]


def _grid_of_codes() -> list[Row]:
    """(K, m) at constant K * m, and at growing m."""
    rows = []
    for label, factor in (("quarter", 0.25), ("4x", 4.0), ("16x", 16.0)):
        overlay = codes(times(factor, "num_semantic"), times(1 / factor, "num_pixel"))
        rows += _with_stage_1(f"k-{label}", f"K {label}, same K * m", "codes", overlay)
    for label, factor in (("16th", 1 / 16), ("quarter", 0.25), ("4x", 4.0), ("16x", 16.0)):
        overlay = codes(times(1.0, "num_semantic"), times(factor, "num_pixel"))
        rows.append(Row(f"m-{label}", f"m {label}, same K", "codes", overlay, SEMANTIC))
    return rows


ROWS: tuple[Row, ...] = (
    Row("semantic", "stage 1 alone", "parts", no_pixels(lambda s: {})),
    Row(
        "semantic-one",
        "a semantic codebook of one code",
        "parts",
        lambda s: {
            **model({"num_codes": 1}),
            "semantic": {"phases": s.phases(0)},
            "pixel": {"phases": s.phases(0)},
        },
    ),
    joint_row(
        "hybrid",
        "1. one hybrid codebook, joint",
        shared(lambda k, m: (k * m,), mixed=True),
    ),
    joint_row("joint", "2. SemHiTok, joint", hierarchical),
    Row(
        "independent",
        "3. two independent tokenizers, concatenated",
        "headline",
        lambda s: {"pixel": {"offsets_lr": 0.0}},
        SEMANTIC,
        build=lambda recipe: with_decoder(PixelOnlyDecoder),
    ),
    Row("staged", "4. SemHiTok, staged", "headline", starts=SEMANTIC),
    Row(
        "flat",
        "5. flat VQ of K * m codes, pixels alone",
        "headline",
        codes(lambda s: 1, lambda s: s.num_semantic * s.num_pixel),
        {"semantic": "semantic-one"},
    ),
    joint_row("residual", "6. residual VQ, joint", shared(lambda k, m: (k, m), mixed=True)),
    joint_row(
        "shared-index",
        "7. shared index (TokenFlow), joint",
        shared(lambda k, m: (k * m,), mixed=False),
    ),
    Row(
        "semantic-only",
        "8. semantic codes alone (m = 1)",
        "headline",
        codes(lambda s: s.num_semantic, lambda s: 1),
        SEMANTIC,
    ),
    Row("enhanced", "9. row 4 with Enhance Decoder", "headline", enhance, STAGED),
    Row(
        "union",
        "10. row 4, sub-codebooks of similar patches",
        "headline",
        starts=SEMANTIC,
        build=lambda recipe: UnionSemHiTok,
    ),
    *_grid_of_codes(),
    Row(
        "sequence",
        "fusion by sequence",
        "fusion",
        starts=SEMANTIC,
        build=lambda recipe: with_decoder(SequenceDecoder),
    ),
    Row(
        "one-sub-codebook",
        "one sub-codebook for all parents",
        "learning",
        lambda s: {"pixel": {"offsets_lr": 0.0}},
        SEMANTIC,
    ),
    Row(
        "low-rank",
        "offsets of rank 8",
        "learning",
        lambda s: model(pixel={"offset_rank": 8}),
        SEMANTIC,
    ),
    Row(
        "own",
        "no shared base",
        "learning",
        lambda s: {"pixel": {"offsets_lr": 1.0}},
        SEMANTIC,
        build=lambda recipe: with_codebook(OwnCodebook),
    ),
    Row(
        "moving-means",
        "sub-codes by moving means (EMA)",
        "learning",
        lambda s: {
            "pixel": {
                "learning": "ema",
                "weights": {"l1": 1.0, "mse": 4.0, "commitment": 0.25, "codebook": 0.0},
            }
        },
        SEMANTIC,
    ),
    Row(
        "simvq",
        "base through a linear map (SimVQ)",
        "learning",
        starts=SEMANTIC,
        build=lambda recipe: with_codebook(SimVQCodebook),
    ),
    Row(
        "rotation",
        "rotation trick",
        "learning",
        starts=SEMANTIC,
        build=lambda recipe: with_codebook(RotationCodebook),
    ),
    Row(
        "no-critic",
        "Enhance Decoder without a critic",
        "critic",
        lambda s: enhance(
            s, adversarial=None, weights={"l1": 1.0, "mse": 4.0, "perceptual": 0.02}
        ),
        STAGED,
    ),
    Row(
        "feature-critic",
        "critic on the teacher's features",
        "critic",
        lambda s: enhance(
            s,
            adversarial={
                "kind": "features",
                "layers": [2, 6, 12],
                "start": s.enhance_steps // 3,
                "warmup": s.enhance_steps // 4,
                "optimizer": {"lr": 3.0e-4, "betas": [0.0, 0.95]},
            },
        ),
        STAGED,
    ),
    Row("no-noise", "no noise on the ids", "noise", lambda s: enhance(s, noise=0.0), STAGED),
    Row("noise", "a tenth of the ids wrong", "noise", lambda s: enhance(s, noise=0.1), STAGED),
    *_with_stage_1(
        "frozen", "4b. row 4, the trunk frozen from the start", "headline",
        lambda s: model({"trunk": "frozen"}),
    ),
    *_with_stage_1("student", "a student in the trunk's place", "trunk", student),
    *_with_stage_1("depth-6", "teacher's block 6", "depth", depth([6])),
    *_with_stage_1("depth-12", "teacher's block 12", "depth", depth([12])),
    *_with_stage_1("depth-both", "teacher's block 6 and the last", "depth", depth([6, -1])),
)  # fmt: skip


def find_rows(names: list[str] | tuple[str, ...]) -> list[Row]:
    """Rows by name or group, in the table's order; all but `parts` where none is named.

    Raises:
        NotFoundError: there is no such row or group.
    """
    known = {row.name for row in ROWS} | {row.group for row in ROWS}
    for name in names:
        if name not in known:
            raise NotFoundError(f"there is no row or group {name!r}{near_matches(name, known)}")
    if not names:
        return [row for row in ROWS if row.group != "parts"]
    return [row for row in ROWS if row.name in names or row.group in names]


def row_named(name: str) -> Row:
    """The row of that name."""
    return next(row for row in ROWS if row.name == name)
