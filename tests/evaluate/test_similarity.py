from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from semhitok import SemHiTok
from semhitok.data.sources import ImageSource
from semhitok.errors import DataError
from semhitok.evaluate.similarity import similarity, within_share


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_share_is_one_for_codes_that_say_nothing_however_many_there_are() -> None:
    vectors = torch.randn(4000, 6, generator=seeded())
    blocks = torch.arange(4000) % 20
    for count in (5, 800):
        codes = torch.randint(count, (4000,), generator=seeded(1))
        figure = within_share(codes, vectors, blocks)
        assert figure["mean"] == pytest.approx(1, abs=0.02)
        assert figure["low"] < 1 < figure["high"]


def test_share_of_known_variances() -> None:
    codes = torch.randint(10, (20_000,), generator=seeded(1))
    means = 2 * torch.randn(10, 3, generator=seeded(2))
    vectors = means[codes] + torch.randn(20_000, 3, generator=seeded(3))
    between = means[codes].var(dim=0).sum()
    figure = within_share(codes, vectors, torch.arange(20_000) % 20)
    assert figure["mean"] == pytest.approx(float(3 / (3 + between)), rel=0.03)
    assert 0 < figure["standard_error"] < 0.02


def test_patches_of_one_picture_widen_the_interval() -> None:
    codes = torch.randint(4, (4000,), generator=seeded(1))
    blocks = torch.arange(4000) // 200
    alone = torch.randn(4000, 1, generator=seeded(2))
    together = alone + 3 * torch.randn(20, 1, generator=seeded(3))[blocks] * (codes[:, None] == 0)
    errors = [within_share(codes, x, blocks)["standard_error"] for x in (alone, together)]
    assert errors[1] > 3 * errors[0]


def test_what_cannot_be_measured_is_refused() -> None:
    vectors = torch.randn(4, 2)
    with pytest.raises(DataError, match="one block"):
        within_share(torch.zeros(4).long(), vectors, torch.zeros(4).long())
    with pytest.raises(DataError, match="4 patches of 4 codes"):
        within_share(torch.arange(4), vectors, torch.tensor([0, 0, 1, 1]))


class Noise(ImageSource):
    """Pictures of 32 px; colours of their own."""

    name = "noise"

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return str(index)

    def read_bytes(self, index: int) -> bytes:
        import io

        random = np.random.default_rng(index)
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((32, 32), Image.Resampling.BILINEAR).save(buffer, "PNG")
        return buffer.getvalue()

    def _identity(self) -> list[str]:
        return [self.name, str(self.count)]


def test_similarity_of_a_tokenizer(tiny_tokenizer: SemHiTok) -> None:
    figures = similarity(tiny_tokenizer, Noise(60), 32)
    assert set(figures) == {"pixels", "latents", "protocol"}
    for name in ("pixels", "latents"):
        shares = {which: figure["mean"] for which, figure in figures[name].items()}
        assert shares["kmeans"] < 0.6 < shares["semantic_code"] < 1.1
        assert shares["random"] == pytest.approx(1, abs=0.05)
    assert figures["protocol"]["pictures"] == 60
    with pytest.raises(DataError, match="30 pictures; 40 are needed"):
        similarity(tiny_tokenizer, Noise(30), 32)
