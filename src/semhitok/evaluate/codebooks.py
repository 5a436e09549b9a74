"""How a tokenizer uses its codes, from the index grids of many pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64
from torch import Tensor

from semhitok.errors import DataError, IdError


@dataclass(frozen=True, kw_only=True)
class CodebookStatistics:
    """Use of the K semantic codes, and of the m pixel codes under each of them.

    Entropies are of the counts as they are, in bits: with few patches they are too low, and so
    is every share of codes seen. `patches` says how many there were.
    """

    patches: int
    semantic_usage: float
    """Share of the K semantic codes that were seen."""
    semantic_dead: int
    """Semantic codes that were never seen."""
    semantic_entropy: float
    semantic_perplexity: float
    """2 ** semantic_entropy: as many codes used evenly would have that entropy."""
    pixel_entropy: float
    """Entropy of the pixel code when the semantic code is known."""
    joint_entropy: float
    """Entropy of the id; semantic_entropy + pixel_entropy."""
    flat_usage: float
    """Share of all K * m ids that were seen."""
    children_mean: float
    """Distinct pixel codes of a parent, averaged over the semantic codes seen."""
    children_median: float
    children_share: float
    """children_mean / m."""
    frequent_parents: int
    """Semantic codes with at least m patches, which could have shown all their pixel codes."""
    frequent_children_share: float | None
    """Share of the m pixel codes that a frequent parent used, on average; None without one."""

    @classmethod
    def from_counts(cls, counts: Int64[Tensor, "K m"]) -> CodebookStatistics:
        """Statistics of patches counted by semantic code (row) and pixel code (column).

        Raises:
            DataError: all counts are zero.
        """
        if not counts.any():
            raise DataError("no patches were counted; at least one picture is needed")
        num_semantic, num_pixel = counts.shape
        per_parent = counts.sum(dim=1)
        seen = per_parent > 0
        children = (counts > 0).sum(dim=1)
        frequent = per_parent >= num_pixel
        semantic_entropy, joint_entropy = _entropy_bits(per_parent), _entropy_bits(counts)
        children_seen = children[seen].double()
        return cls(
            patches=int(counts.sum()),
            semantic_usage=int(seen.sum()) / num_semantic,
            semantic_dead=int((~seen).sum()),
            semantic_entropy=semantic_entropy,
            semantic_perplexity=2**semantic_entropy,
            pixel_entropy=joint_entropy - semantic_entropy,
            joint_entropy=joint_entropy,
            flat_usage=int(children.sum()) / (num_semantic * num_pixel),
            children_mean=float(children_seen.mean()),
            children_median=float(children_seen.quantile(0.5)),
            children_share=float(children_seen.mean()) / num_pixel,
            frequent_parents=int(frequent.sum()),
            frequent_children_share=(
                float(children[frequent].double().mean()) / num_pixel if frequent.any() else None
            ),
        )


class CodeCounter:
    """Counts of (semantic, pixel) pairs, and the codes themselves in two or three bytes a patch."""

    def __init__(self, num_semantic: int, num_pixel: int) -> None:
        self.num_semantic, self.num_pixel = num_semantic, num_pixel
        self.counts = torch.zeros(num_semantic, num_pixel, dtype=torch.int64)
        self.seen: list[tuple[bytes, bytes]] = []

    def update(self, semantic: Int64[Tensor, "*grid"], pixel: Int64[Tensor, "*grid"]) -> None:
        """Count every patch of the grids; any shape, the same for both.

        Raises:
            IdError: a code is outside its codebook.
        """
        _check_range("semantic", semantic, self.num_semantic)
        _check_range("pixel", pixel, self.num_pixel)
        pairs, times = torch.unique(semantic * self.num_pixel + pixel, return_counts=True)
        self.counts.view(-1).index_add_(0, pairs.cpu(), times.cpu())

        self.seen.append((_column(semantic, self.num_semantic), _column(pixel, self.num_pixel)))

    def zstd_bytes(self) -> int:
        """All codes as token files store them: a column each, in few bytes, zstd-compressed."""
        columns = (b"".join(column) for column in zip(*self.seen, strict=True))
        return sum(len(pa.compress(column, codec="zstd", asbytes=True)) for column in columns)

    def statistics(self) -> CodebookStatistics:
        """What was counted so far.

        Raises:
            DataError: nothing was.
        """
        return CodebookStatistics.from_counts(self.counts)


def _column(codes: Tensor, count: int) -> bytes:
    kind = np.uint8 if count <= 256 else np.uint16 if count <= 65536 else np.uint32
    return codes.cpu().numpy().astype(kind).tobytes()


def _check_range(name: str, codes: Tensor, count: int) -> None:
    wrong = codes[(codes < 0) | (codes >= count)]
    if len(wrong):
        raise IdError(f"{name} code {int(wrong[0])} does not exist; allowed: 0 to {count - 1}")


def _entropy_bits(counts: Tensor) -> float:
    seen = counts[counts > 0].double()
    total = float(seen.sum())
    return math.log2(total) - float((seen * seen.log2()).sum()) / total
