from __future__ import annotations

import pytest
import torch

from semhitok.errors import IdError, NotFoundError
from semhitok.lm.inputs import CodeVectors, DualAdapter, TableEmbedding, make_adapter
from semhitok.model import SemHiTok


@pytest.fixture
def codes(tiny_tokenizer: SemHiTok) -> CodeVectors:
    codes = CodeVectors()
    codes.tokenizer = tiny_tokenizer
    return codes


def dims(tokenizer: SemHiTok) -> tuple[int, int]:
    return tokenizer.config.semantic.code_dim, tokenizer.config.pixel.code_dim


def test_code_vectors_are_those_of_the_decoder(
    codes: CodeVectors, tiny_tokenizer: SemHiTok
) -> None:
    ids = torch.arange(64)
    semantic, pixel = codes(ids)
    assert (semantic.shape[1], pixel.shape[1]) == dims(tiny_tokenizer)
    wanted = tiny_tokenizer.decoder_input(ids[None, None])[0, 0]
    assert torch.equal(torch.cat([semantic, pixel], dim=1), wanted)
    assert not semantic.requires_grad and not pixel.requires_grad
    with pytest.raises(IdError, match="id 64 at"):
        codes(torch.tensor([64]))


@pytest.mark.parametrize("name", ["dual", "semantic", "pixel", "table"])
def test_one_interface(name: str, codes: CodeVectors, tiny_tokenizer: SemHiTok) -> None:
    adapter = make_adapter(name, *dims(tiny_tokenizer), 64, 33)
    assert adapter(torch.tensor([63, 0, 63]), codes).shape == (3, 33)
    assert adapter(torch.empty(0, dtype=torch.int64), codes).shape == (0, 33)


def test_what_each_adapter_sees(codes: CodeVectors, tiny_tokenizer: SemHiTok) -> None:
    siblings = torch.tensor([4, 5])  # one semantic code, two pixel codes
    sees = {}
    for name in ("dual", "semantic", "pixel", "table"):
        first, second = make_adapter(name, *dims(tiny_tokenizer), 64, 32)(siblings, codes)
        sees[name] = not torch.allclose(first, second, atol=1e-5)
    assert sees == {"dual": True, "semantic": False, "pixel": True, "table": True}


def test_the_dual_adapter_projects_apart(codes: CodeVectors, tiny_tokenizer: SemHiTok) -> None:
    adapter = DualAdapter(*dims(tiny_tokenizer), 32)
    first, second = adapter(torch.tensor([4, 5]), codes)
    assert torch.allclose(first[:16], second[:16], atol=1e-5)
    assert not torch.allclose(first[16:], second[16:], atol=1e-5)


def test_without_a_tokenizer() -> None:
    ids = torch.tensor([3])
    assert TableEmbedding(64, 8)(ids, CodeVectors()).shape == (1, 8)
    with pytest.raises(NotFoundError, match=r"call attach\(tokenizer\)"):
        DualAdapter(4, 2, 8)(ids, CodeVectors())


def test_unknown_name() -> None:
    with pytest.raises(NotFoundError, match="no input 'raw'; allowed: dual, semantic, pixel"):
        make_adapter("raw", 4, 2, 64, 8)
