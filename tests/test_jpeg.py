"""simplejpeg gives Pillow's pixels, or Pillow decides: the same outcome with and without it."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_decoding import stored, table_profile

from semhitok import jpeg
from semhitok.decoding import read_image, read_photo
from semhitok.errors import ImageError

simplejpeg = pytest.importorskip("simplejpeg")
real_decoder = jpeg.fast_decoder
decode_jpeg = simplejpeg.decode_jpeg


class Counted:
    """simplejpeg's decoder that knows how often it gave pixels."""

    def __init__(self) -> None:
        self.gave = 0

    def __call__(self, *arguments: object, **options: object) -> np.ndarray:
        values = decode_jpeg(*arguments, **options)
        self.gave += 1
        return np.asarray(values)


@pytest.fixture(autouse=True)
def _small_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "MIN_PIXELS", 0)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    decoder = Counted()
    monkeypatch.setattr(jpeg, "fast_decoder", lambda: decoder)
    return decoder


@pytest.fixture
def fresh_decoder() -> Iterator[Callable[[], object]]:
    real_decoder.cache_clear()
    yield real_decoder
    real_decoder.cache_clear()


def photo(height: int, width: int) -> Image.Image:
    """Soft shapes under a little noise."""
    random = np.random.default_rng(height * 1000 + width)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((soft + random.integers(-9, 9, soft.shape)).clip(0, 255).astype("u1"))


def outcome(data: bytes) -> np.ndarray | str:
    """What comes of it, by both ways of reading."""
    try:
        photo = read_photo(data, name="it")
        plain = np.asarray(read_image(data, name="it"))
        np.testing.assert_array_equal(np.asarray(photo.image)[..., :3], plain)
        return plain
    except ImageError as error:
        return str(error)


def check_outcome(data: bytes) -> None:
    """Once with whatever decoder is set, once by Pillow alone."""
    seen = outcome(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "fast_decoder", lambda: None)
        expected = outcome(data)
    if isinstance(expected, str):
        assert seen == expected
    else:
        np.testing.assert_array_equal(seen, expected)


OPTIONS: list[dict[str, object]] = [
    {"subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2},
    {"subsampling": 2, "progressive": True},
    {"subsampling": 2, "restart_marker_blocks": 3},
    {"keep_rgb": True},
    {"quality": 20},
    {"quality": 98},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_pillows(mode: str, options: dict[str, object], counted: Counted) -> None:
    sizes = [(1, 1), (1, 17), (17, 2), (8, 8), (33, 47), (120, 95)]
    for size in sizes:
        check_outcome(stored(photo(*size).convert(mode), "JPEG", **options))
    assert counted.gave == 2 * len(sizes)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("scale", jpeg.SCALES)
def test_reduced_pixels_are_pillows(
    scale: int, mode: str, options: dict[str, object], counted: Counted
) -> None:
    tiny = [(4, 4)] if scale == 2 else []  # simplejpeg would take 3/8 for 1/2
    for size in [*tiny, (16, 17), (33, 47), (121, 95)]:
        data = stored(photo(*size).convert(mode), "JPEG", **options)
        expected = Image.open(io.BytesIO(data))
        expected.draft(None, (size[1] // scale, size[0] // scale))
        stream = io.BytesIO(data)
        seen = jpeg.load_jpeg(Image.open(stream), stream, scale)  # type: ignore[arg-type]
        np.testing.assert_array_equal(np.asarray(seen), np.asarray(expected))
    assert counted.gave == 3


@pytest.mark.shared
def test_real_photos_are_the_same(shared: Path, counted: Counted) -> None:
    table = pq.read_table(shared / "data" / "tiny-imagenet-val.parquet", columns=["image"])
    for row in table.slice(0, 300).to_pylist():
        check_outcome(row["image"]["bytes"])
    assert counted.gave == 600
    odd = sorted((shared / "data" / "odd-images").glob("*.jp*g"))
    assert len(odd) > 15
    for path in odd:
        check_outcome(path.read_bytes())
    assert counted.gave > 620


@pytest.mark.parametrize("options", OPTIONS[2:5], ids=str)
def test_a_jpeg_cut_anywhere_is_refused_as_ever(
    options: dict[str, object], counted: Counted
) -> None:
    data = stored(photo(45, 61), "JPEG", **options)
    for length in [*range(2, len(data) - 30, 29), *range(len(data) - 30, len(data))]:
        assert isinstance(outcome(data[:length]), str)
        check_outcome(data[:length])
    assert counted.gave == 0
    long = stored(photo(500, 700), "JPEG", quality=97)  # Pillow reads 65,536 bytes at a time
    assert len(long) > 1 << 17
    for length in (1 << 16, 1 << 17, len(long) - 1):
        check_outcome(long[:length])
    for tail in (b"\0", b"\xff\xd9", data):
        check_outcome(data + tail)
    assert counted.gave == 6


def test_a_damaged_jpeg_fares_as_ever(counted: Counted) -> None:
    random = np.random.default_rng(0)
    files = [stored(photo(45, 61), "JPEG", **options) for options in OPTIONS]
    for number in range(400):
        data = bytearray(files[number % len(files)])
        for _ in range(int(random.integers(1, 4))):
            place = int(random.integers(2, len(data)))
            data[place : place + int(random.integers(3))] = random.bytes(int(random.integers(3)))
        check_outcome(bytes(data))
    assert counted.gave > 80


def test_turned_and_profiled_photos_are_the_same(counted: Counted) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    table = table_profile(b"RGB ", 3, [0, 128, 90, 128, 60, 128, 128, 255])
    for options in ({"exif": exif}, {"icc_profile": table}, {"icc_profile": b"no profile"}):
        check_outcome(stored(photo(33, 47), "JPEG", **options))
        check_outcome(stored(photo(33, 47).convert("L"), "JPEG", **options))
    assert counted.gave == 12


def test_what_is_not_ordinary_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "fast_decoder", lambda: lambda *a, **k: pytest.fail("was asked"))
    plain = stored(photo(33, 47), "JPEG")
    arithmetic = plain.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc9\0\x11\x08")
    assert arithmetic != plain
    other = photo(20, 20)
    for data in (
        stored(Image.new("CMYK", (9, 9), (10, 200, 30, 4)), "JPEG"),
        stored(photo(33, 47), "MPO", save_all=True, append_images=[other]),
        arithmetic,
    ):
        check_outcome(data)
    monkeypatch.setattr(jpeg, "_MAX_BYTES", len(plain) - 1)
    check_outcome(plain)


def test_other_sides_than_pillows_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "fast_decoder", lambda: lambda *a, **k: np.zeros((47, 33, 4), "u1"))
    check_outcome(stored(photo(33, 47), "JPEG"))


def test_it_is_used_only_where_its_pixels_are_pillows(
    fresh_decoder: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fresh_decoder() is simplejpeg.decode_jpeg
    for other in (lambda *a, **k: decode_jpeg(*a, **k) ^ 1, lambda data, colorspace: None):
        real_decoder.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(simplejpeg, "decode_jpeg", other)
            assert fresh_decoder() is None
    real_decoder.cache_clear()
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert fresh_decoder() is None
    assert read_image(stored(photo(33, 47), "JPEG")).size == (47, 33)


def test_small_pictures_are_left_to_pillow(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jpeg, "MIN_PIXELS", 64 * 48)
    for width, calls in ((63, 0), (64, 1)):
        stream = io.BytesIO()
        Image.new("RGB", (width, 48), "red").save(stream, "JPEG")
        read_image(stream.getvalue())
        assert counted.gave == calls
