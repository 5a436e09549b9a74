"""Reading of every odd picture."""

from __future__ import annotations

import csv
import io
import resource
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from semhitok import decoding
from semhitok.decoding import read_image, read_photo
from semhitok.errors import ImageError, NotFoundError, RangeError

UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}
"""What each EXIF orientation asks to be done with the stored pixels."""


def stored(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source: object) -> np.ndarray:
    return np.asarray(read_image(source))  # type: ignore[arg-type]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG file, up to where its pixels would start."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1 << 20) + b"IDAT"


def table_profile(space: bytes, channels: int, lightness: list[int]) -> bytes:
    """An ICC profile that maps each corner of the channels' cube to a grey of that lightness."""
    corners = b"".join(bytes([value, 128, 128]) for value in lightness)
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([channels, 3, 2, 0])
    lut += struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut += ramp * channels + corners + ramp * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags, data, offset = b"", b"", 128 + 4 + 2 * 12
    for name, tag in ((b"A2B0", lut), (b"wtpt", white)):
        tag += bytes(-len(tag) % 4)
        tags += name + struct.pack(">II", offset + len(data), len(tag))
        data += tag
    header = struct.pack(
        ">I4sI4s4s4s", offset + len(data), b"lcms", 0x02100000, b"prtr", space, b"Lab "
    )
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", 2) + tags + data


# ------------------------------------------------------------------------------ the odd files


@pytest.mark.shared
def test_every_odd_file_is_a_picture_or_an_image_error(shared: Path) -> None:
    folder = shared / "data" / "odd-images"
    rows = list(csv.DictReader((folder / "index.csv").read_text().splitlines()))
    assert len(rows) > 80
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    try:
        for row in rows:
            check_odd_file(folder / row["file"], row)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def check_odd_file(path: Path, row: dict[str, str]) -> None:
    start = time.monotonic()
    if row["loads"] == "yes":
        image = read_image(path)
        size = (int(row["width"]), int(row["height"]))
        if int(row["orientation"] or 1) >= 5:
            size = size[::-1]
        assert (image.mode, image.size) == ("RGB", size), path.name
    else:
        with pytest.raises(ImageError) as caught:
            read_image(path, name=path.name)
        message = str(caught.value)
        assert message.startswith(f"{path.name}: ") and "\n" not in message
        assert "memory" not in message
    assert time.monotonic() - start < 3, path.name


@pytest.mark.shared
@pytest.mark.parametrize("limit", [None, 10])
def test_bombs_are_refused_whatever_pillows_own_limit_is(
    shared: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    folder = shared / "data" / "odd-images"
    for name in ("decompression_bomb.ico", "bmp_b_reallybig.bmp"):
        with pytest.raises(ImageError, match=r"\d+x\d+ is more than 178,000,000 pixels"):
            read_image(folder / name)
    assert read_image(folder / "hopper.jpg").size == (128, 128)


@pytest.mark.shared
def test_turned_photos_show_the_same_upright_photo(shared: Path) -> None:
    folder = shared / "data" / "odd-images"
    photos = [pixels(folder / f"hopper_orientation_{i}.jpg").astype(float) for i in range(2, 9)]
    for photo in photos[1:]:
        assert np.abs(photo - photos[0]).mean() < 4


@pytest.mark.shared
def test_numbers_that_are_not_rgb_go_through_their_profile(shared: Path) -> None:
    wheat = pixels(shared / "data" / "odd-images" / "sample-xyb.jpg")[:100].mean((0, 1))
    assert wheat[0] > wheat[1] > wheat[2]  # as stored, green is the largest by far


# -------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    array = noise(3, 5)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = stored(Image.fromarray(array), exif=exif)
    np.testing.assert_array_equal(pixels(data), UPRIGHT[orientation](array))
    np.testing.assert_array_equal(pixels(Image.open(io.BytesIO(data))), UPRIGHT[orientation](array))


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_tiff_is_turned_once(orientation: int, compression: str | None) -> None:
    array = noise(3, 5)
    data = stored(
        Image.fromarray(array), "TIFF", tiffinfo={0x0112: orientation}, compression=compression
    )
    np.testing.assert_array_equal(pixels(data), UPRIGHT[orientation](array))


def test_the_result_carries_no_orientation_or_profile() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = read_image(stored(Image.fromarray(noise(3, 5)), exif=exif, icc_profile=profile))
    assert image.info == {} and 0x0112 not in image.getexif()
    np.testing.assert_array_equal(pixels(image), np.asarray(image))


# ------------------------------------------------------------------------------------- colours


def test_cmyk_goes_through_its_profile() -> None:
    ink = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    lightness = [255] * 16  # of the corners C M Y K, the last changing fastest
    lightness[8] = 128  # pure cyan, made grey: L* = 50 is 119 in sRGB
    grey = pixels(stored(ink, "TIFF", icc_profile=table_profile(b"CMYK", 4, lightness)))
    assert np.abs(grey.astype(int) - 119).max() <= 3
    assert pixels(stored(ink, "TIFF"))[0, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("profile", [b"no profile", table_profile(b"RGB ", 3, [128] * 8)])
def test_cmyk_with_an_unusable_profile_falls_back(profile: bytes) -> None:
    ink = Image.new("CMYK", (8, 8), (0, 255, 0, 0))
    assert pixels(stored(ink, "TIFF", icc_profile=profile))[0, 0].tolist() == [255, 0, 255]


def test_rgb_profiles_apply_only_where_they_are_tables() -> None:
    red = Image.new("RGB", (4, 4), (200, 10, 30))
    table = table_profile(b"RGB ", 3, [0, 128, 128, 128, 128, 128, 128, 255])
    full = Image.new("RGB", (4, 4), (255, 0, 0))
    assert np.abs(pixels(stored(full, icc_profile=table)).astype(int) - 119).max() <= 3
    matrix = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert pixels(stored(red, icc_profile=matrix))[0, 0].tolist() == [200, 10, 30]
    assert pixels(stored(red, icc_profile=b"no profile"))[0, 0].tolist() == [200, 10, 30]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled(kind: str) -> None:
    levels = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    assert pixels(stored(Image.fromarray(levels), kind))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_big_endian_sixteen_bit_tiff() -> None:
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 0x0100, 0xFF00))
    assert pixels(image)[0, :, 0].tolist() == [1, 254]


def test_wide_integers_are_scaled_by_their_range() -> None:
    image = Image.fromarray(np.array([[-5, 0, 2**30, 2**31 - 1]], dtype=np.int32))
    assert pixels(image)[0, :, 0].tolist() == [0, 0, 128, 255]


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0, 1e6])
def test_floats_are_scaled_by_the_range_they_need(top: float) -> None:
    values = np.array([[-1.0, 0.0, top * 0.601, top, np.nan]], dtype=np.float32)
    seen = pixels(stored(Image.fromarray(values), "TIFF"))[0, :, 0].tolist()
    assert seen == [0, 0, 153, 255, 0]


def test_palette_and_its_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    assert pixels(stored(image)).tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    assert pixels(stored(image, transparency=1))[0, 1].tolist() == [255, 255, 255]
    half = pixels(stored(image, transparency=bytes([255, 0, 128])))
    assert half[0, :2].tolist() == [[10, 20, 30], [255, 255, 255]]
    assert half[0, 2].tolist() == [162, 167, 172]


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGBA", (200, 0, 0, 0), [255, 255, 255]),
        ("RGBA", (200, 0, 100, 51), [244, 204, 224]),
        ("LA", (100, 51), [224, 224, 224]),
    ],
)
def test_alpha_lies_over_white(mode: str, colour: tuple[int, ...], seen: list[int]) -> None:
    assert pixels(stored(Image.new(mode, (2, 2), colour)))[0, 0].tolist() == seen


def test_premultiplied_and_palette_alpha() -> None:
    for mode in ("RGBa", "La"):
        clear = Image.new(mode.upper(), (2, 2), 0).convert(mode)
        assert pixels(clear)[0, 0].tolist() == [255, 255, 255]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7])
    with_alpha = palette.convert("PA")
    with_alpha.putpixel((0, 0), (0, 0))
    assert pixels(with_alpha).tolist() == [[[255, 255, 255], [9, 8, 7]]]


def test_one_transparent_colour() -> None:
    rgb = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert pixels(stored(rgb, transparency=(1, 2, 3))).tolist() == [[[255] * 3, [4, 5, 6]]]
    grey = Image.fromarray(np.array([[7, 9]], dtype=np.uint8))
    assert pixels(stored(grey, transparency=7)).tolist() == [[[255] * 3, [9] * 3]]
    deep = Image.fromarray(np.array([[7, 257 * 9]], dtype=np.uint16))
    assert pixels(stored(deep, transparency=7)).tolist() == [[[255] * 3, [9] * 3]]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = stored(frames[0], kind, save_all=True, append_images=frames[1:])
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert np.abs(pixels(data)[0, 0].astype(int) - [255, 0, 0]).max() <= 3


# ------------------------------------------------------------------------------------- refusal


def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="60000x60000 is more than 178,000,000 pixels"):
        read_image(png_header(60000, 60000))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"):
        with pytest.raises(ImageError, match="20x10 is more than 199 pixels"):
            read_image(stored(Image.new("RGB", (20, 10)), kind), max_pixels=199)


def test_webp_canvas_is_refused_before_it_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (49999).to_bytes(3, "little") * 2
    data = b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas
    with pytest.raises(ImageError, match="50000x50000 is more than"):
        read_image(data)


def test_exactly_max_pixels_is_read() -> None:
    assert read_image(stored(Image.new("RGB", (20, 10))), max_pixels=200).size == (20, 10)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_a_picture_cut_anywhere_is_an_image_error(kind: str) -> None:
    data = stored(Image.fromarray(noise(40, 40)), kind)
    assert read_image(data).size == (40, 40)
    for length in range(0, len(data) * 3 // 4, max(1, len(data) // 40)):
        with pytest.raises(ImageError):
            read_image(data[:length])


def test_scrambled_pictures_give_a_picture_or_an_image_error() -> None:
    random = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "ICO", "TGA", "PCX", "JPEG2000"):
        data = np.frombuffer(stored(Image.fromarray(noise(16, 16)), kind), np.uint8)
        for _ in range(60):
            broken = data.copy()
            places = random.integers(0, min(len(data), 200), 3)
            broken[places] = random.integers(0, 256, 3)
            try:
                assert read_image(broken.tobytes()).mode == "RGB"
            except ImageError as error:
                assert "\n" not in str(error)


def test_what_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="gone.png: no such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ImageError, match="empty.png: is empty"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(ImageError, match="photo 7: is not a picture; PNG, JPEG"):
        read_image(b"just some text, nothing else", name="photo 7")
    with pytest.raises(ImageError, match="cannot be opened"):
        read_image("a\0b.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        read_image("x" * 5000)
    with pytest.raises(ImageError, match="not a regular file"):
        read_image("/dev/zero")


def test_postscript_is_not_handed_to_ghostscript() -> None:
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(ImageError, match="is not a picture"):
        read_image(page)


def test_pillows_warnings_are_ignored_only_while_reading() -> None:
    before = list(warnings.filters)
    image = Image.new("P", (8, 8))
    image.info["transparency"] = bytes(256)
    with ThreadPoolExecutor(8) as pool:
        assert {r.mode for r in pool.map(read_image, [image.copy() for _ in range(200)])} == {"RGB"}
    assert list(warnings.filters) == before
    with pytest.raises(UserWarning, match="mine"), decoding._quiet_pillow():
        warnings.warn("mine", stacklevel=1)


# ------------------------------------------------------------------------------------- reduced


def ramps(height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards."""
    array = np.zeros((height, width, 3))
    array[..., 0] = np.linspace(0, 255, width)
    array[..., 1] = np.linspace(0, 255, height)[:, None]
    return array.astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "needed", "result"),
    [
        ((640, 480), (120, 90), (320, 240)),
        ((640, 480), (160, 120), (320, 240)),
        ((640, 480), (161, 121), (640, 480)),
        ((639, 479), (159, 119), (320, 240)),
        ((640, 480), (80, 60), (160, 120)),
        ((640, 480), (40, 30), (80, 60)),
        ((640, 480), (4, 3), (80, 60)),
        ((640, 480), (80, 16), (160, 120)),
    ],
)
def test_a_jpeg_is_reduced_while_twice_what_is_needed_is_left(
    size: tuple[int, int], needed: tuple[int, int], result: tuple[int, int]
) -> None:
    asked = []

    def need(whole: tuple[int, int]) -> tuple[int, int]:
        asked.append(whole)
        return needed

    image = Image.new("RGB", size)
    photo = read_photo(stored(image, "JPEG"), need)
    assert (photo.image.size, photo.size, asked) == (result, size, [size])
    scale = -(-size[0] // result[0])
    assert photo.frame == (0, 0, size[0] / scale, size[1] / scale)
    for other in (stored(image, "PNG"), image, np.asarray(image)):
        whole = read_photo(other, need)
        assert whole.image.size == whole.size == size and whole.frame == (0, 0, *size)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_photo_lies_where_the_whole_one_does(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    height, width = 129, 149  # a quarter is 32.25 by 37.25
    image = Image.fromarray(ramps(height, width))
    data = stored(image, "JPEG", exif=exif, quality=100, subsampling=0)
    photo = read_photo(data, lambda size: (16, 16))
    stored_size = (33, 38) if orientation < 5 else (38, 33)
    assert photo.image.size == stored_size[::-1] and photo.image.info == {}
    upright = UPRIGHT[orientation](ramps(height, width))
    assert photo.size == (upright.shape[1], upright.shape[0])
    seen = photo.image.resize((16, 16), Image.Resampling.BILINEAR, photo.frame)
    expected = Image.fromarray(np.ascontiguousarray(upright)).resize(
        (16, 16), Image.Resampling.BILINEAR
    )
    assert np.abs(np.asarray(seen).astype(int)[..., :3] - np.asarray(expected)).max() <= 3


def test_reduced_cmyk_goes_through_its_profile_too() -> None:
    lightness = [255] * 16
    lightness[8] = 128
    ink = Image.new("CMYK", (64, 64), (255, 0, 0, 0))
    data = stored(ink, "JPEG", icc_profile=table_profile(b"CMYK", 4, lightness))
    photo = read_photo(data, lambda size: (8, 8))
    assert photo.image.size == (16, 16)
    assert np.abs(np.asarray(photo.image).astype(int) - 119).max() <= 4


# -------------------------------------------------------------------------------------- arrays


def test_arrays() -> None:
    array = noise(4, 6)
    np.testing.assert_array_equal(pixels(array), array)
    np.testing.assert_array_equal(pixels(array[..., 0])[..., 2], array[..., 0])
    np.testing.assert_array_equal(pixels(array[:, ::-1]), array[:, ::-1])
    np.testing.assert_array_equal(pixels(array.astype(np.uint16) * 257), array)
    np.testing.assert_array_equal(pixels(array / 255), array)
    clear = np.dstack([array, np.zeros((4, 6), np.uint8)])
    assert (pixels(clear) == 255).all()


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2), np.int64), np.full((2, 2), 1.5), np.full((2, 2), np.nan)]
)
def test_arrays_of_other_values_are_refused(array: np.ndarray) -> None:
    with pytest.raises(RangeError, match="allowed"):
        read_image(array)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (1, 3, 4, 4), (0, 4, 3), (4, 0)])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="array: "):
        read_image(np.zeros(shape, np.uint8))


def test_a_pillow_image_is_not_changed_or_shared() -> None:
    image = Image.fromarray(noise(4, 4))
    before = np.array(image)
    read_image(image).putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(image), before)
