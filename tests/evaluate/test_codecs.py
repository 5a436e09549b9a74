import numpy as np
import pytest
from PIL import Image

from semhitok.errors import RangeError
from semhitok.evaluate.codecs import (
    CODECS,
    JPEG,
    at_bytes,
    at_smallest,
    codec_psnr,
)


@pytest.fixture(scope="module")
def picture():
    """96 x 64 px of smooth colour with some noise, which costs bytes."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((96, 64), Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray((smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_quality_buys_fidelity_with_bytes(codec, picture):
    files = [codec.encode(picture, quality) for quality in (codec.lowest, 40, 90)]
    sizes = [len(file) for file in files]
    fidelity = [codec_psnr(codec, picture, file) for file in files]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert fidelity == sorted(fidelity) and fidelity[-1] > fidelity[0] + 3
    assert codec.decode(files[0]).size == picture.size
    assert at_smallest(codec, picture) == files[0]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_at_bytes_is_the_lowest_quality_that_uses_the_budget(codec, picture):
    budget = 1500
    data, quality = at_bytes(codec, picture, budget)
    assert len(data) >= budget > len(codec.encode(picture, quality - 1))
    assert data == codec.encode(picture, quality)


def test_at_bytes_beyond_either_end(picture):
    assert at_bytes(JPEG, picture, 1) == (at_smallest(JPEG, picture), JPEG.lowest)
    assert at_bytes(JPEG, picture, 10**6) == (JPEG.encode(picture, JPEG.highest), JPEG.highest)


def test_quality_outside_the_range(picture):
    with pytest.raises(RangeError, match="JPEG quality is 0; allowed: 1 to 100"):
        JPEG.encode(picture, 0)
