"""What all parts know of pictures: one resize policy, and tensors. `decoding` reads the files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from semhitok.decoding import MAX_PIXELS, Picture, picture_suffixes, read_image, reason
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


@dataclass(frozen=True)
class ImagePolicy:
    """How a picture of any size becomes one that patches tile.

    Pillow's bicubic filter, which widens with the reduction (antialiased), brings the short side
    to `size`; then the middle is cut out. A picture that has that short side already keeps its
    pixels.
    """

    size: int | None
    """Short side in pixels; None keeps the picture's own (enlarged where below `multiple`)."""
    crop: Literal["square", "grid"]
    """Cut to a square, or only each side down to a multiple of `multiple`."""
    multiple: int
    """Patch size in pixels."""

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise RangeError(f"multiple is {self.multiple}; it must be at least 1")
        if self.crop not in ("square", "grid"):
            raise RangeError(f"crop is {self.crop!r}; allowed: 'square', 'grid'")
        if self.size is not None and (self.size < 1 or self.size % self.multiple):
            raise RangeError(
                f"size is {self.size}; it must be a positive multiple of {self.multiple} "
                "(the patch size), or None"
            )

    def apply(self, image: Image.Image) -> Image.Image:
        """The RGB picture, as `read_image` gives it, resized and cut.

        Raises:
            ImageError: so long and thin that the result would exceed MAX_PIXELS.
        """
        short = self.size or max(min(image.size), self.multiple)
        width, height = (_scaled(side, short, min(image.size)) for side in image.size)
        square = min(width, height) // self.multiple * self.multiple
        out_width, out_height = (
            square if self.crop == "square" else side // self.multiple * self.multiple
            for side in (width, height)
        )
        if out_width * out_height > MAX_PIXELS:
            raise ImageError(
                f"{image.width}x{image.height} would become {out_width}x{out_height}, more than "
                f"{MAX_PIXELS:,} pixels; use a square crop or a smaller size"
            )
        left, top = (width - out_width) // 2, (height - out_height) // 2
        return resize_window(image, (width, height), (left, top, out_width, out_height))

    def describe(self) -> str:
        """One line for protocols."""
        side = f"short side to {self.size} (Pillow bicubic)" if self.size else "own size"
        cut = "square" if self.crop == "square" else "to whole patches"
        return f"{side}, centre crop {cut}, multiples of {self.multiple}"


def resize_window(
    image: Image.Image, size: tuple[int, int], window: tuple[int, int, int, int]
) -> Image.Image:
    """What `image.resize(size, BICUBIC)` shows in `window`, without computing the rest.

    Args:
        size: (width, height) to which the whole image would be resized.
        window: (left, top, width, height) in pixels of that size.
    """
    left, top, width, height = window
    across, down = image.width / size[0], image.height / size[1]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    limits = (image.width, image.height, image.width, image.height)  # against rounding
    box = tuple(min(edge, limit) for edge, limit in zip(box, limits, strict=True))  # type: ignore[assignment]
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
