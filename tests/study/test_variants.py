"""Parts that a row has otherwise: they do what their names say, and nothing else."""

from __future__ import annotations

import torch

from semhitok.model import HierarchicalCodebook, SemHiTok, TokenizerConfig
from semhitok.model.codebook import FreeOffsets
from semhitok.study import variants
from semhitok.study.variants import (
    OwnCodebook,
    PixelOnlyDecoder,
    RotationCodebook,
    SequenceDecoder,
    SimVQCodebook,
    UnionSemHiTok,
    rotate_to,
)

PARENTS, M, D = 4, 6, 5


def decoder(kind: type, config: TokenizerConfig) -> torch.nn.Module:
    joined = config.semantic.code_dim + config.pixel.code_dim
    made = kind(config.patch_size, joined, config.pixel.code_dim, config.pixel.decoder)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


def test_one_decoder_is_blind_to_semantics_and_the_other_is_not(
    tiny_config: TokenizerConfig,
) -> None:
    width = tiny_config.semantic.code_dim + tiny_config.pixel.code_dim
    vectors = torch.randn(1, 3, 4, width)
    other = vectors.clone()
    other[..., : tiny_config.semantic.code_dim] += 1
    for kind, sees in ((PixelOnlyDecoder, False), (SequenceDecoder, True)):
        made = decoder(kind, tiny_config)
        assert made(vectors).shape == (1, 3, 24, 32)
        assert made(vectors).equal(made(other)) != sees


def test_the_rotation_gives_the_code_and_turns_the_gradient() -> None:
    latents, codes = torch.randn(9, D, requires_grad=True), torch.randn(9, D)
    turned = rotate_to(latents, codes)
    torch.testing.assert_close(turned, codes)
    # A step of the latent along itself lengthens the code along itself: the angle is kept.
    (turned * codes).sum().backward()
    assert latents.grad is not None
    cosine = torch.nn.functional.cosine_similarity(latents.grad, latents, dim=-1)
    torch.testing.assert_close(cosine, torch.ones(9))


def codebook(kind: type[HierarchicalCodebook]) -> HierarchicalCodebook:
    torch.manual_seed(0)
    made = kind(M, D, FreeOffsets(PARENTS, M, D))
    torch.nn.init.normal_(made.offsets.weight, std=0.3)
    return made


def test_codebooks_agree_with_their_own_tables() -> None:
    latents, parents = torch.randn(50, D), torch.randint(PARENTS, (50,))
    for kind in (RotationCodebook, SimVQCodebook, OwnCodebook):
        made = codebook(kind)
        if kind is SimVQCodebook:
            torch.nn.init.normal_(made.map.weight)
        found = made(latents, parents)
        distances = (made.table()[parents] - latents[:, None]).square().sum(-1)
        assert found.indices.equal(distances.argmin(dim=1))
        torch.testing.assert_close(found.quantized, made.table()[parents, found.indices])


def test_what_is_fixed_gets_no_gradient_even_when_all_are_asked_to_learn() -> None:
    for kind, learning in (
        (SimVQCodebook, {"map.weight", "offsets.weight"}),
        (OwnCodebook, {"offsets.weight"}),
    ):
        made = codebook(kind).requires_grad_(True)
        assert {n for n, p in made.named_parameters() if p.requires_grad} == learning


def test_the_union_is_the_best_of_all_similar_patches(
    tiny_config: TokenizerConfig, monkeypatch
) -> None:
    torch.manual_seed(0)
    model = UnionSemHiTok(tiny_config).eval().requires_grad_(False)
    keys = torch.nn.functional.normalize(
        torch.randn(1, 3, 3, tiny_config.semantic.code_dim) + 0.7, dim=-1
    )
    latents = torch.randn(1, 3, 3, tiny_config.pixel.code_dim)
    monkeypatch.setattr(variants, "SIMILAR", 0.4)
    lenders, indices = model.search(keys, latents)
    own = model.semantic.codebook.search(keys).flatten()
    table, flat = model.pixel.codebook.table(), keys.flatten(0, 2)
    lent = 0
    for patch, latent in enumerate(latents.flatten(0, 2)):
        similar = (flat @ flat[patch] > 0.4) | (torch.arange(9) == patch)
        distances = {
            (int(parent), j): float((table[parent, j] - latent).square().sum())
            for parent in own[similar].unique()
            for j in range(table.shape[1])
        }
        chosen = (int(lenders.flatten()[patch]), int(indices.flatten()[patch]))
        assert distances[chosen] == min(distances.values())
        lent += chosen[0] != int(own[patch])
    assert lent > 0


def test_without_similar_patches_the_union_is_the_plain_search(
    tiny_config: TokenizerConfig, monkeypatch, images: torch.Tensor
) -> None:
    model = UnionSemHiTok(tiny_config).eval().requires_grad_(False)
    monkeypatch.setattr(variants, "SIMILAR", 1.1)
    assert model.encode(images).equal(SemHiTok.encode(model, images))
