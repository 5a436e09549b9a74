"""A network that took no part in training gives its opinion of reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semhitok.data.sources import ImageSource
from semhitok.model.lpips import LPIPS, SqueezeNet

JUDGE_SIDE = 224
"""Pixels to which both pictures are brought before the judge classifies them."""

IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Opinion:
    """Of a batch of pairs."""

    figures: dict[str, Float[Tensor, b]]
    original: Float[Tensor, "b 512"]
    """Features, for a Frechet distance."""
    reconstruction: Float[Tensor, "b 512"]


class Judge(nn.Module):
    """SqueezeNet 1.1 with ImageNet weights, and LPIPS on its trunk.

    What was trained against LPIPS-squeeze must not be graded by it.
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises:
        NotFoundError: the folder lacks one of the judge's two files.
        FormatError: a file is not what its name says.
        """
        super().__init__()
        self.network = SqueezeNet.load(folder)
        self.lpips = LPIPS.load(folder)

    def compare(
        self,
        original: Float[Tensor, "b 3 h w"],
        reconstruction: Float[Tensor, "b 3 h w"],
        labels: Int64[Tensor, b] | None = None,
    ) -> Opinion:
        """Figures of each pair of pictures in [0, 1].

        `lpips_squeeze` at the pictures' own size; at JUDGE_SIDE `judge_cosine` of the features and
        `judge_agreement`, 1 where the first guess is the same; and where `labels`, ImageNet-1k's,
        are given, `judge_top1` and `judge_top1_original`, 1 where the guess is right.
        """
        seen = [
            F.interpolate(x, (JUDGE_SIDE, JUDGE_SIDE), mode="bilinear", antialias=True)
            for x in (original, reconstruction)
        ]
        (first, scores), (second, rescored) = (self.network.classify(x) for x in seen)
        guesses = [scores.argmax(dim=1), rescored.argmax(dim=1)]
        figures = {
            "lpips_squeeze": self.lpips(original, reconstruction),
            "judge_cosine": F.cosine_similarity(first, second, dim=1),
            "judge_agreement": (guesses[0] == guesses[1]).float(),
        }
        if labels is not None:
            figures["judge_top1_original"] = (guesses[0] == labels).float()
            figures["judge_top1"] = (guesses[1] == labels).float()
        return Opinion(figures, first, second)


def imagenet_labels(source: ImageSource) -> Sequence[int] | None:
    """Labels that are ImageNet-1k's: all pictures have one, of a thousand classes."""
    names, labels = source.class_names(), source.labels()
    if names is None or labels is None or len(names) != IMAGENET_CLASSES or (labels < 0).any():
        return None
    found: list[int] = labels.tolist()
    return found
