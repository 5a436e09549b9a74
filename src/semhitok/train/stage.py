"""What the three stages share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semhitok.errors import RecipeError, near_matches

Losses = dict[str, Tensor]
"""Scalars by the name that they are logged with."""


@runtime_checkable
class StageTrainer(Protocol):
    """One stage: what it learns, and the state from which it goes on exactly."""

    name: str

    def begin(self, batches: Iterator[Tensor]) -> None:
        """Start from data; called once, and not again when a run goes on."""

    def step(self, images: Tensor, step: int) -> Losses:
        """One update from this rank's pictures; a pure function of state, pictures and step."""

    def finish(self) -> None:
        """Leave in the model what is to be saved."""

    def samples(self, images: Tensor) -> Tensor | None:
        """Reconstructions to look at, in [0, 1]; None where the stage paints nothing."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def weighted(losses: Losses, weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """Sum of the losses that have a weight.

    Raises:
        RecipeError: a weight names no loss.
    """
    for name in weights:
        if name not in losses:
            raise RecipeError(f"weights names {name!r}{near_matches(name, losses)}")
    return torch.stack([losses[name] * weight for name, weight in weights.items()]).sum()


@torch.no_grad()
def round_to_half(module: nn.Module) -> None:
    """Round floating-point state to float16 values, so that storing it so changes nothing."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half().to(tensor.dtype))


def usage(name: str, indices: Int64[Tensor, "n"], size: int) -> Losses:
    """Share of codes that this batch uses, and perplexity (exp of the entropy of their use)."""
    shares = torch.bincount(indices, minlength=size).float() / max(1, len(indices))
    entropy = torch.special.entr(shares).sum()
    return {f"{name}/usage": (shares > 0).float().mean(), f"{name}/perplexity": entropy.exp()}
