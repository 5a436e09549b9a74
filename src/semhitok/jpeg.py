"""JPEG pixels: Pillow's, by simplejpeg where that gives the same ones, whole or reduced.

Both are libjpeg-turbo. Pillow opens every file, so that it alone decides what is a JPEG, its size
and its mode; simplejpeg only decodes the ordinary ones. It does so strictly: at the slightest
irregularity of the data, where libjpeg would warn, it gives up, and Pillow decides as it always
did whether the picture is broken.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

SCALES = (8, 4, 2)
"""A JPEG's sides can be divided by these while it is decoded, with less work the larger."""

_Decode = Callable[..., Any]
_Stream = io.BytesIO | io.BufferedReader
_FORMATS = {"RGB": "RGBX", "L": "GRAY"}
"""By Pillow's mode, in the layout that Pillow has in memory, so that a plain copy does."""

_HUFFMAN = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive
_MAX_BYTES = 1 << 26
"""Longer files are left to Pillow, which reads them piece by piece."""
MIN_PIXELS = 1 << 18
"""Smaller pictures are left to Pillow: it is the same library, and what simplejpeg saves in memory
traffic on large ones it loses on small ones, as its four channels take longer to resize."""
_MIN_SIDE = 16
"""Below, simplejpeg, which is told a smallest size, could take a smaller scale for the same one."""


def load_jpeg(
    image: JpegImageFile, stream: _Stream, scale: int = 1, *, padded: bool = False
) -> Image.Image:
    """The pixels of a JPEG that Pillow has opened on `stream` but not loaded.

    Args:
        scale: 1, or one of SCALES: the sides, at least twice as long, are divided by it, rounded
            up.
        padded: RGB may come as RGBX, whose fourth band means nothing. That saves a copy.

    Returns:
        A new image with the same `info`, or `image` itself, loaded.

    Raises:
        Whatever Pillow raises for broken files.
    """
    fast = _by_simplejpeg(image, stream, scale, padded)
    if fast is not None:
        return fast
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    image.load()
    return image


def _by_simplejpeg(
    image: JpegImageFile, stream: _Stream, scale: int, padded: bool
) -> Image.Image | None:
    """None where Pillow has to do it."""
    decode = fast_decoder()
    # Not of a subclass, such as MPO.
    if decode is None or type(image) is not JpegImageFile or image.mode not in _FORMATS:
        return None
    if image.width * image.height < MIN_PIXELS or (scale > 1 and max(image.size) < _MIN_SIDE):
        return None
    stream.seek(0)
    data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES or _frame_marker(data) not in _HUFFMAN:
        return None
    width, height = (-(-side // scale) for side in image.size)
    try:
        values = _decode(decode, data, image.mode, (width, height), scale)
    except Exception:  # noqa: BLE001 - whatever it is, Pillow decides
        return None
    if values.shape[:2] != (height, width):
        return None
    if image.mode == "RGB" and not padded:
        result = Image.frombytes("RGB", (width, height), values, "raw", "RGBX", 0, 1)
    else:
        mode = "RGBX" if image.mode == "RGB" else "L"
        result = Image.frombuffer(mode, (width, height), values, "raw", mode, 0, 1)
    result.info = image.info
    return result


def _decode(
    decode: _Decode, data: bytes, mode: str, size: tuple[int, int], scale: int
) -> np.ndarray:
    smallest = {} if scale == 1 else {"min_width": size[0], "min_height": size[1]}
    return np.asarray(decode(data, _FORMATS[mode], strict=True, **smallest))


def _frame_marker(data: bytes) -> int | None:
    """Which coding the frame header tells; None where what is before it is not in order."""
    place = 2
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


@functools.cache
def fast_decoder() -> _Decode | None:
    """simplejpeg's decoder; None where it is missing or gives other pixels than Pillow here.

    Another build of Pillow may use another libjpeg, whose pixels differ: ids must not depend on
    whether simplejpeg is installed, so a small picture is decoded both ways first.
    """
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    return decode_jpeg if _same_pixels(decode_jpeg) else None


def _same_pixels(decode: _Decode) -> bool:
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    for subsampling in (0, 1, 2):
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, "JPEG", quality=80, subsampling=subsampling)
        for scale in (1, *SCALES):
            with Image.open(stream) as image:
                image.draft(None, (image.width // scale, image.height // scale))
                expected = np.asarray(image)
            size = expected.shape[1], expected.shape[0]
            try:
                values = _decode(decode, stream.getvalue(), "RGB", size, scale)
            except (TypeError, ValueError):  # an older or newer one, with other arguments
                return False
            if not np.array_equal(values[..., :3], expected):
                return False
    return True
