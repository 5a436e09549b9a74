"""Memory and time of a large picture in tiles, and the error along the tiles' borders.

python benchmarks/large_pictures.py ../shared/data/kodak-test.parquet --size 2048
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

from semhitok import SemHiTok
from semhitok.data.sources import ImageSource, open_source
from semhitok.images import to_tensor
from semhitok.model.tiles import TILING, Tiling, plan

NEAR_PX = 4
SHELF_PX = 512
OFFSET_PX = 212
"""The first shelf and photo start before the picture: else seams of photos of 512 px would lie on
borders of tiles, and their error would count as the tiles'."""
BLOCK_PX = 256


def mosaic(source: ImageSource, size: int) -> Tensor:
    """Photos side by side on shelves, (1, 3, size, size); those at the edges are cut."""
    out = torch.zeros(1, 3, size, size)
    numbers = count()
    for top in range(-OFFSET_PX, size, SHELF_PX):
        left = -OFFSET_PX
        while left < size:
            photo = to_tensor(source.read(next(numbers) % len(source)))[:, :SHELF_PX]
            width = photo.shape[2]
            photo = photo[:, max(0, -top) : size - top, max(0, -left) : size - left]
            y, x = max(0, top), max(0, left)
            # A lower photo leaves black below it, as a frame would.
            out[0, :, y : y + photo.shape[1], x : x + photo.shape[2]] = photo
            left += width
    return out


def picture(source: ImageSource, size: int | None, patch_size: int) -> Tensor:
    """A mosaic, or the first picture as it is; cut to whole patches."""
    image = mosaic(source, size) if size else to_tensor(source.read(0))[None]
    height, width = (side // patch_size * patch_size for side in image.shape[-2:])
    return image[..., :height, :width]


def peak_gb() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def timed(name: str, work: Callable[[], Tensor]) -> Tensor:
    started = time.perf_counter()
    out = work()
    print(f"{name:8} {time.perf_counter() - started:8.1f} s   peak {peak_gb():.2f} GB", flush=True)
    return out


def near_borders(
    grid: tuple[int, int], patch_size: int, tiling: Tiling, scale: int, reach: int
) -> tuple[Tensor, Tensor]:
    """Rows and columns within `reach` values of a border; `scale` of them a patch."""
    tiles = plan(grid, patch_size, tiling)
    near = []
    for length, spans in zip(
        grid, ({t.rows for t in tiles}, {t.columns for t in tiles}), strict=True
    ):
        axis = torch.zeros(length * scale, dtype=torch.bool)
        for border in (span.first * scale for span in spans if span.first):
            axis[border - reach : border + reach] = True
        near.append(axis)
    return near[0], near[1]


def mean_error(
    decoded: Tensor, original: Tensor, chosen: Callable[[slice], Tensor]
) -> tuple[float, float]:
    """Mean absolute error, of 255, where `chosen(rows)` is true and elsewhere; by blocks of rows,
    since a mask and a difference of the whole picture would be as large as it is."""
    sums, counts = [0.0, 0.0], [0, 0]
    for top in range(0, original.shape[-2], BLOCK_PX):
        rows = slice(top, top + BLOCK_PX)
        error = (decoded[0, :, rows] - original[0, :, rows]).abs().mean(dim=0)
        mask = chosen(rows)
        for n, part in enumerate((mask, ~mask)):
            sums[n] += float(error[part].double().sum())
            counts[n] += int(part.sum())
    return 255 * sums[0] / max(1, counts[0]), 255 * sums[1] / max(1, counts[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="a picture, or anything that holds pictures")
    parser.add_argument("--size", type=int, help="side of a mosaic; else the first picture as is")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--whole", type=int, default=TILING.whole)
    parser.add_argument("--side", type=int, default=TILING.side)
    parser.add_argument("--margin", type=int, default=TILING.margin)
    parser.add_argument("--at-once", type=int, default=TILING.at_once)
    parser.add_argument("--only-memory", action="store_true", help="no second, shifted tiling")
    options = parser.parse_args()
    tiling = Tiling(
        whole=options.whole, side=options.side, margin=options.margin, at_once=options.at_once
    )

    model = SemHiTok.from_pretrained(options.model, parts=("encode", "decode")).eval()
    p = model.patch_size
    image = picture(open_source(options.data), options.size, p)
    grid = model.grid(*image.shape[-2:])
    tiles = plan(grid, p, tiling)
    print(f"{model.config.name}, {image.shape[-2]}x{image.shape[-1]} px, {tiling}")
    print(f"{len(tiles)} tiles; peak with model and picture {peak_gb():.2f} GB", flush=True)
    ids = timed("encode", lambda: model.encode(image, tiling=tiling))
    decoded = timed("decode", lambda: model.decode(ids, tiling=tiling))

    rows, columns = near_borders(grid, p, tiling, p, NEAR_PX)
    near, elsewhere = mean_error(decoded, image, lambda r: rows[r, None] | columns)
    print(f"error of 255: {near:.3f} within {NEAR_PX} px of a border, {elsewhere:.3f} elsewhere")
    if options.only_memory or len(tiles) == 1:
        return

    # The same picture without its first half a tile: what was a border is now inside one.
    margin = -(-tiling.margin // p)
    off = (tiling.side // p - 2 * margin) // 2
    part = image[..., off * p :, off * p :]
    shifted = timed("encode", lambda: model.encode(part, tiling=tiling))
    again = timed("decode", lambda: model.decode(shifted, tiling=tiling))
    # Its own new edge saw less than before: leave a margin out there.
    inside = slice(margin * p, None)
    part, again = part[..., inside, inside], again[..., inside, inside]
    before = decoded[..., off * p :, off * p :][..., inside, inside]
    rest = (grid[0] - off, grid[1] - off)
    own = near_borders(rest, p, tiling, p, NEAR_PX)
    r0, c0 = (axis[off * p :][inside] for axis in (rows, columns))
    r1, c1 = (axis[inside] for axis in own)

    def old_only(r: slice) -> Tensor:
        return (r0[r, None] | c0) & ~(r1[r, None] | c1)

    first, second = (mean_error(x, part, old_only)[0] for x in (before, again))
    print(f"the same pixels: {first:.3f} at the border, {second:.3f} where it is inside a tile")

    r0, c0 = (axis[off + margin :] for axis in near_borders(grid, p, tiling, 1, 1))
    r1, c1 = (axis[margin:] for axis in near_borders(rest, p, tiling, 1, 1))
    beside = (r0 | r1)[:, None] | (c0 | c1)
    kept = slice(margin, None)
    differ = (ids[0, off:, off:] != shifted[0])[kept, kept]
    semantic, _ = model.split(ids[0, off:, off:])
    other, _ = model.split(shifted[0])
    meaning = (semantic != other)[kept, kept]
    for name, flips in (("ids", differ), ("semantic codes", meaning)):
        shares = [100 * float(flips[mask].float().mean()) for mask in (beside, ~beside)]
        print(
            f"{name} that the shifted tiling changes: {shares[0]:.2f} % beside a border, "
            f"{shares[1]:.2f} % elsewhere"
        )


if __name__ == "__main__":
    main()
