"""k-means, which starts codebooks and bounds what any codebook of that size could do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from semhitok.model.search import nearest

SEEDING_ROWS = 1 << 16


@torch.no_grad()
def kmeans(
    rows: Float[Tensor, "n d"],
    num_codes: int,
    *,
    iterations: int,
    generator: torch.Generator,
    unit: bool = False,
) -> Float[Tensor, "k d"]:
    """k-means with k-means++ seeding (on at most 65,536 of the rows); empty clusters are reseeded.

    Args:
        rows: at least `num_codes` of them.
        unit: keep centres at length one (spherical k-means).
    """
    if len(rows) < num_codes:
        raise ValueError(f"{len(rows)} rows for {num_codes} codes")
    rows = rows.float()
    sample = rows[torch.randperm(len(rows), generator=generator)[:SEEDING_ROWS].to(rows.device)]
    codes = _seed(sample, num_codes, generator)
    for _ in range(iterations):
        indices = nearest(rows, codes)
        counts = torch.bincount(indices, minlength=num_codes)
        sums = torch.zeros_like(codes).index_add_(0, indices, rows)
        codes = sums / counts.clamp_min(1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        spare = torch.randint(len(rows), (len(empty),), generator=generator).to(rows.device)
        codes[empty] = rows[spare]
        if unit:
            codes = F.normalize(codes, dim=-1)
    return codes


def _seed(
    rows: Float[Tensor, "n d"], num_codes: int, generator: torch.Generator
) -> Float[Tensor, "k d"]:
    """k-means++: each next centre is a row drawn in proportion to its squared distance."""
    chosen = [int(torch.randint(len(rows), (1,), generator=generator))]
    norms = rows.square().sum(-1)
    distances = torch.full_like(norms, torch.inf)
    draws = torch.rand(num_codes, generator=generator, dtype=torch.float64)
    for draw in draws[1:]:
        centre = rows[chosen[-1]]
        to_centre = (norms - 2 * (rows @ centre) + centre.square().sum()).clamp_min(0)
        distances = torch.minimum(distances, to_centre)
        cumulated = distances.double().cumsum(0)
        target = (draw.to(rows.device) * cumulated[-1]).reshape(1)
        place = int(torch.searchsorted(cumulated, target, right=True))
        chosen.append(min(place, len(rows) - 1))
    return rows[chosen].clone()
