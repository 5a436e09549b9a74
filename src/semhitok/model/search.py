"""Nearest code, flat and per parent: exact, and in bounded memory (contract C4).

A fast fp32 pass finds the best code and by how much it wins. Where the lead is within what rounding
can do, the few patches concerned are searched again in float64. So the result is the true nearest
code of the given fp32 numbers, ties to the smallest index, on every machine.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

ROW_TILE = 1024
CODE_TILE = 2048
EXACT_VALUES = 1 << 22
"""Numbers held at once while patches are searched again in float64 (32 MiB)."""
GATHER_VALUES = 1 << 23
"""Numbers of gathered sub-codebooks held at once (32 MiB)."""


@torch.no_grad()
def nearest(x: Float[Tensor, "n d"], codes: Float[Tensor, "k d"]) -> Int64[Tensor, "n"]:
    """Index of the code at the smallest Euclidean distance to each row of `x`."""
    x, codes = x.float(), codes.float()
    indices = torch.empty(len(x), dtype=torch.int64, device=x.device)
    half_norms = codes.square().sum(-1) / 2
    largest = codes.norm(dim=-1).max()
    for start in range(0, len(x), ROW_TILE):
        rows = x[start : start + ROW_TILE]
        best, second, index = _best_two(rows, codes, half_norms)
        doubtful = best - second <= _rounding(x.shape[1], rows.norm(dim=-1) * largest + largest**2)
        index[doubtful] = _nearest_exact(rows[doubtful], codes)
        indices[start : start + ROW_TILE] = index
    return indices


@torch.no_grad()
def nearest_in_parent(
    x: Float[Tensor, "n d"], parents: Int64[Tensor, "n"], table: Float[Tensor, "k m d"]
) -> Int64[Tensor, "n"]:
    """Index of the nearest among the m codes of each row's own parent, and of no other."""
    if len(table) == 1:  # one codebook for all: nothing to gather
        return nearest(x, table[0])
    x, table = x.float(), table.float()
    m, d = table.shape[1:]
    indices = torch.empty(len(x), dtype=torch.int64, device=x.device)
    step = max(1, GATHER_VALUES // (m * d))
    for start in range(0, len(x), step):
        rows, own = x[start : start + step], table[parents[start : start + step]]
        # x.c - |c|^2/2 is largest where the distance is smallest.
        norms = own.square().sum(-1)
        scores = torch.baddbmm(norms[..., None], own, rows[..., None], beta=-0.5)[..., 0]
        best, index = scores.max(dim=1)
        second = _runner_up(scores, index)
        largest = norms.amax(dim=1)
        doubtful = best - second <= _rounding(d, rows.norm(dim=-1) * largest.sqrt() + largest)
        index[doubtful] = _nearest_exact(rows[doubtful], own[doubtful])
        indices[start : start + step] = index
    return indices


def _best_two(
    rows: Float[Tensor, "n d"], codes: Float[Tensor, "k d"], half_norms: Float[Tensor, "k"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Int64[Tensor, "n"]]:
    """Best and second-best score x.c - |c|^2/2 over all tiles of codes, and the best's index."""
    best = rows.new_full((len(rows),), -torch.inf)
    second = best.clone()
    index = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for start in range(0, len(codes), CODE_TILE):
        tile = slice(start, start + CODE_TILE)
        scores = torch.addmm(half_norms[tile], rows, codes[tile].T, beta=-1)
        tile_best, tile_index = scores.max(dim=1)
        tile_second = _runner_up(scores, tile_index)
        second = torch.maximum(torch.maximum(second, tile_second), torch.minimum(best, tile_best))
        index = torch.where(tile_best > best, tile_index + start, index)
        best = torch.maximum(best, tile_best)
    return best, second, index


def _runner_up(scores: Float[Tensor, "n k"], winner: Int64[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Largest score but for the winner's; overwrites the winner's place in `scores`."""
    return scores.scatter_(1, winner[:, None], -torch.inf).amax(dim=1)


def _rounding(d: int, magnitude: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """How far two fp32 scores of d products each can be from their true difference."""
    return (2 * d + 8) * torch.finfo(torch.float32).eps * magnitude


def _nearest_exact(
    rows: Float[Tensor, "n d"], codes: Float[Tensor, "*n k d"]
) -> Int64[Tensor, "n"]:
    """Smallest index at the smallest float64 distance; codes are shared (k, d) or own (n, k, d)."""
    k, d = codes.shape[-2:]
    chosen = [torch.empty(0, dtype=torch.int64, device=rows.device)]
    step = max(1, EXACT_VALUES // (k * d))
    order = torch.arange(k, device=rows.device)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        own = codes[part] if codes.ndim == 3 else codes
        distances = (rows[part].double()[:, None] - own.double()).square().sum(-1)
        nearest = distances == distances.amin(dim=1, keepdim=True)
        chosen.append(torch.where(nearest, order, k).amin(dim=1))
    return torch.cat(chosen)
