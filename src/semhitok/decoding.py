"""Any picture file as upright 8-bit RGB, read safely."""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from semhitok.errors import ImageError, NotFoundError, RangeError
from semhitok.jpeg import SCALES, load_jpeg

MAX_PIXELS = 178_000_000
"""Largest picture that is decoded; just below where Pillow itself refuses."""

UNSAFE_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
"""Formats that Pillow hands to another program, or knows but cannot decode."""

ACCEPTED = "PNG, JPEG, WebP, AVIF, TIFF, GIF, BMP and what else Pillow decodes are read"

_TURN = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, "rtlb"),
    3: (Image.Transpose.ROTATE_180, "rblt"),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, "lbrt"),
    5: (Image.Transpose.TRANSPOSE, "tlbr"),
    6: (Image.Transpose.ROTATE_270, "bltr"),
    7: (Image.Transpose.TRANSVERSE, "brtl"),
    8: (Image.Transpose.ROTATE_90, "trbl"),
}
"""By EXIF orientation: what puts the picture upright, and which stored edges (left, top, right,
bottom) are then its left, top, right and bottom ones."""

_Result = TypeVar("_Result")
Picture = str | Path | bytes | Image.Image | np.ndarray
"""What `read_image` takes."""
Size = tuple[int, int]
"""(width, height) in pixels."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""
_Stream = io.BytesIO | io.BufferedReader


@dataclass(frozen=True)
class Photo:
    """A decoded picture, perhaps a reduced one."""

    image: Image.Image
    """8-bit RGB, upright; perhaps of mode RGBX, whose fourth band means nothing."""
    size: Size
    """Of the whole picture, upright."""
    frame: Box
    """Where the picture lies in `image`. A reduced one has up to a pixel too much along two edges,
    because JPEG rounds its sides up."""

    @classmethod
    def whole(cls, image: Image.Image) -> Photo:
        """A picture that was not reduced."""
        return cls(image, image.size, (0.0, 0.0, float(image.width), float(image.height)))


@dataclass(frozen=True)
class _Request:
    """What is asked of a decoder."""

    name: str
    max_pixels: int
    needed: Callable[[Size], Size] | None = None
    at_once: bool = False
    """It is resized at once: the decoder's own image will do, and RGBX. A copy would cost as much
    as decoding, where a picture is so large that the system has to find new memory for it."""


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
    return _read(source, _Request(name or _name_of(source), max_pixels)).image


def read_photo(
    source: Picture,
    needed: Callable[[Size], Size] | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
) -> Photo:
    """As `read_image`, for who resizes the picture at once: with less copying, perhaps reduced.

    Args:
        needed: from a picture's size to the one that it is to be resized to. A JPEG is decoded at
            the smallest of 1/2, 1/4 and 1/8 of its sides that leaves at least twice that. None
            for the whole picture.

    Raises:
        As `read_image`.
    """
    request = _Request(name or _name_of(source), max_pixels, needed, at_once=True)
    return _read(source, request)


def _name_of(source: Picture) -> str:
    if isinstance(source, np.ndarray):
        return "array"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "image")
    return f"{len(source)} bytes" if isinstance(source, bytes) else str(source)


def _read(source: Picture, request: _Request) -> Photo:
    if isinstance(source, np.ndarray):
        return Photo.whole(_read_array(source, request.max_pixels, request.name))
    if isinstance(source, Image.Image):
        picture = source
        return _guarded(lambda: _decode(picture, request), request.name)
    if isinstance(source, bytes):
        return _read_stream(io.BytesIO(source), request)
    path, label = Path(source), request.name
    try:
        if path.is_dir():
            raise ImageError(f"{label}: is a folder; give one picture file")
        if path.exists() and not path.is_file():
            raise ImageError(f"{label}: is not a regular file; give one picture file")
        with open(path, "rb") as stream:
            return _read_stream(stream, request)
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


def _read_stream(stream: _Stream, request: _Request) -> Photo:
    def read() -> Photo:
        if not stream.read(1):
            raise ImageError(f"{request.name}: is empty; {ACCEPTED}")
        _refuse_allocating_headers(stream, request.name, request.max_pixels)
        with _open(stream) as image:
            return _decode(image, request, stream)

    return _guarded(read, request.name)


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


def _decode(image: Image.Image, request: _Request, stream: _Stream | None = None) -> Photo:
    """Args:
    stream: what the image was opened on; None for one that is not ours to load otherwise.
    """
    _check_size(image.size, request.name, request.max_pixels)
    if stream is not None and isinstance(image, JpegImageFile):
        return _decode_jpeg(image, request, stream)
    image.load()
    _check_size(image.size, request.name, request.max_pixels)  # icons learn their size only here
    # After load(), because TIFF turns itself upright there and then forgets its orientation.
    turn, _ = _TURN.get(_orientation(image), (None, ""))
    own = request.at_once and stream is not None
    return Photo.whole(_upright(_to_rgb(image, own=own), turn))


def _decode_jpeg(image: JpegImageFile, request: _Request, stream: _Stream) -> Photo:
    turn, edges = _TURN.get(_orientation(image), (None, "ltrb"))
    size = image.size
    upright = size if edges[0] in "lr" else size[::-1]
    scale = 1 if request.needed is None else _scale(upright, request.needed(upright))
    padded = request.at_once and "icc_profile" not in image.info  # profiles are for plain RGB
    loaded = load_jpeg(image, stream, scale, padded=padded)
    rgb = _upright(_to_rgb(loaded, own=request.at_once or loaded is not image), turn)
    stored = {"l": 0.0, "t": 0.0, "r": -size[0] % scale / scale, "b": -size[1] % scale / scale}
    left, top, right, bottom = (stored[edge] for edge in edges)
    return Photo(rgb, upright, (left, top, rgb.width - right, rgb.height - bottom))


def _scale(size: Size, needed: Size) -> int:
    """How far a picture may be reduced so that twice the needed size is left."""
    for scale in SCALES:
        if all(2 * scale * need <= side for side, need in zip(size, needed, strict=True)):
            return scale
    return 1


def _upright(rgb: Image.Image, turn: Image.Transpose | None) -> Image.Image:
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


def _to_rgb(image: Image.Image, *, own: bool = False) -> Image.Image:
    """A decoded image of any mode as a new RGB one; `own` may stay what it is, RGB or RGBX."""
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
    return image if own and image.mode in ("RGB", "RGBX") else image.convert("RGB")


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
