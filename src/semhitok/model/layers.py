"""Transformer blocks with 2-D rotary positions, patches in and out.

Grids stay (b, h, w, channels) outside attention, so that any height and width work.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semhitok.model.config import TransformerConfig

WRITTEN_OUT_TOKENS = 144

ROTARY_BASE = 100.0
"""Grids are tens of patches wide: the slowest pair turns once in about 600 patches."""


def patchify(
    images: Float[Tensor, "b 3 height width"], patch_size: int
) -> Float[Tensor, "b h w values"]:
    """Cut pictures into patches; values are ordered (channel, row, column)."""
    # Contiguous: a linear layer reads a single picture's strides by another routine than a batch's
    # copy, in other bits (C5).
    return F.pixel_unshuffle(images, patch_size).permute(0, 2, 3, 1).contiguous()


def unpatchify(
    patches: Float[Tensor, "b h w values"], patch_size: int
) -> Float[Tensor, "b channels height width"]:
    """Inverse of `patchify`."""
    return F.pixel_shuffle(patches.permute(0, 3, 1, 2), patch_size)


def rotary_angles(
    grid: tuple[int, int], head_dim: int, device: torch.device
) -> Float[Tensor, "tokens pairs"]:
    """Angle of each pair of channels: one half turns with the row, the other with the column.

    Reference: Su et al., RoFormer, arXiv:2104.09864, along two axes.
    """
    h, w = grid
    quarter = head_dim // 4
    speeds = ROTARY_BASE ** (-torch.arange(quarter, device=device, dtype=torch.float32) / quarter)
    rows = torch.arange(h, device=device, dtype=torch.float32)[:, None] * speeds
    columns = torch.arange(w, device=device, dtype=torch.float32)[:, None] * speeds
    angles = torch.cat(
        [rows[:, None].expand(h, w, quarter), columns[None].expand(h, w, quarter)], dim=-1
    )
    return angles.reshape(h * w, 2 * quarter)


def rotate(
    x: Float[Tensor, "b heads tokens head_dim"],
    cos: Float[Tensor, "tokens pairs"],
    sin: Float[Tensor, "tokens pairs"],
) -> Float[Tensor, "b heads tokens head_dim"]:
    """Turn each pair (channel c, channel c + head_dim / 2) by its angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def unit_rms(x: Float[Tensor, "*shape channels"]) -> Float[Tensor, "*shape channels"]:
    """Scale the last axis to a root mean square of one."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def attend(
    query: Float[Tensor, "b heads tokens head_dim"],
    key: Float[Tensor, "b heads tokens head_dim"],
    value: Float[Tensor, "b heads tokens head_dim"],
) -> Float[Tensor, "b heads tokens head_dim"]:
    """Softmax attention.

    Training on a CPU writes it out for short sequences: the library's fused kernel takes up to
    five times as long there at 64 tokens, forward and backward together.
    """
    learns = torch.is_grad_enabled() and query.requires_grad
    if not (learns and query.device.type == "cpu" and query.shape[2] <= WRITTEN_OUT_TOKENS):
        return F.scaled_dot_product_attention(query, key, value)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    out: Tensor = scores.softmax(dim=-1) @ value
    return out


Run = tuple[int, int, int]
"""Along one axis: where it starts, how many windows it has, patches of each."""


def window_runs(length: int, window: int, shift: int) -> list[Run]:
    """Windows along an axis: one of `shift` patches, whole ones, and one of what is left."""
    first = min(shift, length)
    whole, rest = divmod(length - first, window)
    runs = [(0, 1, first), (first, whole, window), (length - rest, 1, rest)]
    return [run for run in runs if run[1] and run[2]]


def attend_in_windows(
    query: Float[Tensor, "b heads tokens head_dim"],
    key: Float[Tensor, "b heads tokens head_dim"],
    value: Float[Tensor, "b heads tokens head_dim"],
    grid: tuple[int, int],
    window: int,
    shift: int,
) -> Float[Tensor, "b heads tokens head_dim"]:
    """Attention of each patch to those of its own window; the grid is tiled from `-shift` on.

    Windows that the border cuts are smaller: none is padded, and any grid is tiled.
    """
    rows, columns = (window_runs(side, window, shift) for side in grid)
    if len(rows) == len(columns) == 1 and rows[0][1] == columns[0][1] == 1:
        return attend(query, key, value)
    whole = [x.unflatten(2, grid) for x in (query, key, value)]
    bands = [
        torch.cat([_attend_alike(whole, down, along) for along in columns], dim=3) for down in rows
    ]
    return torch.cat(bands, dim=2).flatten(2, 3)


def _attend_alike(
    whole: list[Float[Tensor, "b heads h w head_dim"]], down: Run, along: Run
) -> Float[Tensor, "b heads rows columns head_dim"]:
    """Windows of one size, next to one another, as a batch."""
    (top, n, h), (left, m, w) = down, along
    b, heads = whole[0].shape[:2]
    parts = []
    for x in whole:
        x = x[:, :, top : top + n * h, left : left + m * w]
        x = x.unflatten(3, (m, w)).unflatten(2, (n, h)).permute(0, 2, 4, 1, 3, 5, 6)
        parts.append(x.reshape(b * n * m, heads, h * w, -1))
    out = attend(parts[0], parts[1], parts[2]).view(b, n, m, heads, h, w, -1)
    return out.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)


class Attention(nn.Module):
    """Self-attention over all patches, or those of a window; queries and keys are normalised, then
    turned."""

    def __init__(self, width: int, heads: int, window: int | None = None, shift: int = 0) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_scale = nn.Parameter(torch.ones(width // heads))
        self.key_scale = nn.Parameter(torch.ones(width // heads))
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "b tokens width"],
        grid: tuple[int, int],
        cos: Float[Tensor, "tokens pairs"],
        sin: Float[Tensor, "tokens pairs"],
    ) -> Float[Tensor, "b tokens width"]:
        b, tokens, width = x.shape
        qkv = self.qkv(x).view(b, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query = rotate(unit_rms(query) * self.query_scale.to(x.dtype), cos, sin).to(value.dtype)
        key = rotate(unit_rms(key) * self.key_scale.to(x.dtype), cos, sin).to(value.dtype)
        if self.window is None:
            mixed = attend(query, key, value)
        else:
            mixed = attend_in_windows(query, key, value, grid, self.window, self.shift)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(b, tokens, width))
        return out


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: TransformerConfig, shift: int = 0) -> None:
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads, config.window, shift)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, hidden), nn.GELU(), nn.Linear(hidden, config.width)
        )

    def forward(
        self,
        x: Float[Tensor, "b tokens width"],
        grid: tuple[int, int],
        cos: Float[Tensor, "tokens pairs"],
        sin: Float[Tensor, "tokens pairs"],
    ) -> Float[Tensor, "b tokens width"]:
        x = x + self.attention(self.attention_norm(x), grid, cos, sin)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class Transformer(nn.Module):
    """Blocks over a grid of any size, and a final norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.width // config.heads
        shifts = (0, (config.window or 0) // 2)
        self.blocks = nn.ModuleList(Block(config, shifts[n % 2]) for n in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Float[Tensor, "b h w width"]) -> Float[Tensor, "b h w width"]:
        grid = (x.shape[1], x.shape[2])
        angles = rotary_angles(grid, self.head_dim, x.device)
        tokens = x.flatten(1, 2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.blocks:
            tokens = block(tokens, grid, cos, sin)
        out: Tensor = self.norm(tokens).unflatten(1, grid)
        return out


class ResidualConvolutions(nn.Module):
    """Two 3x3 convolutions beside the identity, which they leave alone at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Float[Tensor, "b width h w"]) -> Float[Tensor, "b width h w"]:
        out: Tensor = x + self.second(F.gelu(self.first(x)))
        return out


def zero_linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer that adds nothing at first."""
    layer = nn.Linear(in_features, out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
