from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semhitok import SemHiTok
from semhitok.evaluate.adapters import CodecAdapter, TokenizerAdapter
from semhitok.evaluate.codecs import CODECS, Codec
from semhitok.evaluate.metrics import psnr


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_codec_uses_at_least_its_bytes_and_gains_by_more(codec: Codec, images: Tensor) -> None:
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    images = (images + 0.5 * noise).clamp(0, 1)  # smooth ones never need as many bytes
    budget = 1000 / 32**2
    poor, rich = CodecAdapter(codec, 0.0), CodecAdapter(codec, budget)
    assert rich.name == codec.name.lower()
    encoded = rich.encode(images)
    assert rich.bits(encoded) == [8 * len(data) for data in encoded]
    assert all(len(data) >= 1000 for data in encoded)
    back, mush = rich.decode(encoded), poor.decode(poor.encode(images))
    assert back.shape == images.shape
    assert bool((psnr(images, back) > psnr(images, mush)).all())


def test_a_tokenizer_is_seen_as_it_is(tiny_tokenizer: SemHiTok, images: Tensor) -> None:
    adapter = TokenizerAdapter(tiny_tokenizer, "pixel")
    ids = adapter.encode(images)
    assert torch.equal(ids, tiny_tokenizer.encode(images))
    assert torch.equal(adapter.decode(ids), tiny_tokenizer.decode(ids, decoder="pixel"))
    assert adapter.bits(ids) == [16 * 6.0] * 4  # 4 x 4 patches of 16 * 4 ids
    assert adapter.describe()["hash"] == tiny_tokenizer.hash
    assert adapter.describe()["decoder"] == "pixel"
    assert adapter.multiple == tiny_tokenizer.patch_size
