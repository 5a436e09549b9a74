"""What a unified model learns from: tokens, and what counts among them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

Span = tuple[int, int]
"""Start and stop."""
IGNORED = -100
"""The label of a token that is not learned."""


@dataclass(frozen=True)
class Example:
    """A conversation or a text as tokens."""

    input_ids: Int64[Tensor, " t"]
    learned: tuple[Span, ...]
    """Runs of tokens that the model learns to write, in order."""
    dropped: Span | None = None
    """The text that a picture is drawn from; without it the example begins with the unconditional
    prompt. None where the example is no drawing."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def labels(self) -> Int64[Tensor, " t"]:
        """The tokens that are learned, and IGNORED elsewhere; the model shifts them."""
        labels = torch.full_like(self.input_ids, IGNORED)
        for start, stop in self.learned:
            labels[start:stop] = self.input_ids[start:stop]
        return labels

    def unconditional(self) -> Example:
        """The example without the text that a picture is drawn from, for classifier-free guidance.

        A drawing learns only what comes after that text.
        """
        if self.dropped is None:
            return self
        start, stop = self.dropped
        left = torch.cat([self.input_ids[:start], self.input_ids[stop:]])
        moved = tuple((a - (stop - start), b - (stop - start)) for a, b in self.learned)
        return Example(left, moved)


def runs(mask: Tensor) -> tuple[Span, ...]:
    """Where a mask (t,) is true, run by run."""
    edges = torch.diff(mask.int(), prepend=torch.zeros(1).int(), append=torch.zeros(1).int())
    starts, stops = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
    return tuple(zip(starts.tolist(), stops.tolist(), strict=True))
