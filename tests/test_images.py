"""The resize policy, and tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from semhitok.errors import ImageError, RangeError
from semhitok.images import ImagePolicy, to_array, to_pil, to_tensor


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


def test_policies_describe_themselves() -> None:
    assert ImagePolicy(128, "square", 16).describe() == (
        "short side to 128 (Pillow bicubic), centre crop square, multiples of 16"
    )
    assert ImagePolicy(None, "grid", 8).describe() == (
        "own size, centre crop to whole patches, multiples of 8"
    )


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
