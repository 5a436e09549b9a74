"""Patches in and out, rotary positions, transformer over any grid, convolutions that start idle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semhitok.model.config import TransformerConfig
from semhitok.model.layers import (
    Block,
    ResidualConvolutions,
    Transformer,
    attend_in_windows,
    patchify,
    rotary_angles,
    rotate,
    unit_rms,
    unpatchify,
    window_runs,
    zero_linear,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(("height", "width", "patch"), [(8, 8, 8), (32, 16, 4), (6, 10, 2)])
def test_unpatchify_undoes_patchify(height: int, width: int, patch: int) -> None:
    images = torch.rand(2, 3, height, width)
    patches = patchify(images, patch)
    assert patches.shape == (2, height // patch, width // patch, 3 * patch**2)
    assert unpatchify(patches, patch).equal(images)


def test_a_patch_holds_its_square_by_channel_row_and_column() -> None:
    images = torch.rand(1, 3, 12, 20)
    patch = patchify(images, 4)[0, 1, 3]
    assert patch.equal(images[0, :, 4:8, 12:16].flatten())


def test_patches_are_contiguous_for_one_picture_as_for_many() -> None:
    """A linear layer on other strides takes another routine, in other bits (C5)."""
    assert all(patchify(torch.rand(n, 3, 16, 16), 4).is_contiguous() for n in (1, 2))


def scores(query: Tensor, key: Tensor, grid: tuple[int, int]) -> Tensor:
    """Products (h, w, h, w) of one query and one key, put at every place of the grid."""
    angles = rotary_angles(grid, query.shape[-1], CPU)
    tokens = grid[0] * grid[1]
    turned = [
        rotate(v.expand(1, 1, tokens, -1), angles.cos(), angles.sin())[0, 0] for v in (query, key)
    ]
    return (turned[0] @ turned[1].T).view(*grid, *grid)


def test_attention_scores_depend_on_differences_of_place_only() -> None:
    query, key = torch.randn(2, 16, dtype=torch.float64)
    table = scores(query, key, (5, 7))
    for dy, dx in [(0, 0), (1, 0), (0, 1), (2, 3), (-1, 2)]:
        same = torch.stack(
            [
                table[y, x, y + dy, x + dx]
                for y in range(5)
                for x in range(7)
                if 0 <= y + dy < 5 and 0 <= x + dx < 7
            ]
        )
        assert torch.allclose(same, same[0].expand_as(same), atol=1e-5)


def test_rows_and_columns_turn_different_channels() -> None:
    query, key = torch.randn(2, 16, dtype=torch.float64)
    table = scores(query, key, (4, 4))
    assert not torch.isclose(table[0, 0, 0, 2], table[0, 0, 2, 0], atol=1e-3)
    angles = rotary_angles((3, 5), 16, CPU).view(3, 5, 8)
    assert angles[..., :4].equal(angles[:, :1, :4].expand(3, 5, 4))  # the row's half
    assert angles[..., 4:].equal(angles[:1, :, 4:].expand(3, 5, 4))  # the column's half
    assert angles[2, 0, 0] == 2 and angles[0, 3, 4] == 3  # the fastest: a radian a patch


def test_rotation_keeps_lengths() -> None:
    angles = rotary_angles((3, 5), 16, CPU)
    x = torch.randn(2, 4, 15, 16)
    turned = rotate(x, angles.cos(), angles.sin())
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)


def test_unit_rms_has_entries_of_unit_size() -> None:
    x = 37 * torch.randn(3, 5, 16)
    assert torch.allclose(unit_rms(x).square().mean(-1), torch.ones(3, 5), atol=1e-3)


def test_transformer_takes_any_grid_and_knows_place() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(width=16, depth=2, heads=2)).eval()
    for h, w in [(1, 1), (2, 7), (6, 3)]:
        assert model(torch.randn(2, h, w, 16)).shape == (2, h, w, 16)
    x = torch.randn(1, 4, 6, 16)
    mirrored = model(x.flip(2)).flip(2)
    transposed = model(x.transpose(1, 2)).transpose(1, 2)
    assert not torch.allclose(model(x), mirrored, atol=1e-3)
    assert not torch.allclose(model(x), transposed, atol=1e-3)


def test_pictures_of_a_batch_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(width=16, depth=2, heads=2)).eval()
    x = torch.randn(3, 4, 4, 16)
    together = model(x)
    x[1] = 0
    assert model(x)[[0, 2]].equal(together[[0, 2]])


def test_every_patch_sees_every_other() -> None:
    torch.manual_seed(0)
    block = Transformer(TransformerConfig(width=16, depth=1, heads=2))
    x = torch.randn(1, 3, 3, 16, requires_grad=True)
    block(x)[0, 0, 0].square().sum().backward()
    assert x.grad is not None and (x.grad.abs().sum(-1) > 0).all()


def test_block_is_the_identity_once_its_residuals_are_zero() -> None:
    block = Block(TransformerConfig(width=16, depth=1, heads=2))
    for layer in (block.attention.out, block.mlp[-1]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    x, angles = torch.randn(2, 6, 16), rotary_angles((2, 3), 8, CPU)
    assert block(x, (2, 3), angles.cos(), angles.sin()).equal(x)


def test_residual_convolutions_start_as_the_identity() -> None:
    x = torch.randn(2, 8, 5, 6)
    layer = ResidualConvolutions(8)
    assert layer(x).equal(x)
    layer(x).square().sum().backward()
    assert layer.second.weight.grad is not None and layer.second.weight.grad.abs().sum() > 0


def test_zero_linear_adds_nothing_and_can_learn() -> None:
    layer, x = zero_linear(5, 3), torch.randn(4, 5)
    assert not layer(x).any()
    layer(x).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("grid", [(8, 8), (4, 4), (3, 9), (11, 6), (1, 1), (2, 17)])
@pytest.mark.parametrize("shift", [0, 2])
def test_windowed_attention_is_attention_with_a_mask(grid: tuple[int, int], shift: int) -> None:
    h, w = grid
    query, key, value = torch.randn(3, 2, 3, h * w, 8, dtype=torch.float64)
    place = [(torch.arange(side) - shift).div(4, rounding_mode="floor") for side in grid]
    name = (1000 * place[0][:, None] + place[1]).flatten()
    same = name[:, None] == name
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=same)
    torch.testing.assert_close(attend_in_windows(query, key, value, grid, 4, shift), wanted)


def test_windows_tile_an_axis() -> None:
    for length in range(1, 30):
        for shift in (0, 2):
            runs = window_runs(length, 4, shift)
            assert all(size <= 4 for _, _, size in runs)
            places = [start + n for start, count, size in runs for n in range(count * size)]
            assert places == list(range(length))


def test_a_windowed_transformer_sees_as_far_as_its_blocks_carry() -> None:
    torch.manual_seed(0)
    config = TransformerConfig(width=16, depth=2, heads=2, window=4)
    transformer = Transformer(config).double()
    x = torch.randn(1, 16, 16, 16, dtype=torch.float64)
    other = x.clone()
    other[0, 0, 0] += 1
    moved = (transformer(x) != transformer(other)).any(dim=-1)[0]
    # The first block carries it to its window, the second to those windows that meet it.
    assert moved[:6, :6].all() and not moved[6:].any() and not moved[:, 6:].any()
    # With the same weights and one window over all it is the plain transformer.
    plain = Transformer(TransformerConfig(width=16, depth=1, heads=2)).double()
    one = Transformer(TransformerConfig(width=16, depth=1, heads=2, window=16)).double()
    one.load_state_dict(plain.state_dict())
    assert one(x).equal(plain(x))
