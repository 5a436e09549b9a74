"""The semantic branch: projections, the decoder's units, trunks, and who may learn."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch
from torch import Tensor

from semhitok.errors import FormatError
from semhitok.model import SemHiTok, Teacher, TokenizerConfig
from semhitok.model.config import SemanticConfig
from semhitok.model.semantic import Projection, SemanticBranch, SemanticDecoder


def features() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(400, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    return mixed * torch.linspace(0.1, 40, 12) + 3


@pytest.mark.parametrize(("kind", "dim"), [("standardize", 12), ("pca", 5), ("mlp", 7)])
def test_latents_are_unit_vectors(kind: str, dim: int) -> None:
    projection = Projection(12, dim, kind)
    projection.fit(features())
    latents = projection(features())
    assert latents.shape == (400, dim)
    assert torch.allclose(latents.norm(dim=-1), torch.ones(400), atol=1e-5)


def test_standardize_divides_each_channel_by_its_deviation() -> None:
    projection = Projection(12, 12, "standardize")
    projection.fit(features())
    scaled = features() / features().std(dim=0)
    assert torch.allclose(projection(features()), scaled / scaled.norm(dim=-1, keepdim=True))
    assert not list(projection.parameters())


def test_standardize_keeps_the_width() -> None:
    with pytest.raises(FormatError, match="code_dim is 5; projection 'standardize' keeps .* 12"):
        Projection(12, 5, "standardize")


def test_pca_keeps_the_leading_directions_in_order() -> None:
    projection = Projection(12, 5, "pca")
    projection.fit(features())
    scaled = (features() / features().std(dim=0)).double()
    centred = scaled - scaled.mean(dim=0)
    _, strengths, directions = torch.linalg.svd(centred, full_matrices=False)
    projected = projection.map(features() * projection.scale).double()
    assert projected.mean(dim=0).abs().max() < 1e-4
    assert torch.allclose(projected.norm(dim=0), strengths[:5], rtol=1e-4)
    expected = centred @ directions[:5].T
    signs = (projected * expected).sum(dim=0).sign()
    assert torch.allclose(projected, expected * signs, atol=1e-3)
    assert not any(p.requires_grad for p in projection.parameters())


def test_pca_does_not_depend_on_the_eigenvectors_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Projection(12, 5, "pca"), Projection(12, 5, "pca")
    first.fit(features())
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: (eigh(a)[0], -eigh(a)[1]))
    second.fit(features())
    assert first.map.weight.equal(second.map.weight)


def test_a_channel_that_never_changes_does_no_harm() -> None:
    dead = features()
    dead[:, 3] = 2.0
    projection = Projection(12, 12, "standardize")
    projection.fit(dead)
    assert projection(dead).isfinite().all()


def test_standardized_features_are_restored(tiny_config: TokenizerConfig) -> None:
    decoder = SemanticDecoder(6, 12, tiny_config.semantic.decoder)
    decoder.mean.copy_(features().mean(dim=0))
    decoder.deviation.copy_(features().std(dim=0))
    standardized = decoder.standardize(features())
    assert standardized.mean(dim=0).abs().max() < 1e-4
    assert torch.allclose(standardized.std(dim=0), torch.ones(12), atol=1e-4)
    assert torch.allclose(decoder.restore(standardized), features(), atol=1e-3)


def test_features_come_back_in_the_teachers_units(tiny_tokenizer: SemHiTok) -> None:
    branch = tiny_tokenizer.semantic
    assert branch.decoder is not None
    indices = torch.randint(16, (2, 3, 4))
    with torch.no_grad():
        before = branch.features(indices)
        branch.decoder.deviation.mul_(2)
        branch.decoder.mean.copy_(2 * branch.decoder.mean + 5)
        assert torch.allclose(branch.features(indices), 2 * before + 5, atol=1e-4)


@pytest.mark.parametrize("projection", ["standardize", "mlp"])
def test_a_frozen_trunk_gets_no_gradient(
    tiny_config: TokenizerConfig, projection: Literal["standardize", "mlp"]
) -> None:
    config = dataclasses.replace(tiny_config.semantic, projection=projection)
    branch = SemanticBranch(config)
    latents = branch.latents(torch.rand(2, 3, 16, 16), (2, 2))
    assert latents.requires_grad == (projection == "mlp")
    if projection == "mlp":
        latents.sum().backward()
    assert branch.trunk is not None
    assert all(p.grad is None and not p.requires_grad for p in branch.trunk.parameters())


def test_a_finetuned_trunk_is_a_copy_that_learns(tiny_config: TokenizerConfig) -> None:
    teacher = Teacher.from_config(tiny_config.semantic.teacher)
    before = {n: t.clone() for n, t in teacher.state_dict().items()}
    config: SemanticConfig = dataclasses.replace(tiny_config.semantic, trunk="finetuned")
    branch = SemanticBranch(config, teacher)
    assert branch.trunk is not teacher and branch.trunk is not None
    assert all(p.requires_grad for p in branch.trunk.parameters())
    with torch.no_grad():
        for parameter in branch.trunk.parameters():
            parameter.add_(1)
    assert all(t.equal(before[n]) for n, t in teacher.state_dict().items())


def test_a_given_teacher_is_the_trunk(tiny_config: TokenizerConfig) -> None:
    teacher = Teacher.from_config(tiny_config.semantic.teacher)
    assert SemanticBranch(tiny_config.semantic, teacher).trunk is teacher


def test_only_the_asked_parts_are_built(tiny_config: TokenizerConfig) -> None:
    for parts, trunk, decoder in [
        (("encode",), True, False),
        (("features",), False, True),
        (("decode",), False, False),
    ]:
        branch = SemanticBranch(tiny_config.semantic, parts=parts)
        assert (branch.trunk is not None) == (branch.projection is not None) == trunk
        assert (branch.decoder is not None) == decoder
        assert branch.codebook.codes.shape == (16, tiny_config.semantic.code_dim)


def test_encode_is_the_search_of_the_latents(tiny_tokenizer: SemHiTok) -> None:
    images, branch = torch.rand(2, 3, 32, 24), tiny_tokenizer.semantic
    indices = branch.encode(images, (4, 3))
    distances = torch.cdist(branch.latents(images, (4, 3)).flatten(0, 2), branch.codebook.codes)
    assert indices.flatten().equal(distances.argmin(dim=-1))
    assert len(indices.unique()) > 5  # else the fixture tells nothing
