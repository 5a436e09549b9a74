"""The figures of one row: pictures, codes, and what a linear probe reads from the code vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from semhitok.data.sources import ImageSource
from semhitok.evaluate.adapters import TokenizerAdapter
from semhitok.evaluate.probes import linear_probe, pooled
from semhitok.evaluate.reconstruction import evaluate, evenly_spaced, read_batches
from semhitok.evaluate.similarity import BLOCKS, within_share
from semhitok.images import ImagePolicy
from semhitok.model import SemHiTok, Teacher
from semhitok.model.layers import patchify
from semhitok.study.scales import Scale

BATCH_SIZE = 32


@dataclass(frozen=True)
class Exam:
    """Held-out data that all rows are measured on."""

    photos: ImageSource
    """For reconstruction; ImageNet-1k labels let the judge tell its accuracy."""
    probe_train: ImageSource
    probe_val: ImageSource
    """Pictures with classes, for the linear probe."""
    judge: Path | None
    """Folder of the judge's weights."""

    def describe(self) -> dict[str, Any]:
        """For the protocol."""
        sources = {
            "photos": self.photos,
            "probe_train": self.probe_train,
            "probe_val": self.probe_val,
        }
        return {
            name: {"name": source.name, "fingerprint": source.fingerprint()}
            for name, source in sources.items()
        }


def measure(model: SemHiTok, teacher: Teacher, exam: Exam, scale: Scale) -> dict[str, Any]:
    """Figures by name, as plain numbers; groups are dicts."""
    report = evaluate(
        TokenizerAdapter(model),
        exam.photos,
        resolution=scale.resolution,
        max_images=scale.photos,
        batch_size=BATCH_SIZE,
        judge=exam.judge,
        device=model.device,
    )
    figures = {
        name: value["mean"] if isinstance(value, dict) and "mean" in value else value
        for name, value in report.figures.items()
        if name not in ("failed", "codes", "rate")
    }
    figures["bits_per_patch"] = report.figures["rate"]["bits_per_patch"]
    codes = report.figures["codes"]
    figures |= {name: codes[name] for name in ("joint_entropy", "flat_usage", "semantic_usage")}
    return figures | {"semantics": semantics(model, teacher, exam, scale)}


@dataclass(frozen=True)
class _Known:
    """What the frozen teacher says of the labelled pictures: the same for all rows."""

    val: Tensor
    """Features (k, h, w, d) of those that probes are measured on, in half precision."""
    probe: float


_TEACHER: dict[str, _Known] = {}


def semantics(model: SemHiTok, teacher: Teacher, exam: Exam, scale: Scale) -> dict[str, Any]:
    """Accuracy of linear probes on means over the grid, and cosine to the frozen teacher.

    `codes` are the code vectors that a language model would read, `semantic` their semantic part,
    `told` the teacher's features as the codes tell them, `teacher` the continuous ones. `within`
    is the variance of patch pixels within a semantic code over their total variance.
    """
    sources = (exam.probe_train, exam.probe_val)
    splits = [
        _Split.of(model, source, limit, scale)
        for source, limit in zip(sources, scale.probe, strict=True)
    ]
    train, val = splits
    probes = {
        name: linear_probe(train.pooled[name], train.labels, val.pooled[name], val.labels)
        for name in train.pooled
    }
    known = _teacher_says(teacher, exam, scale, model)
    cosine = F.cosine_similarity(val.told.float(), known.val.float(), dim=-1).mean()
    within = within_share(val.codes, val.pixels, val.pictures % BLOCKS)
    return {**probes, "teacher": known.probe, "cosine": float(cosine), "within": within}


@dataclass(frozen=True)
class _Split:
    pooled: dict[str, Float[Tensor, "n d"]]
    labels: Int64[Tensor, "n"]
    told: Tensor
    """(n, h, w, d), in half precision."""
    codes: Int64[Tensor, "patches"]
    pixels: Float[Tensor, "patches values"]
    pictures: Int64[Tensor, "patches"]
    """Which picture a patch is of."""

    @classmethod
    @torch.inference_mode()
    def of(cls, model: SemHiTok, source: ImageSource, limit: int, scale: Scale) -> _Split:
        """Encode labelled pictures, and read the codes back."""
        pooled_rows: dict[str, list[Tensor]] = {}
        labels, told, codes, pixels = [], [], [], []
        known = iter(_known_codes(model, source, limit, scale))
        for images, classes in _labelled(model, source, limit, scale):
            ids = _encode(model, images, next(known, None))
            vectors, features = model.features(ids), model.semantic_features(ids)
            semantic = vectors[..., : model.config.semantic.code_dim]
            for name, grid in {"codes": vectors, "semantic": semantic, "told": features}.items():
                pooled_rows.setdefault(name, []).append(pooled(grid).float().cpu())
            told.append(features.half().cpu())
            codes.append(model.split(ids)[0].cpu())
            pixels.append(patchify(images, model.patch_size).cpu())
            labels += classes
        if type(model) is SemHiTok:
            _CODES[_codes_name(model, source, limit, scale)] = codes
        all_codes = torch.cat(codes)
        patches = all_codes[0].numel()
        return cls(
            {name: torch.cat(parts).clone() for name, parts in pooled_rows.items()},
            torch.tensor(labels),
            torch.cat(told),
            all_codes.flatten(),
            torch.cat(pixels).flatten(0, 2),
            torch.arange(len(labels)).repeat_interleave(patches),
        )


_CODES: dict[str, list[Tensor]] = {}
"""Semantic codes of labelled pictures by batch, which rows that start from one stage 1 share."""


def _codes_name(model: SemHiTok, source: ImageSource, limit: int, scale: Scale) -> str:
    return f"{model.semantic_hash} {source.fingerprint()} {limit} {scale.resolution}"


def _known_codes(model: SemHiTok, source: ImageSource, limit: int, scale: Scale) -> list[Tensor]:
    """What another row has found out; a variant may search otherwise, and is asked anew."""
    if type(model) is not SemHiTok:
        return []
    return _CODES.get(_codes_name(model, source, limit, scale), [])


def _encode(
    model: SemHiTok, images: Float[Tensor, "b 3 side side"], semantic: Int64[Tensor, "b h w"] | None
) -> Int64[Tensor, "b h w"]:
    if semantic is None:
        return model.encode(images)
    assert model.pixel.encoder is not None
    semantic = semantic.to(model.device)
    return model.join(semantic, model.pixel.codebook.search(model.pixel.encoder(images), semantic))


def _labelled(
    model: SemHiTok, source: ImageSource, limit: int, scale: Scale
) -> Iterator[tuple[Float[Tensor, "b 3 side side"], list[int]]]:
    policy = ImagePolicy(size=scale.resolution, crop="square", multiple=model.patch_size)
    classes = source.labels()
    assert classes is not None
    indices = evenly_spaced(len(source), limit)
    for images, places in read_batches(source, indices, policy, BATCH_SIZE, {}):
        yield images.to(model.device), [int(classes[place]) for place in places]


def _teacher_says(teacher: Teacher, exam: Exam, scale: Scale, model: SemHiTok) -> _Known:
    """Asked once in a process, for a teacher, its layers and a scale."""
    name = f"{scale.name} {teacher.weights_hash()} {teacher.config.layers}"
    if name in _TEACHER:
        return _TEACHER[name]
    teacher = teacher.to(model.device)
    grids, labels = [], []
    for source, limit in zip((exam.probe_train, exam.probe_val), scale.probe, strict=True):
        rows, classes = [], []
        for images, some in _labelled(model, source, limit, scale):
            with torch.no_grad():
                rows.append(teacher(images, model.grid(*images.shape[-2:])).half().cpu())
            classes += some
        grids.append(torch.cat(rows))
        labels.append(torch.tensor(classes))
    means = [pooled(grid.float()).clone() for grid in grids]
    probe = linear_probe(means[0], labels[0], means[1], labels[1])
    _TEACHER[name] = _Known(grids[1], probe)
    return _TEACHER[name]
