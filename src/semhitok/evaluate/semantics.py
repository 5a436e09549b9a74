"""What the codes keep of the teacher's meaning: probes of their vectors, cosine to its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from semhitok.data.sources import ImageSource
from semhitok.errors import DataError, SemHiTokError
from semhitok.evaluate.probes import knn_accuracy, linear_probe, pooled
from semhitok.images import ImagePolicy, to_tensor
from semhitok.model import SemHiTok
from semhitok.model.search import nearest

BATCH_SIZE = 32


@dataclass(frozen=True)
class _Split:
    """Pooled features by name, and the class of each picture."""

    features: dict[str, Float[Tensor, "n d"]]
    labels: Int64[Tensor, "n"]
    cosine: float
    """Of the teacher's features as the codes tell them to the continuous ones, mean of patches."""
    failed: int


def probe_semantics(
    model: SemHiTok,
    train: ImageSource,
    val: ImageSource,
    size: int,
    *,
    kmeans_codes: Float[Tensor, "k c"] | None = None,
    pixel: bool = True,
    max_train: int = 6000,
    max_val: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """What vectors averaged over the grid know of the class, and how near the teacher they are.

    Features: `teacher` (what the trunk gives, continuous; `student` where the trunk has learned),
    `quantized` (the semantic code vectors), `semantic_features` (the teacher's features as the
    codes tell them), `pixel` (the pixel code vectors alone), and `kmeans` where `kmeans_codes` are
    given for the codebook's place. Figures: accuracy in [0, 1] of a linear probe and of k nearest
    neighbours, retention (the linear probe's accuracy over that of the continuous features), and
    the mean cosine of `semantic_features` to the continuous ones, patch by patch. Pictures that
    cannot be read are left out and counted.

    Args:
        size: side in pixels of the square that each picture is brought to.
        kmeans_codes: unit vectors as the codebook's.
        pixel: probe the pixel code vectors too; stage 1 has not trained them yet.
        max_train: so many at most, drawn at random by `seed`; likewise `max_val`.

    Raises:
        DataError: a data set without labels, or too small to fit a probe to.
        RangeError: a size that patches do not tile.
    """
    policy = ImagePolicy(size=size, crop="square", multiple=model.patch_size)
    first, second = (
        _features(model, kmeans_codes, pixel, source, _choose(source, limit, seed), policy)
        for source, limit in ((train, max_train), (val, max_val))
    )
    linear, neighbours = (
        {
            name: probe(first.features[name], first.labels, second.features[name], second.labels)
            for name in first.features
        }
        for probe in (linear_probe, knn_accuracy)
    )
    whole = max(linear[continuous_name(model)], 1e-9)
    return {
        "linear_probe": linear,
        "knn": neighbours,
        "retention": {n: x / whole for n, x in linear.items() if n != continuous_name(model)},
        "cosine": second.cosine,
        "protocol": {
            "train": _describe(train, first),
            "val": _describe(val, second),
            "pixels": policy.describe(),
            "features": "mean over the grid, float32",
            "seed": seed,
        },
    }


def continuous_name(model: SemHiTok) -> str:
    """What the features that get quantized are called."""
    return "teacher" if model.config.semantic.trunk == "frozen" else "student"


def check_labels(source: ImageSource) -> Int64[np.ndarray, "n"]:
    """One class a picture, -1 where it has none.

    Raises:
        DataError: there are no labels.
    """
    labels = source.labels()
    if labels is None or not (labels >= 0).any():
        raise DataError(f"{source.name}: has no labels; a probe needs a data set with classes")
    return labels


def _choose(source: ImageSource, limit: int, seed: int) -> Int64[np.ndarray, "m"]:
    """Indices of labelled pictures, in order; `limit` of them at random where there are more."""
    labelled = np.flatnonzero(check_labels(source) >= 0)
    if len(labelled) <= limit:
        return labelled
    return np.sort(np.random.default_rng(seed).choice(labelled, limit, replace=False))


@torch.no_grad()
def _features(
    model: SemHiTok,
    kmeans_codes: Tensor | None,
    pixel: bool,
    source: ImageSource,
    indices: Int64[np.ndarray, "m"],
    policy: ImagePolicy,
) -> _Split:
    classes = check_labels(source)
    rows: dict[str, list[Tensor]] = {}
    cosines: list[Tensor] = []
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
            grids = _grids(model, kmeans_codes, pixel, torch.stack(images).to(model.device))
            told, true = grids["semantic_features"], grids[continuous_name(model)]
            cosines.append(F.cosine_similarity(told, true, dim=-1).mean(dim=(1, 2)).cpu())
            for name, grid in grids.items():
                rows.setdefault(name, []).append(pooled(grid).cpu())
    if not labels:
        raise DataError(f"{source.name}: not one of {len(indices)} pictures can be read")
    return _Split(
        {name: torch.cat(parts) for name, parts in rows.items()},
        torch.tensor(labels),
        cosine=float(torch.cat(cosines).mean()),
        failed=len(indices) - len(labels),
    )


def _grids(
    model: SemHiTok,
    kmeans_codes: Tensor | None,
    pixel: bool,
    images: Float[Tensor, "b 3 height width"],
) -> dict[str, Float[Tensor, "b h w d"]]:
    """The features of each patch, by name."""
    branch = model.semantic
    assert branch.projection is not None and model.pixel.encoder is not None
    continuous = branch.trunk_features(images, model.grid(*images.shape[-2:]))
    latents = branch.projection(continuous)
    codes = branch.codebook.search(latents)
    grids = {
        continuous_name(model): continuous,
        "quantized": branch.codebook.lookup(codes),
        "semantic_features": branch.features(codes),
    }
    if pixel:
        grids["pixel"] = model.pixel.codebook(model.pixel.encoder(images), codes).quantized
    if kmeans_codes is not None:
        kmeans_codes = kmeans_codes.to(model.device)
        rival = nearest(latents.flatten(0, -2), kmeans_codes)
        grids["kmeans"] = kmeans_codes[rival].view(*codes.shape, -1)
    return grids


def _describe(source: ImageSource, split: _Split) -> dict[str, Any]:
    return {
        "name": source.name,
        "pictures": len(split.labels),
        "classes": len(split.labels.unique()),
        "failed": split.failed,
        "fingerprint": source.fingerprint(),
    }
