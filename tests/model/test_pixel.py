"""Linear paths from principal components, larger decoders from smaller ones, perturbed codes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from semhitok.model.config import PixelConfig, PixelDecoderConfig, TransformerConfig
from semhitok.model.layers import patchify
from semhitok.model.pixel import (
    PixelDecoder,
    PixelEncoder,
    fit_linear_paths,
    join_vectors,
    perturb_pixel_codes,
    warm_start,
)

PATCH = 4
SMALL = PixelDecoderConfig(
    transformer=TransformerConfig(width=16, depth=1, heads=2),
    stage_widths=(6,),
    stage_depths=(1,),
)


def pixel_config(code_dim: int) -> PixelConfig:
    return PixelConfig(num_codes=4, code_dim=code_dim, encoder=SMALL.transformer, decoder=SMALL)


def pictures(n: int = 40) -> Tensor:
    coarse = torch.rand(n, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (16, 24), mode="bicubic").clamp(0, 1)


def trained(config: PixelDecoderConfig, in_dim: int = 9, patch_size: int = PATCH) -> PixelDecoder:
    """A decoder none of whose weights is zero."""
    torch.manual_seed(3)
    decoder = PixelDecoder(patch_size, in_dim, config).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return decoder


# -- linear paths ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code_dim", [1, 5, 20])
def test_linear_paths_give_the_pca_reconstruction(code_dim: int) -> None:
    images = pictures()
    encoder = PixelEncoder(PATCH, pixel_config(code_dim))
    decoder = PixelDecoder(PATCH, 7 + code_dim, SMALL)
    fit_linear_paths(encoder, decoder, images)
    with torch.no_grad():
        latents = encoder(images)
        painted = decoder(torch.cat([torch.randn(*latents.shape[:3], 7), latents], dim=-1))
    rows = patchify(2 * images - 1, PATCH).flatten(0, 2).double()
    mean = rows.mean(dim=0)
    _, _, components = torch.linalg.svd(rows - mean, full_matrices=False)
    kept = components[:code_dim]
    expected = mean + (rows - mean) @ kept.T @ kept
    got = patchify(2 * painted - 1, PATCH).flatten(0, 2).double()
    assert torch.allclose(got, expected, atol=1e-4)


def test_fitted_latents_have_mean_zero_and_unit_size_on_average() -> None:
    images = pictures()
    encoder, decoder = PixelEncoder(PATCH, pixel_config(6)), PixelDecoder(PATCH, 8, SMALL)
    fit_linear_paths(encoder, decoder, images)
    with torch.no_grad():
        latents = encoder(images).flatten(0, 2)
    assert latents.mean(dim=0).abs().max() < 1e-3
    variances = latents.var(dim=0)
    assert variances.mean() == pytest.approx(1, abs=1e-3)
    assert (variances[:-1] >= variances[1:] - 1e-5).all()
    # One scale for all: distances between latents are distances between pixels.
    rows = encoder.linear.weight.detach()
    assert torch.allclose(rows @ rows.T, rows[0].square().sum() * torch.eye(6), atol=1e-4)


def test_second_paths_start_at_zero_and_learn() -> None:
    encoder, decoder = PixelEncoder(PATCH, pixel_config(6)), PixelDecoder(PATCH, 8, SMALL)
    images = pictures(3)
    assert encoder(images).equal(encoder.linear(patchify(2 * images - 1, PATCH)))
    vectors = torch.randn(2, 3, 5, 8)
    linear = decoder.linear(vectors)
    assert patchify(2 * decoder(vectors) - 1, PATCH).allclose(linear, atol=1e-5)
    decoder(vectors).square().sum().backward()
    encoder(images).square().sum().backward()
    for weight in (decoder.head.weight, encoder.head.weight):
        assert weight.grad is not None and weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("patch_size", "widths"), [(4, ()), (8, (6,)), (8, (6, 5, 4)), (6, (5,))])
def test_decoder_paints_any_grid_at_the_patch_size(
    patch_size: int, widths: tuple[int, ...]
) -> None:
    config = dataclasses.replace(SMALL, stage_widths=widths, stage_depths=(1,) * len(widths))
    painted = trained(config, patch_size=patch_size)(torch.randn(2, 3, 5, 9))
    assert painted.shape == (2, 3, 3 * patch_size, 5 * patch_size)
    assert painted.dtype == torch.float32


def test_encoder_sees_patches_in_their_places() -> None:
    encoder = PixelEncoder(PATCH, pixel_config(6))
    images = torch.rand(1, 3, 8, 12)
    other = images.clone()
    other[:, :, 4:8, 8:12] = 0.5
    changed = (encoder(images) - encoder(other)).abs().sum(-1)[0] > 0
    assert changed.nonzero().tolist() == [[1, 2]]


# -- warm start ------------------------------------------------------------------------------------

LARGER = {
    "deeper": dataclasses.replace(
        SMALL, transformer=dataclasses.replace(SMALL.transformer, depth=3)
    ),
    "wider convolutions": dataclasses.replace(SMALL, stage_widths=(11,)),
    "more convolutions": dataclasses.replace(SMALL, stage_depths=(3,)),
    "wider mlp": dataclasses.replace(
        SMALL, transformer=dataclasses.replace(SMALL.transformer, mlp_ratio=6.0)
    ),
    "all": PixelDecoderConfig(
        transformer=TransformerConfig(width=16, depth=4, heads=2, mlp_ratio=5.0),
        stage_widths=(10,),
        stage_depths=(2,),
    ),
}


@pytest.mark.parametrize("name", LARGER)
def test_warm_start_paints_the_same_pictures(name: str) -> None:
    smaller, larger = trained(SMALL), PixelDecoder(PATCH, 9, LARGER[name]).eval()
    vectors = torch.randn(2, 3, 5, 9)
    warm_start(larger, smaller)
    assert torch.allclose(larger(vectors), smaller(vectors), atol=1e-5)


def test_what_only_the_larger_decoder_has_can_learn() -> None:
    smaller, larger = trained(SMALL), PixelDecoder(PATCH, 9, LARGER["all"])
    warm_start(larger, smaller)
    larger(torch.randn(2, 3, 5, 9)).square().sum().backward()
    assert all(
        block.mlp[-1].weight.grad.abs().sum() > 0 for block in list(larger.transformer.blocks)[1:]
    )
    assert larger.head.weight.grad is not None
    assert (larger.head.weight.grad[:, 6:].abs().sum(dim=(0, 2, 3)) > 0).all()


def test_warm_start_from_another_width_is_the_linear_path_alone() -> None:
    wide = dataclasses.replace(SMALL, transformer=TransformerConfig(width=24, depth=1, heads=2))
    smaller, larger = trained(SMALL), PixelDecoder(PATCH, 9, wide).eval()
    vectors = torch.randn(2, 3, 5, 9)
    warm_start(larger, smaller)
    painted = patchify(2 * larger(vectors) - 1, PATCH)
    assert torch.allclose(painted, smaller.linear(vectors), atol=1e-5)
    assert not torch.allclose(larger(vectors), smaller(vectors), atol=1e-2)


def test_warm_start_leaves_the_smaller_decoder_alone() -> None:
    smaller, larger = trained(SMALL), PixelDecoder(PATCH, 9, LARGER["all"])
    before = {n: t.clone() for n, t in smaller.state_dict().items()}
    warm_start(larger, smaller)
    with torch.no_grad():
        for parameter in larger.parameters():
            parameter.zero_()
    assert all(t.equal(before[n]) for n, t in smaller.state_dict().items())


# -- codes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 4, 64])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_codes_becomes_another_one(m: int, share: float) -> None:
    indices = torch.randint(m, (8, 50, 50), generator=torch.Generator().manual_seed(1))
    out = perturb_pixel_codes(indices, m, share, torch.Generator().manual_seed(0))
    # 20,000 draws: a standard error of 0.003 at 0.25. A draw of the same code would show as well.
    assert float((out != indices).double().mean()) == pytest.approx(share, abs=0.015)
    assert out.dtype == torch.int64 and 0 <= int(out.min()) and int(out.max()) < m


def test_other_codes_are_drawn_evenly() -> None:
    out = perturb_pixel_codes(
        torch.ones(1, 100, 100, dtype=torch.int64), 5, 1.0, torch.Generator().manual_seed(0)
    )
    counts = out.flatten().bincount(minlength=5)
    assert counts[1] == 0 and (counts[[0, 2, 3, 4]] - 2500).abs().max() < 250


def test_perturbation_follows_its_generator() -> None:
    indices = torch.zeros(1, 20, 20, dtype=torch.int64)
    first, again, other = (
        perturb_pixel_codes(indices, 8, 0.5, torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    )
    assert first.equal(again) and not first.equal(other)


def test_the_only_code_of_a_parent_stays() -> None:
    indices = torch.zeros(1, 4, 4, dtype=torch.int64)
    assert not perturb_pixel_codes(indices, 1, 1.0, torch.Generator()).any()


def test_joined_vectors_have_unit_entries_then_the_pixel_vector() -> None:
    semantic = torch.nn.functional.normalize(torch.randn(1, 2, 3, 16), dim=-1)
    pixel = torch.randn(1, 2, 3, 4)
    joined = join_vectors(semantic, pixel)
    assert torch.allclose(joined[..., :16], 4 * semantic, atol=1e-6)
    assert joined[..., 16:].equal(pixel)
    half = join_vectors(0.5 * semantic, pixel)  # a code that training left shorter than one
    assert torch.allclose(half, joined, atol=1e-5)
