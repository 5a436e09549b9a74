"""How one token is drawn from scores: temperature, top-k and top-p, for each level by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from semhitok.errors import RangeError


@dataclass(frozen=True)
class Level:
    """How one level is drawn."""

    temperature: float = 1.0
    """0 takes the likeliest."""
    top_k: int | None = None
    """Only the k likeliest."""
    top_p: float = 1.0
    """Only the likeliest that together reach this share, the one that reaches it included."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise RangeError(f"temperature is {self.temperature}; it must be at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise RangeError(f"top_k is {self.top_k}; it must be at least 1, or None for all")
        if not 0 < self.top_p <= 1:
            raise RangeError(f"top_p is {self.top_p}; it must be in (0, 1]")

    def pick(
        self, scores: Float[Tensor, "n choices"], uniform: Float[Tensor, " n"]
    ) -> Int64[Tensor, " n"]:
        """One choice a row, of log-probabilities (any constant added) and numbers in [0, 1)."""
        if self.temperature == 0:
            return scores.argmax(dim=-1)
        # In float64: a sum over 200,000 choices must not lose the rare ones.
        probs = torch.softmax(scores.double() / self.temperature, dim=-1)
        order = None
        if self.top_k is not None or self.top_p < 1:
            probs, order = probs.sort(dim=-1, descending=True, stable=True)
            before = probs.cumsum(dim=-1) - probs
            keep = before < self.top_p
            if self.top_k is not None:
                keep[:, self.top_k :] = False
            probs = probs * keep
        reached = probs.cumsum(dim=-1)
        target = uniform.to(reached)[:, None] * reached[:, -1:]
        picked = torch.searchsorted(reached, target, right=True)
        return (picked if order is None else order.gather(1, picked))[:, 0]


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn: each level for itself."""

    text: Level = field(default_factory=Level)
    """Text ids, and the markers where the model may choose them."""
    semantic: Level = field(default_factory=Level)
    """Semantic codes, by their marginal p(i)."""
    pixel: Level = field(default_factory=Level)
    """Pixel codes, by p(j | i) of the semantic code that was drawn."""
    guidance: float = 1.0
    """Classifier-free guidance of image ids, of each level by itself; 1 is none."""

    @classmethod
    def of_images(
        cls,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        *,
        guidance: float = 1.0,
        text: Level | None = None,
    ) -> Sampling:
        """Both levels of an image id alike.

        Raises:
            RangeError: a setting that is impossible.
        """
        level = Level(temperature, top_k, top_p)
        return cls(text=text or Level(), semantic=level, pixel=level, guidance=guidance)

    @classmethod
    def likeliest(cls) -> Sampling:
        """No chance: at each level the likeliest."""
        certain = Level(temperature=0.0)
        return cls(text=certain, semantic=certain, pixel=certain)
