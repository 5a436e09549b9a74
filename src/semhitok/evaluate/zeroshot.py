"""Zero-shot accuracy: are pictures, as the codes tell them, nearest to their class in words?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from semhitok.data.sources import ImageSource
from semhitok.errors import DataError
from semhitok.evaluate.reconstruction import evenly_spaced, read_batches
from semhitok.evaluate.semantics import check_labels, continuous_name
from semhitok.images import ImagePolicy
from semhitok.model import SemHiTok
from semhitok.model.config import TeacherConfig
from semhitok.model.text_tower import TextTower, check_text_tower

TEMPLATES = (
    "a photo of a {}.",
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The plain prompt of CLIP's paper, and the seven that its authors chose out of their eighty."""


def zero_shot(
    model: SemHiTok,
    source: ImageSource,
    size: int,
    *,
    templates: Sequence[str] = TEMPLATES,
    max_images: int | None = None,
    batch_size: int = 32,
) -> dict[str, Any]:
    """How often a picture's embedding is nearest, by cosine, to the words for its class.

    Figures in [0, 1]: accuracy with the continuous patch features (`teacher`, or `student` where
    the trunk has learned) and with `semantic_features`, both through the head of the teacher's
    vision tower; and `retention`, the second over the first. The words are the text tower's mean
    over `templates`. Pictures without a label or that cannot be read are left out.

    Args:
        size: side in pixels of the square that each picture is brought to.
        max_images: so many of the labelled pictures, evenly spaced; None takes all.

    Raises:
        DataError: a source without labels or class names, or no picture of it can be read.
        RangeError, NotFoundError, FormatError: the teacher's source has no text tower that can be
            read (`TextTower.load`), or a size that patches do not tile.
    """
    teacher = model.config.semantic.teacher
    names, labels = check_zero_shot(source, [teacher]), check_labels(source)
    policy = ImagePolicy(size=size, crop="square", multiple=model.patch_size)
    tower = TextTower.load(teacher).to(model.device)
    words = embed_classes(tower, names, templates)
    labelled = np.flatnonzero(labels >= 0)
    indices = [int(labelled[n]) for n in evenly_spaced(len(labelled), max_images)]
    hits = {continuous_name(model): 0, "semantic_features": 0}
    count, failed = 0, dict[str, str]()
    for images, places in read_batches(source, indices, policy, batch_size, failed, smallest=1):
        wanted = torch.from_numpy(labels[places]).to(model.device)
        for name, grid in _grids(model, images.to(model.device)).items():
            guesses = (tower.embed_features(grid) @ words.T).argmax(dim=1)
            hits[name] += int((guesses == wanted).sum())
        count += len(places)
    if count == 0:
        raise DataError(f"{source.name}: not one of {len(indices)} pictures can be read")
    before, after = hits.values()
    return {
        **{name: hit / count for name, hit in hits.items()},
        "retention": after / before if before else None,
        "protocol": {
            "data": source.name,
            "fingerprint": source.fingerprint(),
            "pictures": count,
            "failed": len(failed),
            "classes": len(names),
            "pixels": policy.describe(),
            "model": model.hash,
            "teacher": teacher.source,
            "teacher_sha256": teacher.sha256,
            "picture_embedding": tower.pooling,
            "class_embedding": "mean of the unit text embeddings of all templates; underscores in "
            "class names as spaces",
            "templates": list(templates),
        },
    }


def check_zero_shot(source: ImageSource, teachers: Sequence[TeacherConfig]) -> list[str]:
    """The source's class names, once all is known to be there that can be told without weights.

    Raises:
        DataError: the source has no labels or class names.
        RangeError, NotFoundError: a teacher has no text tower (`check_text_tower`).
    """
    check_labels(source)
    names = source.class_names()
    if names is None:
        raise DataError(
            f"{source.name}: has no class names; zero-shot accuracy needs a data set with them"
        )
    for teacher in teachers:
        check_text_tower(teacher)
    return names


def embed_classes(
    tower: TextTower, names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Float[Tensor, "c e"]:
    """Unit vectors: each class's mean over the templates."""
    words = [name.replace("_", " ") for name in names]
    by_template = [tower.embed_texts([t.format(word) for word in words]) for t in templates]
    return F.normalize(torch.stack(by_template).mean(dim=0), dim=-1)


@torch.no_grad()
def _grids(
    model: SemHiTok, images: Float[Tensor, "b 3 height width"]
) -> dict[str, Float[Tensor, "b h w d"]]:
    """The features of each patch, continuous and as the codes tell them."""
    branch = model.semantic
    assert branch.projection is not None
    continuous = branch.trunk_features(images, model.grid(*images.shape[-2:]))
    codes = branch.codebook.search(branch.projection(continuous))
    return {continuous_name(model): continuous, "semantic_features": branch.features(codes)}
