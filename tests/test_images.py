"""The resize policy, and tensors."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from semhitok.errors import ImageError, RangeError
from semhitok.images import ImagePolicy, read_image, to_array, to_pil, to_tensor


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# -------------------------------------------------------------------------------------- policy


@pytest.mark.parametrize(
    ("size", "crop", "multiple", "given", "result"),
    [
        (128, "square", 16, (400, 300), (128, 128)),
        (128, "grid", 16, (400, 300), (160, 128)),
        (None, "grid", 16, (100, 50), (96, 48)),
        (None, "square", 16, (100, 50), (48, 48)),
        (None, "grid", 16, (5, 9), (16, 16)),
        (None, "square", 8, (1, 1), (8, 8)),
        (64, "square", 16, (1, 60000), (64, 64)),
        (64, "square", 16, (60000, 1), (64, 64)),
        (None, "grid", 16, (1, 500), (16, 8000)),
    ],
)
def test_sizes(
    size: int | None, crop: str, multiple: int, given: tuple[int, int], result: tuple[int, int]
) -> None:
    policy = ImagePolicy(size, crop, multiple)  # type: ignore[arg-type]
    assert policy.apply(Image.new("RGB", given)).size == result


def test_resizing_is_pillows_bicubic_then_the_middle() -> None:
    image = Image.fromarray(noise(90, 131))
    whole = image.resize((round(131 * 48 / 90), 48), Image.Resampling.BICUBIC)
    left = (whole.width - 48) // 2
    expected = np.asarray(whole)[:, left : left + 48].astype(int)
    seen = np.asarray(ImagePolicy(48, "square", 16).apply(image)).astype(int)
    assert np.abs(seen - expected).max() <= 1
    assert (seen == expected).mean() > 0.999


@pytest.mark.parametrize("size", [48, None])
def test_a_picture_of_the_right_size_keeps_its_pixels(size: int | None) -> None:
    array = noise(48, 71)
    seen = np.asarray(ImagePolicy(size, "grid", 16).apply(Image.fromarray(array)))
    np.testing.assert_array_equal(seen, array[:, 3:67])


def test_absurd_results_are_refused() -> None:
    with pytest.raises(ImageError, match="would become 256x15360000"):
        ImagePolicy(256, "grid", 16).apply(Image.new("RGB", (1, 60000)))


@pytest.mark.parametrize(("size", "multiple"), [(100, 16), (0, 16), (-16, 16), (16, 0)])
def test_impossible_policies(size: int, multiple: int) -> None:
    with pytest.raises(RangeError):
        ImagePolicy(size, "square", multiple)


@pytest.mark.parametrize(
    ("size", "crop", "options", "message"),
    [
        (32, "random", {}, "crop 'random' needs a seed; give"),
        (32, "square", {"seed": 0}, "seed is 0, but crop 'square' draws nothing; leave the seed"),
        (None, "buckets", {}, "crop 'buckets' needs a size; give pixels"),
        (None, "grid", {"reduced": True}, "reduced decoding needs a size; give pixels"),
    ],
)
def test_what_does_not_go_together_is_refused(
    size: int | None, crop: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RangeError, match=message):
        ImagePolicy(size, crop, 16, **options)  # type: ignore[arg-type]


def test_policies_describe_themselves() -> None:
    assert ImagePolicy(128, "square", 16).describe() == (
        "short side to 128 (Pillow bicubic), centre crop square, multiples of 16"
    )
    assert ImagePolicy(None, "grid", 8).describe() == (
        "own size, centre crop to whole patches, multiples of 8"
    )
    assert ImagePolicy(128, "random", 16, seed=7).describe() == (
        "short side to 128 (Pillow bicubic), random crop square by key and seed 7, multiples of 16"
    )
    assert ImagePolicy(64, "buckets", 16).describe() == (
        "covers that of 96x48 80x48 64x64 48x80 48x96 (height x width) nearest in ratio "
        "(Pillow bicubic), centre crop, multiples of 16"
    )
    assert ImagePolicy(128, "square", 16, reduced=True).describe() == (
        "short side to 128 (Pillow bicubic), centre crop square, multiples of 16, "
        "JPEG reduced to at least twice the size"
    )


# -------------------------------------------------------------------------------------- random


def place(policy: ImagePolicy, key: str, size: tuple[int, int]) -> tuple[int, int]:
    """Left and top of what the policy cuts out of a picture that it does not resize."""
    array = np.zeros((size[1], size[0], 3), np.uint8)
    array[..., 0], array[..., 1] = np.arange(size[0]), np.arange(size[1])[:, None]
    cut = np.asarray(policy.apply(Image.fromarray(array), key))
    np.testing.assert_array_equal(cut[0, :, 0], np.arange(cut.shape[1]) + cut[0, 0, 0])
    return int(cut[0, 0, 0]), int(cut[0, 0, 1])


def test_a_random_place_is_a_function_of_seed_and_key() -> None:
    policy = ImagePolicy(32, "random", 16, seed=0)
    keys = [f"{n}.jpg" for n in range(200)]
    places = [place(policy, key, (40, 32)) for key in keys]
    assert {left for left, _ in places} == set(range(9)) and {top for _, top in places} == {0}
    assert [place(policy, key, (40, 32)) for key in reversed(keys)] == places[::-1]
    other = ImagePolicy(32, "random", 16, seed=1)
    assert [place(other, key, (40, 32)) for key in keys] != places
    # Frozen: other places would be other ids.
    assert [place(policy, key, (132, 32))[0] for key in ("a", "b/ä.png", "\udcff")] == [37, 76, 18]


def test_a_random_square_of_the_own_size_moves_along_both_sides() -> None:
    policy = ImagePolicy(None, "random", 16, seed=0)
    places = {place(policy, str(n), (20, 18)) for n in range(200)}
    assert places == {(left, top) for left in range(5) for top in range(3)}


def test_a_random_square_is_cut_from_the_picture_as_it_is_resized() -> None:
    image = Image.fromarray(noise(90, 131))
    cut = np.asarray(ImagePolicy(48, "random", 16, seed=3).apply(image, "x")).astype(int)
    whole = np.asarray(image.resize((70, 48), Image.Resampling.BICUBIC)).astype(int)
    errors = [np.abs(whole[:, left : left + 48] - cut).max() for left in range(23)]
    assert min(errors) <= 1 and sorted(errors)[1] > 10


def test_a_random_place_needs_the_key() -> None:
    with pytest.raises(RangeError, match="crop 'random' needs the picture's key"):
        ImagePolicy(32, "random", 16, seed=0).apply(Image.new("RGB", (40, 40)))


# ------------------------------------------------------------------------------------- buckets


@pytest.mark.parametrize(
    ("size", "multiple"), [(128, 16), (64, 16), (16, 16), (256, 16), (64, 8), (1024, 32)]
)
def test_buckets_are_few_have_whole_patches_and_about_one_area(size: int, multiple: int) -> None:
    buckets = ImagePolicy(size, "buckets", multiple).buckets()
    assert (size, size) in buckets and len(buckets) == len(set(buckets)) <= 9
    assert sorted((w, h) for h, w in buckets) == sorted(buckets)
    ratios = [width / height for height, width in buckets]
    assert ratios == sorted(ratios)
    side = size // multiple
    for height, width in buckets:
        assert height % multiple == width % multiple == 0
        assert abs(height * width / size**2 - 1) <= 1.2 / side
    if side >= 8:
        assert len(buckets) >= 7 and 0.45 < ratios[0] < 0.6


@pytest.mark.parametrize(
    ("given", "result"),
    [
        ((500, 500), (128, 128)),
        ((500, 375), (144, 112)),
        ((500, 333), (160, 112)),
        ((375, 500), (112, 144)),
        ((1920, 1080), (176, 96)),
        ((9000, 100), (176, 96)),
        ((1, 9000), (96, 176)),
        ((144, 112), (144, 112)),
        ((3, 2), (160, 112)),
    ],
)
def test_a_picture_goes_to_the_nearest_ratio(
    given: tuple[int, int], result: tuple[int, int]
) -> None:
    policy = ImagePolicy(128, "buckets", 16)
    assert policy.apply(Image.new("RGB", given)).size == result


def test_nearest_is_meant_in_logarithms() -> None:
    policy = ImagePolicy(64, "buckets", 16)  # the ratios 5/3 and 1 are next to one another
    between = (5 / 3) ** 0.5
    for factor, width in ((0.99, 64), (1.01, 80)):
        assert policy.apply(Image.new("RGB", (round(1000 * between * factor), 1000))).width == width


@pytest.mark.parametrize("given", [(90, 131), (131, 90), (200, 131)])
def test_a_bucket_is_covered_and_its_middle_cut_out(given: tuple[int, int]) -> None:
    image = Image.fromarray(noise(given[1], given[0]))
    seen = ImagePolicy(64, "buckets", 16).apply(image)
    factor = max(seen.width / given[0], seen.height / given[1])
    whole = image.resize(
        (round(given[0] * factor), round(given[1] * factor)), Image.Resampling.BICUBIC
    )
    left, top = (whole.width - seen.width) // 2, (whole.height - seen.height) // 2
    assert min(left, top) == 0
    expected = whole.crop((left, top, left + seen.width, top + seen.height))
    assert np.abs(np.asarray(seen).astype(int) - np.asarray(expected)).max() <= 1


# ------------------------------------------------------------------------------------- reading


def soft(height: int, width: int) -> Image.Image:
    return Image.fromarray(noise(9, 11)).resize((width, height), Image.Resampling.BICUBIC)


def as_jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.mark.parametrize("crop", ["square", "grid", "random", "buckets"])
def test_read_is_read_image_and_apply(crop: Any) -> None:
    policy = ImagePolicy(32, crop, 16, seed=5 if crop == "random" else None)
    data = as_jpeg(soft(150, 211))
    expected = np.asarray(policy.apply(read_image(data), "k"))
    seen = policy.read(data, "k")
    assert seen.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(seen), expected)
    near = np.asarray(dataclasses.replace(policy, reduced=True).read(data, "k")).astype(int)
    assert near.shape == expected.shape
    assert 0 < np.abs(near - expected).max() <= 12 and np.abs(near - expected).mean() < 1
    small = as_jpeg(soft(120, 211))
    np.testing.assert_array_equal(
        np.asarray(dataclasses.replace(policy, reduced=True).read(small, "k")),
        np.asarray(policy.read(small, "k")),
    )


@pytest.mark.parametrize(
    "kind", ["PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "ICO", "JPEG2000", "PPM", "TGA", "MPO"]
)
def test_read_gives_the_same_of_any_format(kind: str) -> None:
    file = io.BytesIO()
    soft(64, 64).save(file, kind)
    policy = ImagePolicy(32, "grid", 16)
    expected = np.asarray(policy.apply(read_image(file.getvalue())))
    np.testing.assert_array_equal(np.asarray(policy.read(file.getvalue(), "k")), expected)


def test_read_leaves_a_pillow_image_as_it_is() -> None:
    for size in (32, 48):
        image = soft(48, 48)
        image.info["note"] = "mine"
        before = np.array(image)
        ImagePolicy(size, "grid", 16).read(image, "k").putpixel((0, 0), (1, 2, 3))
        np.testing.assert_array_equal(np.asarray(image), before)
        assert image.info == {"note": "mine"}


def test_a_jpeg_of_the_right_size_keeps_its_pixels() -> None:
    data = as_jpeg(soft(48, 71))
    seen = ImagePolicy(None, "grid", 16).read(data, "k")
    assert seen.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(read_image(data))[:, 3:67])


@pytest.mark.parametrize("reduced", [False, True])
def test_errors_of_read_begin_with_the_key(reduced: bool) -> None:
    with pytest.raises(ImageError, match="^photo 7: is not a picture"):
        ImagePolicy(32, "square", 16, reduced=reduced).read(b"some text", "photo 7")


# ------------------------------------------------------------------------------------- tensors


def test_tensors_and_back() -> None:
    array = noise(5, 7)
    tensor = to_tensor(array)
    assert tensor.dtype == torch.float32 and tensor.shape == (3, 5, 7) and tensor.is_contiguous()
    assert torch.equal(tensor, to_tensor(Image.fromarray(array)))
    assert tensor[1, 2, 3].item() == pytest.approx(array[2, 3, 1] / 255)
    np.testing.assert_array_equal(to_array(to_pil(tensor)), array)


def test_to_pil_clamps_and_rounds() -> None:
    tensor = torch.tensor([-1.0, 0.4999 / 255, 0.6 / 255, 2.0]).expand(3, 1, 4)
    assert to_array(to_pil(tensor))[0, :, 0].tolist() == [0, 0, 1, 255]
