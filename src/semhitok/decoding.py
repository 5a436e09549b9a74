"""Any picture file as upright 8-bit RGB, read safely."""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from semhitok.errors import ImageError, NotFoundError, RangeError

MAX_PIXELS = 178_000_000
"""Largest picture that is decoded; just below where Pillow itself refuses."""

UNSAFE_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
"""Formats that Pillow hands to another program, or knows but cannot decode."""

ACCEPTED = "PNG, JPEG, WebP, AVIF, TIFF, GIF, BMP and what else Pillow decodes are read"

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_Result = TypeVar("_Result")
Picture = str | Path | bytes | Image.Image | np.ndarray
"""What `read_image` takes."""
_Stream = io.BytesIO | io.BufferedReader


def read_image(
    source: Picture,
    *,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
) -> Image.Image:
    """Any picture as decoded 8-bit RGB, upright.

    EXIF orientation is applied. CMYK goes through its ICC profile to sRGB. Other profiles are
    left alone, as the data sets that models are trained on leave them, unless the profile has
    only lookup tables: then the numbers need not be RGB at all (XYB JPEG stores such).
    Transparency is laid over white; of an animation the first frame counts. Integers of more
    than 8 bits are scaled by their range (65535, or 2^31 - 1 where `I` holds more, becomes 255);
    32-bit floats by 1, 255 or 65535, the smallest that holds their largest value.

    Args:
        source: a path, a file's bytes, a Pillow image, or an array (H, W), (H, W, 3) or
            (H, W, 4) of uint8, uint16, or floats in [0, 1].
        max_pixels: a larger picture is refused before it is decoded.
        name: what error messages call the picture; by default its path.

    Raises:
        ImageError: broken, no picture at all, or larger than `max_pixels`.
        NotFoundError: no file at the path.
        RangeError: an array of another dtype, or floats outside [0, 1].
    """
    if isinstance(source, np.ndarray):
        return _read_array(source, max_pixels, name or "array")
    if isinstance(source, Image.Image):
        picture = source
        label = name or str(getattr(source, "filename", "") or "image")
        return _guarded(lambda: _decode(picture, label, max_pixels), label)
    if isinstance(source, bytes):
        return _read_stream(io.BytesIO(source), name or f"{len(source)} bytes", max_pixels)
    path, label = Path(source), name or str(source)
    try:
        if path.is_dir():
            raise ImageError(f"{label}: is a folder; give one picture file")
        if path.exists() and not path.is_file():
            raise ImageError(f"{label}: is not a regular file; give one picture file")
        with open(path, "rb") as stream:
            return _read_stream(stream, label, max_pixels)
    except FileNotFoundError as error:
        raise NotFoundError(f"{label}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{label}: cannot be opened ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """An error of another library as part of a one-line message."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def picture_suffixes() -> frozenset[str]:
    """Lower-case file suffixes, dot included, of the formats that `read_image` decodes."""
    Image.init()
    return frozenset(
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in UNSAFE_FORMATS and suffix not in {".pdf", ".mpg"}
    )


def _read_stream(stream: _Stream, name: str, max_pixels: int) -> Image.Image:
    def read() -> Image.Image:
        if not stream.read(1):
            raise ImageError(f"{name}: is empty; {ACCEPTED}")
        _refuse_allocating_headers(stream, name, max_pixels)
        with _open(stream) as image:
            return _decode(image, name, max_pixels)

    return _guarded(read, name)


def _guarded(read: Callable[[], _Result], name: str) -> _Result:
    """Run `read`; whatever a decoder throws becomes an ImageError, and its warnings nothing."""
    try:
        with _quiet_pillow():
            return read()
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: is not a picture; {ACCEPTED}") from error
    except MemoryError as error:
        raise ImageError(f"{name}: does not fit into memory; make it smaller") from error
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise nearly every kind
        raise ImageError(
            f"{name}: broken picture ({reason(error)}); save it again or leave it out"
        ) from error


def _open(stream: _Stream) -> Image.Image:
    """`Image.open` without its bomb check, whose limit is global, and without UNSAFE_FORMATS."""
    with _lock:
        Image.init()
    stream.seek(0)
    prefix = stream.read(16)
    for kind in list(Image.ID):
        factory, accepts = Image.OPEN[kind]
        try:
            if kind in UNSAFE_FORMATS or not (accepts is None or accepts(prefix) is True):
                continue
            stream.seek(0)
            return factory(stream, b"")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # as Pillow does: the next format may know it
    raise UnidentifiedImageError("no format fits")


def _refuse_allocating_headers(stream: _Stream, name: str, max_pixels: int) -> None:
    """Check WebP and ICO by hand, because Pillow allocates or decodes them when it opens them."""
    stream.seek(0)
    header = stream.read(30)
    if header[:4] == b"\0\0\1\0":
        for size in _icon_sizes(stream, count=int.from_bytes(header[4:6], "little")):
            _check_size(size, name, max_pixels)
    elif header[8:16] == b"WEBPVP8X" and len(header) == 30:
        width, height = (int.from_bytes(header[i : i + 3], "little") + 1 for i in (24, 27))
        _check_size((width, height), name, max_pixels)


def _icon_sizes(stream: _Stream, count: int) -> Iterator[tuple[int, int]]:
    for index in range(count):
        stream.seek(6 + 16 * index)
        offset = int.from_bytes(stream.read(16)[12:], "little")
        stream.seek(offset)
        header = stream.read(24)
        if len(header) < 24:
            continue
        is_png = header.startswith(b"\x89PNG")
        layout, place = (">II", 16) if is_png else ("<ii", 4)
        width, height = struct.unpack_from(layout, header, place)
        yield abs(width), abs(height)


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width}x{height} is more than {max_pixels:,} pixels; "
            "make it smaller, or raise max_pixels"
        )
    if width < 1 or height < 1:
        raise ImageError(f"{name}: {width}x{height} has no pixels; both sides must be at least 1")


def _decode(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(image.size, name, max_pixels)
    image.load()
    _check_size(image.size, name, max_pixels)  # icons learn their true size only here
    # After load(), because TIFF turns itself upright there and then forgets its orientation.
    turn = _TRANSPOSE.get(_orientation(image))
    rgb = _to_rgb(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    rgb.info = {}  # a profile or orientation kept here would be applied a second time
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - a damaged EXIF block does not spoil good pixels
        return 1


_lock = threading.Lock()
_readers = 0
_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Ignore warnings raised inside Pillow while any thread reads.

    `warnings.catch_warnings` would not do: it puts back a whole list of filters, and with two
    threads in it that may be the other one's.
    """
    global _readers
    with _lock:
        _readers += 1
        if _readers == 1:
            warnings.filters.insert(0, _FILTER)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0 and _FILTER in warnings.filters:
                warnings.filters.remove(_FILTER)  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------- colours


def _to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image of any mode as a new RGB image."""
    if image.mode == "F":
        return _scale_floats(np.asarray(image))
    if image.mode.startswith("I"):
        return _scale_integers(np.asarray(image), image.info.get("transparency"))
    if image.mode == "CMYK" or (image.mode == "RGB" and "icc_profile" in image.info):
        converted = _through_profile(image)
        if converted is not None:
            return converted
    if image.has_transparency_data:
        return _over_white(image)
    return image.convert("RGB")


def _through_profile(image: Image.Image) -> Image.Image | None:
    """The image in sRGB by its own profile; None where that is unusable or to be left alone."""
    data = image.info.get("icc_profile")
    if not data:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if image.mode == "RGB" and profile.profile.is_matrix_shaper:
            return None
        return ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None  # a damaged profile, or one for other channels


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _scale_floats(values: np.ndarray) -> Image.Image:
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    top = float(values.max())
    limit = next((limit for limit in (1.0, 255.0, 65535.0) if top <= limit), top)
    return Image.fromarray(np.rint(values.clip(0) * (255.0 / limit)).astype(np.uint8)).convert(
        "RGB"
    )


def _scale_integers(values: np.ndarray, transparent: object = None) -> Image.Image:
    limit = 65535 if int(values.max()) <= 65535 else 2**31 - 1
    grey = np.rint(values.clip(0) * (255.0 / limit)).astype(np.uint8)
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _read_array(values: np.ndarray, max_pixels: int, name: str) -> Image.Image:
    if not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))):
        raise ImageError(
            f"{name}: shape {values.shape} is no picture; allowed: (H, W), (H, W, 3), (H, W, 4)"
        )
    _check_size((values.shape[1], values.shape[0]), name, max_pixels)
    if values.dtype == np.uint16:
        values = np.rint(values * (255.0 / 65535.0)).astype(np.uint8)
    elif np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if not (low >= 0.0 and high <= 1.0):  # also true of NaN
            raise RangeError(f"{name}: floats from {low:g} to {high:g}; allowed: 0 to 1")
        values = np.rint(values * 255.0).astype(np.uint8)
    elif values.dtype != np.uint8:
        raise RangeError(f"{name}: dtype {values.dtype}; allowed: uint8, uint16, floats in [0, 1]")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(values)))
