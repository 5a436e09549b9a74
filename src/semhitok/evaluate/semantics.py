"""What the semantic codes keep of the teacher's meaning: linear probes on four features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from semhitok.data.sources import ImageSource
from semhitok.errors import DataError, SemHiTokError
from semhitok.evaluate.probes import linear_probe, pooled
from semhitok.images import ImagePolicy, to_tensor
from semhitok.model import SemHiTok
from semhitok.model.search import nearest

BATCH_SIZE = 32


@dataclass(frozen=True)
class _Split:
    """Pooled features by name, and the class of each picture."""

    features: dict[str, Float[Tensor, "n d"]]
    labels: Int64[Tensor, "n"]
    failed: int


def probe_semantics(
    model: SemHiTok,
    kmeans_codes: Float[Tensor, "k c"],
    train: ImageSource,
    val: ImageSource,
    size: int,
    *,
    max_train: int = 6000,
    max_val: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy in [0, 1] of linear probes on vectors averaged over the grid.

    Of `teacher` (what the trunk gives, continuous), `quantized` (the semantic code vectors),
    `kmeans` (the same with `kmeans_codes` in the codebook's place), and `semantic_features` (the
    teacher's features as the codes tell them); for each quantized one its retention, which is its
    accuracy over the teacher's. Pictures that cannot be read are left out and counted.

    Args:
        kmeans_codes: unit vectors as the codebook's.
        size: side in pixels of the square that each picture is brought to.
        max_train: so many at most, drawn at random by `seed`; likewise `max_val`.

    Raises:
        DataError: a data set without labels, or too small to fit a probe to.
        RangeError: a size that patches do not tile.
    """
    policy = ImagePolicy(size=size, crop="square", multiple=model.patch_size)
    chosen = [
        _choose(check_labels(train), max_train, seed),
        _choose(check_labels(val), max_val, seed),
    ]
    first, second = (
        _features(model, kmeans_codes, source, indices, policy)
        for source, indices in zip((train, val), chosen, strict=True)
    )
    accuracy = {
        name: linear_probe(first.features[name], first.labels, second.features[name], second.labels)
        for name in first.features
    }
    teacher = max(accuracy["teacher"], 1e-9)
    return {
        "linear_probe": accuracy,
        "retention": {n: value / teacher for n, value in accuracy.items() if n != "teacher"},
        "protocol": {
            "train": _describe(train, first),
            "val": _describe(val, second),
            "pixels": policy.describe(),
            "features": "mean over the grid, float32",
            "seed": seed,
        },
    }


def check_labels(source: ImageSource) -> Int64[np.ndarray, "n"]:
    """One class a picture, -1 where it has none.

    Raises:
        DataError: there are no labels.
    """
    labels = source.labels()
    if labels is None or not (labels >= 0).any():
        raise DataError(f"{source.name}: has no labels; a probe needs a data set with classes")
    return labels


def _choose(labels: Int64[np.ndarray, "n"], limit: int, seed: int) -> Int64[np.ndarray, "m"]:
    """Indices of labelled pictures, in order; `limit` of them at random where there are more."""
    labelled = np.flatnonzero(labels >= 0)
    if len(labelled) <= limit:
        return labelled
    return np.sort(np.random.default_rng(seed).choice(labelled, limit, replace=False))


@torch.no_grad()
def _features(
    model: SemHiTok,
    kmeans_codes: Tensor,
    source: ImageSource,
    indices: Int64[np.ndarray, "m"],
    policy: ImagePolicy,
) -> _Split:
    classes = check_labels(source)
    rows: dict[str, list[Tensor]] = {}
    labels: list[int] = []
    for start in range(0, len(indices), BATCH_SIZE):
        images = []
        for index in indices[start : start + BATCH_SIZE].tolist():
            try:
                images.append(to_tensor(policy.apply(source.read(index))))
            except SemHiTokError:
                continue
            labels.append(int(classes[index]))
        if images:
            for name, grids in _grids(model, kmeans_codes, torch.stack(images)).items():
                rows.setdefault(name, []).append(pooled(grids).cpu())
    if not labels:
        raise DataError(f"{source.name}: not one of {len(indices)} pictures can be read")
    features = {name: torch.cat(parts) for name, parts in rows.items()}
    return _Split(features, torch.tensor(labels), failed=len(indices) - len(labels))


def _grids(
    model: SemHiTok, kmeans_codes: Tensor, images: Float[Tensor, "b 3 height width"]
) -> dict[str, Float[Tensor, "b h w d"]]:
    """The four features of each patch."""
    branch = model.semantic
    assert branch.projection is not None
    images = images.to(model.device)
    kmeans_codes = kmeans_codes.to(model.device)
    teacher = branch.trunk_features(images, model.grid(*images.shape[-2:]))
    latents = branch.projection(teacher)
    codes = branch.codebook.search(latents)
    rival = nearest(latents.flatten(0, -2), kmeans_codes)
    return {
        "teacher": teacher,
        "quantized": branch.codebook.lookup(codes),
        "kmeans": kmeans_codes[rival].view(*codes.shape, -1),
        "semantic_features": branch.features(codes),
    }


def _describe(source: ImageSource, split: _Split) -> dict[str, Any]:
    return {
        "name": source.name,
        "pictures": len(split.labels),
        "classes": len(split.labels.unique()),
        "failed": split.failed,
        "fingerprint": source.fingerprint(),
    }
