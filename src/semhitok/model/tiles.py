"""Large pictures in overlapping tiles of whole patches: attention over all patches of a huge one
would take forever, and its activations more memory than there is.

Each tile goes through the network alone, and of each only the inner part is kept. Where an axis is
longer than a tile, tiles are full-size, and the last is shifted back to end with the picture. So
all have one shape, and what stands far from the end does not depend on where the end is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from semhitok.errors import RangeError


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How large pictures are cut; lengths in pixels, brought to whole patches by `plan`."""

    whole: int = 768
    """Longest side of a picture that is not cut: Kodak's 768x512 stays as it is."""
    side: int = 384
    """Of a tile: near the 64 to 256 px that models learn from, and not mostly margin."""
    margin: int = 64
    """Context that is encoded or decoded around what is kept, where there is a neighbour."""
    at_once: int = 1
    """Tiles in a batch: one keeps a CPU busy. More cost memory, and change no id."""


TILING = Tiling()


@dataclass(frozen=True)
class Span:
    """A tile along one axis of the grid, in patches: [start, stop) is seen, [first, last) kept."""

    start: int
    stop: int
    first: int
    last: int

    def seen(self, scale: int = 1) -> slice:
        """Where the tile lies in the picture, `scale` values a patch."""
        return slice(self.start * scale, self.stop * scale)

    def kept(self, scale: int = 1) -> slice:
        """Where its inner part lies in the picture."""
        return slice(self.first * scale, self.last * scale)

    def inner(self, scale: int = 1) -> slice:
        """Where its inner part lies in the tile."""
        return slice((self.first - self.start) * scale, (self.last - self.start) * scale)


@dataclass(frozen=True)
class Tile:
    """A rectangle of the grid."""

    rows: Span
    columns: Span


def spans(length: int, side: int, margin: int) -> list[Span]:
    """Tiles along an axis of `length` patches.

    Two neighbours overlap by at least twice the margin and meet in the middle of the overlap.

    Args:
        side: patches of a tile, more than twice the margin.
        margin: patches of context.
    """
    if length <= side:
        return [Span(0, length, 0, length)]
    starts = [*range(0, length - side, side - 2 * margin), length - side]
    borders = [(a + side + b) // 2 for a, b in zip(starts, starts[1:], strict=False)]
    edges = zip(starts, [0, *borders], [*borders, length], strict=True)
    return [Span(start, start + side, first, last) for start, first, last in edges]


def plan(grid: tuple[int, int], patch_size: int, tiling: Tiling = TILING) -> list[Tile]:
    """Tiles of a grid, row by row: their kept parts cover each patch once.

    Raises:
        RangeError: tiles that are all margin, or none at once.
    """
    side, margin = tiling.side // patch_size, -(-tiling.margin // patch_size)
    if margin < 0 or side <= 2 * margin:
        raise RangeError(
            f"tiles of {tiling.side} px with a margin of {tiling.margin} px keep nothing in "
            f"patches of {patch_size} px; side must be more than two margins, margin at least 0"
        )
    if tiling.at_once < 1:
        raise RangeError(f"at_once is {tiling.at_once}; it must be at least 1")
    if max(grid) * patch_size <= tiling.whole:
        side = max(grid)
    rows, columns = (spans(length, side, margin) for length in grid)
    return [Tile(row, column) for row in rows for column in columns]


def in_tiles(
    run: Callable[[Tensor], Tensor],
    tensor: Tensor,
    grid: tuple[int, int],
    patch_size: int,
    tiling: Tiling = TILING,
) -> Tensor:
    """What `run` makes of `tensor`, tile by tile where there are several.

    Memory beyond the tensor and the result is that of `at_once` tiles.

    Args:
        run: any (b, ..., y, x) to (b, ..., y', x'), with a fixed number of rows and columns a patch
            on either side. Pictures of one tile are given to it as they are, the whole batch.
        tensor: (b, ..., y, x), pictures or ids.
    """
    tiles = plan(grid, patch_size, tiling)
    if len(tiles) == 1 or not len(tensor):
        return run(tensor)
    scale = tensor.shape[-1] // grid[1]
    pieces = [(n, tile) for n in range(len(tensor)) for tile in tiles]
    out: Tensor | None = None
    for start in range(0, len(pieces), tiling.at_once):
        batch = pieces[start : start + tiling.at_once]
        views = [tensor[n][..., t.rows.seen(scale), t.columns.seen(scale)] for n, t in batch]
        done = run(torch.stack(views))
        finer = done.shape[-1] * scale // views[0].shape[-1]
        if out is None:
            sides = (length * finer for length in grid)
            out = done.new_empty(len(tensor), *done.shape[1:-2], *sides)
        for (n, tile), piece in zip(batch, done, strict=True):
            kept = piece[..., tile.rows.inner(finer), tile.columns.inner(finer)]
            out[n][..., tile.rows.kept(finer), tile.columns.kept(finer)] = kept
    assert out is not None
    return out
