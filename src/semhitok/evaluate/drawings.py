"""Pictures that a model drew of classes, graded by a classifier that was trained apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from semhitok.data.sources import ImageSource
from semhitok.errors import DataError, SemHiTokError
from semhitok.evaluate.folder import extremes
from semhitok.evaluate.judge import JUDGE_SIDE
from semhitok.evaluate.metrics import frechet_distance, summarize
from semhitok.evaluate.probes import LinearClassifier, check_training
from semhitok.evaluate.semantics import check_labels
from semhitok.evaluate.sheets import contact_sheet, with_headings
from semhitok.images import to_tensor
from semhitok.model.lpips import SqueezeNet, lpips_hash

BATCH_SIZE = 32
TOP = 5

Prepare = Callable[[Image.Image], Float[Tensor, "3 h w"]]
"""Brings a photo to the size of the model's pictures, as it saw them in training."""


@dataclass(frozen=True)
class Photos:
    """Labelled photos as the judge sees them."""

    name: str
    fingerprint: str
    features: Float[Tensor, "n 512"]
    labels: Int64[Tensor, " n"]
    failed: dict[str, str]

    def describe(self) -> dict[str, Any]:
        """For protocols."""
        return {
            "name": self.name,
            "pictures": len(self.labels),
            "failed": len(self.failed),
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True)
class Grades:
    """Of a set of pictures."""

    figures: dict[str, Any]
    own: list[float]
    """The classifier's probability of each picture's class; empty where they have none."""


def class_names(train: ImageSource, val: ImageSource) -> list[str]:
    """The classes of both, by label.

    Raises:
        DataError: no labels, no class names, or not the same ones.
    """
    found = []
    for source in (train, val):
        check_labels(source)
        names = source.class_names()
        if names is None:
            raise DataError(f"{source.name}: has labels but no class names; drawings need names")
        found.append(names)
    if found[0] != found[1]:
        odd = sorted(set(found[0]) ^ set(found[1])) or ["their order"]
        raise DataError(
            f"{train.name} and {val.name} have different classes ({odd[0]}); give two splits of "
            "one data set"
        )
    return found[0]


class Grader:
    """A classifier on the judge's features, fitted to photos, and the photos to compare with.

    The judge (SqueezeNet 1.1, ImageNet) took no part in training. Pictures of the model's size are
    brought to JUDGE_SIDE, and multinomial logistic regression is fitted to its pooled features.
    """

    def __init__(
        self,
        folder: str | Path,
        train: ImageSource,
        val: ImageSource,
        prepare: Prepare,
        *,
        device: torch.device | str = "cpu",
        advance: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Args:
            folder: of the judge's weights.
            prepare: brings a photo to the model's size.

        Raises:
            NotFoundError, FormatError: the judge's files are missing or damaged.
            DataError: no labels, other classes in `val`, or too few photos to fit to.
        """
        self.names = class_names(train, val)
        self.weights = lpips_hash(folder)
        self.network = SqueezeNet.load(folder).to(device)
        self.device = torch.device(device)
        self.train = self._photos(train, prepare, advance)
        check_training(self.train.labels)
        self.val = self._photos(val, prepare, lambda done: advance(len(train) + done))
        self.classifier = LinearClassifier.fit(self.train.features, self.train.labels)

    def grade_photos(self) -> Grades:
        """The classifier's own accuracy on the validation split, and how far the splits are apart:
        what drawings are held against."""
        return self._grade(self.val.features, self.val.labels, self.train.features)

    def grade(self, pictures: Iterable[Image.Image], labels: Sequence[int] | None) -> Grades:
        """Figures: `top1` and `top5` of the classifier where there are labels, `fd_judge` to the
        validation split (no rFID: the judge's features).

        Raises:
            DataError: fewer than two pictures.
        """
        features = self._features(map(to_tensor, pictures))
        wanted = None if labels is None else torch.tensor(labels)
        return self._grade(features, wanted, features)

    def describe(self) -> dict[str, Any]:
        """For protocols."""
        return {
            "classifier": "multinomial logistic regression on the judge's pooled features, "
            f"standardised, L2 penalty {self.classifier.penalty:g} (of a fifth held out)",
            "judge": f"SqueezeNet 1.1 (ImageNet-1k), no part in training; weights with its LPIPS "
            f"heads {self.weights}; pictures resized to {JUDGE_SIDE} px, bilinear",
            "classes": len(self.names),
            "train": self.train.describe(),
            "val": self.val.describe(),
            "fd_judge": "Frechet distance of those features to the validation split's; of `photos` "
            "the training split's to them. It depends on how many pictures there are",
        }

    def _grade(self, features: Tensor, labels: Tensor | None, far: Tensor) -> Grades:
        figures: dict[str, Any] = {"pictures": len(features)}
        own: list[float] = []
        if labels is not None:
            log_probs = F.log_softmax(self.classifier.scores(features), dim=1)
            # A class without a training photo has no column, and so no probability.
            known = labels[:, None] == self.classifier.classes
            own = (log_probs.exp() * known).sum(dim=1).tolist()
            best = log_probs.topk(min(TOP, log_probs.shape[1]), dim=1).indices
            hits = self.classifier.classes[best] == labels[:, None]
            figures["top1"] = summarize(hits[:, 0].float())
            figures[f"top{TOP}"] = summarize(hits.any(dim=1).float())
        figures["fd_judge"] = frechet_distance(far, self.val.features)
        return Grades(figures, own)

    def _photos(
        self, source: ImageSource, prepare: Prepare, advance: Callable[[int], None]
    ) -> Photos:
        labels, failed = check_labels(source), dict[str, str]()
        kept: list[int] = []

        def images() -> Iterable[Tensor]:
            for index in range(len(source)):
                advance(index + 1)
                try:
                    image = prepare(source.read(index)) if labels[index] >= 0 else None
                except SemHiTokError as error:
                    failed[source.key(index)] = str(error).removeprefix(f"{source.key(index)}: ")
                    continue
                if image is not None:
                    kept.append(int(labels[index]))
                    yield image

        features = self._features(images())
        return Photos(source.name, source.fingerprint(), features, torch.tensor(kept), failed)

    @torch.no_grad()
    def _features(self, images: Iterable[Float[Tensor, "3 h w"]]) -> Float[Tensor, "n 512"]:
        found, batch = [torch.empty(0, 512)], list[Tensor]()
        size = (JUDGE_SIDE, JUDGE_SIDE)

        def flush() -> None:
            pixels = torch.stack(batch).to(self.device)
            resized = F.interpolate(pixels, size, mode="bilinear", antialias=True)
            found.append(self.network.classify(resized)[0].cpu())
            batch.clear()

        for image in images:
            batch.append(image)
            if len(batch) == BATCH_SIZE:
                flush()
        if batch:
            flush()
        return torch.cat(found)


def sample_sheet(
    picture: Callable[[int], Image.Image], names: Sequence[str], own: Sequence[float]
) -> Image.Image:
    """The best, median and worst pictures by the classifier's probability of their class.

    Args:
        picture: the picture of a number.
        names: what each picture is to show.
    """
    order = sorted(range(len(own)), key=lambda number: -own[number])
    sheets = {
        f"{group}, by the probability of the class": contact_sheet(
            [[(picture(n), f"{names[n]}: {own[n]:.1%}") for n in places]], cell=192
        )
        for group, places in extremes(order).items()
    }
    return with_headings(sheets)
