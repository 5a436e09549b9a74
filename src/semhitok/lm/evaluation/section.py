"""What one evaluation found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

Interval = Callable[[Float[Tensor, " n"], Float[Tensor, " n"]], dict[str, float] | None]
"""From what is counted in each item, and what it is a share of there, to the ratio of both sums
with its interval; None where it is a share of nothing."""
Advance = Callable[[int], None]
"""Is told how many items are done."""


def silent(done: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Section:
    """A part of a report."""

    figures: dict[str, Any]
    """Numbers and intervals by name; groups are dicts."""
    protocol: dict[str, Any]
    """How they were measured (contract C12)."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Each question with its answer."""
    failed: dict[str, str] = field(default_factory=dict)
    """Pictures that could not be read, and why."""

    def to_record(self) -> dict[str, Any]:
        """Figures, failures if any, and protocol, for JSON."""
        failed = {"failed": self.failed} if self.failed else {}
        return {**self.figures, **failed, "protocol": self.protocol}
