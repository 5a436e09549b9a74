"""How much a feature knows of its picture's class: linear and nearest-neighbour probes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from semhitok.errors import DataError

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Candidates for the weight of |W|^2 / 2 beside the mean cross-entropy, strongest first."""

MAX_ITERATIONS = 100
MIN_PICTURES = 10
TEMPERATURE = 0.07
"""Of the neighbours' votes; DINO's."""


def pooled(grids: Float[Tensor, "b h w d"]) -> Float[Tensor, "b d"]:
    """The mean over the grid: one vector a picture."""
    return grids.mean(dim=(1, 2))


def linear_probe(
    train_x: Float[Tensor, "n d"],
    train_y: Int64[Tensor, "n"],
    val_x: Float[Tensor, "k d"],
    val_y: Int64[Tensor, "k"],
) -> float:
    """Accuracy in [0, 1] on `val` of multinomial logistic regression fitted to `train`.

    Each feature is standardised by its mean and deviation on `train`. The L2 penalty is the best
    of PENALTIES on a fifth of `train` held out at random (seeded); then all of `train` is fitted.
    Labels are any integers; a class that `train` lacks is always missed.

    Raises:
        DataError: fewer than MIN_PICTURES training pictures, one class only, or no val pictures.
    """
    _check(train_y, val_y)
    classifier = LinearClassifier.fit(train_x, train_y)
    predicted = classifier.classes[classifier.scores(val_x).argmax(dim=1)]
    return float((predicted == val_y).double().mean())


@dataclass(frozen=True)
class LinearClassifier:
    """Multinomial logistic regression on standardised features."""

    classes: Int64[Tensor, "c"]
    """The labels that it knows, in order."""
    mean: Float[Tensor, "d"]
    scale: Float[Tensor, "d"]
    weights: Float[Tensor, "c d_and_one"]
    penalty: float
    """The one that was chosen."""

    @classmethod
    def fit(cls, x: Float[Tensor, "n d"], y: Int64[Tensor, "n"]) -> LinearClassifier:
        """As `linear_probe` says."""
        classes, targets = torch.unique(y, return_inverse=True)
        deviation, mean = torch.std_mean(x.float(), dim=0)
        # A feature that never changes says nothing; nor must it be divided by nearly nothing.
        scale = torch.where(deviation > 1e-6 * (1 + mean.abs()), 1 / deviation, 0.0)
        train = (x.float() - mean) * scale
        penalty = _best_penalty(train, targets, len(classes))
        weights = _fit(train, targets, penalty, train.new_zeros(len(classes), x.shape[1] + 1))
        return cls(classes, mean, scale, weights, penalty)

    def scores(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Log-probabilities of `classes`, but for a constant a row."""
        return _scores((x.float() - self.mean) * self.scale, self.weights)


def knn_accuracy(
    train_x: Float[Tensor, "n d"],
    train_y: Int64[Tensor, "n"],
    val_x: Float[Tensor, "k d"],
    val_y: Int64[Tensor, "k"],
    k: int = 20,
) -> float:
    """Accuracy in [0, 1] of the vote of the `k` nearest training pictures by cosine.

    Each votes with exp(cosine / TEMPERATURE). All are asked where `train` has fewer than `k`.

    Raises:
        DataError: as `linear_probe`.

    Reference: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination, arXiv:1805.01978.
    """
    _check(train_y, val_y)
    classes, targets = torch.unique(train_y, return_inverse=True)
    train, val = F.normalize(train_x.float()), F.normalize(val_x.float())
    correct = 0
    for x, y in zip(torch.split(val, 1024), torch.split(val_y, 1024), strict=True):
        cosine, neighbours = (x @ train.T).topk(min(k, len(train)), dim=1)
        votes = x.new_zeros(len(x), len(classes)).scatter_add_(
            1, targets[neighbours], (cosine / TEMPERATURE).exp()
        )
        correct += int((classes[votes.argmax(dim=1)] == y).sum())
    return correct / len(val)


def _check(train_y: Tensor, val_y: Tensor) -> None:
    check_training(train_y)
    if len(val_y) == 0:
        raise DataError("probe: no val pictures; at least one is needed")


def check_training(train_y: Int64[Tensor, "n"]) -> None:
    """Raises:
    DataError: too few pictures to fit to, or one class only.
    """
    if len(train_y) < MIN_PICTURES or len(torch.unique(train_y)) < 2:
        raise DataError(
            f"probe: {len(train_y)} training pictures of {len(torch.unique(train_y))} classes; "
            f"at least {MIN_PICTURES} of 2 classes are needed"
        )


def _best_penalty(x: Float[Tensor, "n d"], y: Int64[Tensor, "n"], num_classes: int) -> float:
    held_out = _fifth(len(y))
    weights = x.new_zeros(num_classes, x.shape[1] + 1)
    hits = {}
    for penalty in PENALTIES:  # each starts from the fit before, which is near
        weights = _fit(x[~held_out], y[~held_out], penalty, weights)
        hits[penalty] = int((_scores(x[held_out], weights).argmax(dim=1) == y[held_out]).sum())
    return max(PENALTIES, key=hits.__getitem__)  # the strongest among equals


def _fifth(count: int) -> Bool[Tensor, "n"]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order < count // 5


def _fit(
    x: Float[Tensor, "n d"],
    y: Int64[Tensor, "n"],
    penalty: float,
    start: Float[Tensor, "c d_and_one"],
) -> Float[Tensor, "c d_and_one"]:
    """Weights, the bias as last column, of the smallest penalised cross-entropy."""
    weights = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(_scores(x, weights), y)
        value = value + 0.5 * penalty * weights[:, :-1].square().sum()
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weights.detach()


def _scores(x: Tensor, weights: Tensor) -> Tensor:
    return torch.addmm(weights[:, -1], x, weights[:, :-1].T)
