"""Nearest code, flat and per parent: exact, and in bounded memory (contract C4).

A fast fp32 pass finds the best code and by how much it wins. Where the lead is within what rounding
can do, the few patches concerned are searched again in float64. So the result is the true nearest
code of the given fp32 numbers, ties to the smallest index, on every machine.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from semhitok.model.precision import products_in

ROW_TILE = 1024
CODE_TILE = 2048
CODE_BLOCK = 64
"""Codes whose largest score stands for them all in the first pass; divides CODE_TILE."""
EXACT_VALUES = 1 << 22
"""Numbers held at once while patches are searched again in float64 (32 MiB)."""
GATHER_VALUES = 1 << 21
"""Numbers of gathered codes held at once (8 MiB)."""


@torch.no_grad()
def nearest(x: Float[Tensor, "n d"], codes: Float[Tensor, "k d"]) -> Int64[Tensor, "n"]:
    """Index of the code at the smallest Euclidean distance to each row of `x`."""
    with products_in(torch.float32, x.device):  # autocast would round every score
        return _nearest(x.float(), codes.float())


def _nearest(x: Float[Tensor, "n d"], codes: Float[Tensor, "k d"]) -> Int64[Tensor, "n"]:
    indices = torch.empty(len(x), dtype=torch.int64, device=x.device)
    norms = codes.norm(dim=-1)
    half_norms, largest = norms.square() / 2, norms.max()
    for start in range(0, len(x), ROW_TILE):
        rows = x[start : start + ROW_TILE]
        slack = _rounding(x.shape[1], rows.norm(dim=-1) * largest + largest**2)
        if len(codes) <= CODE_TILE:
            # x.c - |c|^2/2 is largest where the distance is smallest.
            scores = torch.addmm(half_norms, rows, codes.T, beta=-1)
            found = _decide(scores, slack, rows, codes)
        else:
            found = _nearest_by_blocks(rows, codes, half_norms, slack)
        indices[start : start + ROW_TILE] = found
    return indices


@torch.no_grad()
def nearest_in_parent(
    x: Float[Tensor, "n d"], parents: Int64[Tensor, "n"], table: Float[Tensor, "k m d"]
) -> Int64[Tensor, "n"]:
    """Index of the nearest among the m codes of each row's own parent, and of no other."""
    if len(table) == 1:  # one codebook for all: nothing to gather
        return nearest(x, table[0])
    with products_in(torch.float32, x.device):
        return _nearest_in_parent(x.float(), parents, table.float())


def _nearest_in_parent(
    x: Float[Tensor, "n d"], parents: Int64[Tensor, "n"], table: Float[Tensor, "k m d"]
) -> Int64[Tensor, "n"]:
    m, d = table.shape[1:]
    indices = torch.empty(len(x), dtype=torch.int64, device=x.device)
    step = max(1, GATHER_VALUES // (m * d))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        own = F.embedding(parents[part], table.flatten(1)).unflatten(1, (m, d))
        indices[part] = _nearest_of_own(x[part], own, own.square().sum(-1) / 2)
    return indices


def _nearest_by_blocks(
    rows: Float[Tensor, "n d"],
    codes: Float[Tensor, "k d"],
    half_norms: Float[Tensor, "k"],
    slack: Float[Tensor, "n"],
) -> Int64[Tensor, "n"]:
    """Nearest of many codes: find each row's best block of codes, then search in there.

    A maximum with its index takes longer than the matrix product, the maximum alone a tenth of it.
    """
    maxima = _block_maxima(rows, codes, half_norms)
    best = maxima.amax(dim=1, keepdim=True)
    # Nearly always one block a row.
    row, block = (maxima >= best - slack[:, None]).nonzero(as_tuple=True)
    found = torch.empty_like(row)
    step = max(1, GATHER_VALUES // (CODE_BLOCK * codes.shape[1]))
    places = torch.arange(CODE_BLOCK, device=rows.device)
    for start in range(0, len(row), step):
        part = slice(start, start + step)
        # The last block may be short: its last code then stands in it several times.
        names = (block[part, None] * CODE_BLOCK + places).clamp(max=len(codes) - 1)
        own = _nearest_of_own(rows[row[part]], F.embedding(names, codes), half_norms[names])
        found[part] = names.gather(1, own[:, None])[:, 0]
    distances = (rows[row].double() - codes[found].double()).square().sum(-1)
    least = distances.new_full((len(rows),), torch.inf).scatter_reduce(0, row, distances, "amin")
    found = torch.where(distances == least[row], found, len(codes))
    index = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    return index.scatter_reduce(0, row, found, "amin", include_self=False)


def _block_maxima(
    rows: Float[Tensor, "n d"], codes: Float[Tensor, "k d"], half_norms: Float[Tensor, "k"]
) -> Float[Tensor, "n blocks"]:
    """Largest score of each block of codes."""
    maxima = []
    # One buffer for all tiles: fresh memory for each costs page faults.
    buffer = rows.new_empty(len(rows) * CODE_TILE)
    for start in range(0, len(codes), CODE_TILE):
        tile = codes[start : start + CODE_TILE]
        scores = buffer[: len(rows) * len(tile)].view(len(rows), len(tile))
        norms = half_norms[start : start + CODE_TILE]
        torch.addmm(norms, rows, tile.T, beta=-1, out=scores)
        whole = len(tile) // CODE_BLOCK * CODE_BLOCK
        maxima.append(scores[:, :whole].unflatten(1, (-1, CODE_BLOCK)).amax(dim=2))
        if whole < len(tile):
            maxima.append(scores[:, whole:].amax(dim=1, keepdim=True))
    return torch.cat(maxima, dim=1)


def _nearest_of_own(
    rows: Float[Tensor, "n d"], own: Float[Tensor, "n m d"], half_norms: Float[Tensor, "n m"]
) -> Int64[Tensor, "n"]:
    """Index of the nearest among each row's own codes."""
    # A row times a matrix: seven times as fast on a CPU as the matrix times a column.
    scores = torch.baddbmm(half_norms[:, None], rows[:, None], own.transpose(1, 2), beta=-1)[:, 0]
    largest = 2 * half_norms.amax(dim=1)
    slack = _rounding(rows.shape[1], rows.norm(dim=-1) * largest.sqrt() + largest)
    return _decide(scores, slack, rows, own)


def _decide(
    scores: Float[Tensor, "n k"],
    slack: Float[Tensor, "n"],
    rows: Float[Tensor, "n d"],
    codes: Float[Tensor, "*n k d"],
) -> Int64[Tensor, "n"]:
    """Index of the largest score; by float64 where a second is within `slack`. Spoils `scores`."""
    best, index = scores.max(dim=1)
    doubtful = best - _runner_up(scores, index) <= slack
    own = codes[doubtful] if codes.ndim == 3 else codes
    index[doubtful] = _nearest_exact(rows[doubtful], own)
    return index


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
