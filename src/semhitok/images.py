"""What all parts know of pictures: one resize policy, and tensors. `decoding` reads the files."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from semhitok.decoding import (
    MAX_PIXELS,
    Box,
    Photo,
    Picture,
    Size,
    picture_suffixes,
    read_image,
    read_photo,
    reason,
)
from semhitok.errors import ImageError, RangeError

__all__ = [
    "MAX_PIXELS",
    "ImagePolicy",
    "Picture",
    "picture_suffixes",
    "read_image",
    "reason",
    "resize_window",
    "to_array",
    "to_pil",
    "to_tensor",
]


# -------------------------------------------------------------------------------------- policy


CROPS = ("square", "grid", "random", "buckets")

RATIOS = ((1, 2), (9, 16), (2, 3), (3, 4), (1, 1), (4, 3), (3, 2), (16, 9), (2, 1))
"""Width to height of the buckets: those that photos have."""


@dataclass(frozen=True)
class ImagePolicy:
    """How a picture of any size becomes one that patches tile.

    Pillow's bicubic filter, which widens with the reduction (antialiased), brings the short side
    to `size`; then a part is cut out. A picture that has that short side already keeps its pixels.
    With buckets the picture is brought to cover one of a few sizes instead.
    """

    size: int | None
    """Short side in pixels; None keeps the picture's own (enlarged where below `multiple`). Of
    buckets the side of the square that has about as many pixels."""
    crop: Literal["square", "grid", "random", "buckets"]
    """Cut to the middle square; only each side down to a multiple of `multiple`; to a square at a
    random place; or to the bucket whose ratio is nearest."""
    multiple: int
    """Patch size in pixels."""
    seed: int | None = None
    """Of the random places, and for them only. A picture's place depends on it and the picture's
    key alone."""
    reduced: bool = False
    """`read` decodes large JPEGs at 1/2, 1/4 or 1/8, as long as twice the needed size is left.
    Against whole decoding, Kodak's photos at 128 px have a PSNR of 47 to 50 dB, none below 42, and
    6 to 8 % of `tiny`'s ids flip; storing them as JPEG of quality 90 flips 7 %
    (benchmarks/decode_jpeg.py)."""

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise RangeError(f"multiple is {self.multiple}; it must be at least 1")
        if self.crop not in CROPS:
            allowed = ", ".join(map(repr, CROPS))
            raise RangeError(f"crop is {self.crop!r}; allowed: {allowed}")
        if self.size is not None and (self.size < 1 or self.size % self.multiple):
            raise RangeError(
                f"size is {self.size}; it must be a positive multiple of {self.multiple} "
                "(the patch size), or None"
            )
        if self.size is None and self.crop == "buckets":
            raise RangeError("crop 'buckets' needs a size; give pixels, or use crop 'grid'")
        if self.size is None and self.reduced:
            raise RangeError("reduced decoding needs a size; give pixels, or leave it off")
        if self.seed is None and self.crop == "random":
            raise RangeError("crop 'random' needs a seed; give an integer, such as 0")
        if self.seed is not None and self.crop != "random":
            raise RangeError(
                f"seed is {self.seed}, but crop {self.crop!r} draws nothing; leave the seed out, "
                "or use crop 'random'"
            )

    def read(self, source: Picture, key: str) -> Image.Image:
        """The picture read, resized and cut.

        Args:
            key: names the picture in errors, and decides with `seed` on a random place.

        Raises:
            ImageError, NotFoundError, RangeError: as `read_image` and `apply`.
        """
        needed = (lambda size: self._sizes(size)[0]) if self.reduced else None
        return self._cut(read_photo(source, needed, name=key), key)

    def apply(self, image: Image.Image, key: str | None = None) -> Image.Image:
        """The RGB picture, as `read_image` gives it, resized and cut.

        Args:
            key: of the picture; only a random crop needs it.

        Raises:
            ImageError: so long and thin that the result would exceed MAX_PIXELS.
            RangeError: a random crop without a key.
        """
        return self._cut(Photo.whole(image), key)

    def describe(self) -> str:
        """One line for protocols."""
        side = f"short side to {self.size} (Pillow bicubic)" if self.size else "own size"
        cut = {
            "square": "centre crop square",
            "grid": "centre crop to whole patches",
            "random": f"random crop square by key and seed {self.seed}",
            "buckets": "centre crop",
        }[self.crop]
        if self.crop == "buckets":
            sizes = " ".join(f"{height}x{width}" for height, width in self.buckets())
            side = f"covers that of {sizes} (height x width) nearest in ratio (Pillow bicubic)"
        line = f"{side}, {cut}, multiples of {self.multiple}"
        return f"{line}, JPEG reduced to at least twice the size" if self.reduced else line

    def buckets(self) -> list[tuple[int, int]]:
        """(height, width) in pixels of each bucket, from tall to wide.

        For each of RATIOS the rectangle with the area of `size` x `size`, its sides rounded to
        patches; with few patches several ratios share one.

        Raises:
            RangeError: the policy has no size.
        """
        if self.size is None:
            raise RangeError("buckets need a size; give pixels")
        side = self.size / self.multiple
        sizes = {
            (
                self.multiple * max(1, round(side * math.sqrt(down / across))),
                self.multiple * max(1, round(side * math.sqrt(across / down))),
            ): None
            for across, down in RATIOS
        }
        return list(sizes)

    def _cut(self, photo: Photo, key: str | None) -> Image.Image:
        whole, cut = self._sizes(photo.size)
        if cut[0] * cut[1] > MAX_PIXELS:
            raise ImageError(
                f"{photo.size[0]}x{photo.size[1]} would become {cut[0]}x{cut[1]}, more than "
                f"{MAX_PIXELS:,} pixels; use a square crop or a smaller size"
            )
        left, top = self._place((whole[0] - cut[0], whole[1] - cut[1]), key)
        part = resize_window(photo.image, whole, (left, top, *cut), photo.frame)
        return part if part.mode == "RGB" else part.convert("RGB")

    def _sizes(self, size: Size) -> tuple[Size, Size]:
        """What the whole picture is resized to, and the size of the part that is cut out."""
        if self.crop == "buckets":
            height, width = min(self.buckets(), key=lambda bucket: _distance(size, bucket))
            return _cover(size, (width, height)), (width, height)
        short = self.size or max(min(size), self.multiple)
        whole = (_scaled(size[0], short, min(size)), _scaled(size[1], short, min(size)))
        across, down = (side // self.multiple * self.multiple for side in whole)
        if self.crop == "grid":
            return whole, (across, down)
        return whole, (min(across, down), min(across, down))

    def _place(self, free: Size, key: str | None) -> tuple[int, int]:
        """Left and top of the part, of which `free` pixels to the right and down are possible."""
        if self.crop != "random":
            return free[0] // 2, free[1] // 2
        if key is None:
            raise RangeError("crop 'random' needs the picture's key; give one to apply()")
        drawn = hashlib.sha256(f"{self.seed}\0{key}".encode("utf-8", "surrogatepass")).digest()
        across, down = (int.from_bytes(part, "big") for part in (drawn[:8], drawn[8:16]))
        return across * (free[0] + 1) >> 64, down * (free[1] + 1) >> 64


def _distance(size: Size, bucket: tuple[int, int]) -> Fraction:
    """How many times as wide or as tall the picture is as a (height, width), at least 1.

    It orders as the difference of logarithms does, and is exact: a tie is one on every machine.
    """
    ratio = Fraction(size[0] * bucket[0], size[1] * bucket[1])
    return max(ratio, 1 / ratio)


def _cover(size: Size, window: Size) -> Size:
    """The smallest size of the picture's shape that is nowhere smaller than the window."""
    if size[0] * window[1] < window[0] * size[1]:
        return window[0], _scaled(size[1], window[0], size[0])
    return _scaled(size[0], window[1], size[1]), window[1]


def resize_window(
    image: Image.Image,
    size: tuple[int, int],
    window: tuple[int, int, int, int],
    frame: Box | None = None,
) -> Image.Image:
    """What `image.resize(size, BICUBIC, frame)` shows in `window`, without computing the rest.

    Args:
        size: (width, height) to which the whole image would be resized.
        window: (left, top, width, height) in pixels of that size.
        frame: the part of the image that counts as the whole.
    """
    x, y, right, bottom = frame or Photo.whole(image).frame
    left, top, width, height = window
    across, down = (right - x) / size[0], (bottom - y) / size[1]
    box = (
        x + left * across,
        y + top * down,
        min(x + (left + width) * across, right),  # against rounding
        min(y + (top + height) * down, bottom),
    )
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _scaled(side: int, short: int, own_short: int) -> int:
    """`side * short / own_short`, rounded half up without floats."""
    return (2 * side * short + own_short) // (2 * own_short)


# ------------------------------------------------------------------------------------- tensors


def to_array(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of the RGB picture's pixels."""
    return np.array(image.convert("RGB"))


def to_tensor(image: Image.Image | UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 h w"]:
    """The RGB picture as float32 in [0, 1]."""
    values = to_array(image) if isinstance(image, Image.Image) else np.array(image)
    return torch.from_numpy(values).permute(2, 0, 1).contiguous().float() / 255


def to_pil(tensor: Float[Tensor, "3 h w"]) -> Image.Image:
    """The tensor as 8-bit RGB: clamped to [0, 1], then rounded to the nearest level."""
    values = tensor.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(values.permute(1, 2, 0).cpu().numpy()))
