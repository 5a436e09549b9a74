"""The pixel branch: what a patch looks like, and pictures back from both codes (stages 2 and 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semhitok.model.config import PixelConfig, PixelDecoderConfig
from semhitok.model.layers import (
    Block,
    ResidualConvolutions,
    Transformer,
    patchify,
    unpatchify,
    zero_linear,
)


class PixelEncoder(nn.Module):
    """Latents as a linear projection of the patch plus a transformer's correction.

    The correction starts at zero, so that training starts from the linear answer.
    """

    def __init__(self, patch_size: int, config: PixelConfig) -> None:
        super().__init__()
        values = 3 * patch_size**2
        self.patch_size = patch_size
        self.linear = nn.Linear(values, config.code_dim)
        self.embed = nn.Linear(values, config.encoder.width)
        self.transformer = Transformer(config.encoder)
        self.head = zero_linear(config.encoder.width, config.code_dim)

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b h w d"]:
        """Latents of pictures in [0, 1]."""
        patches = patchify(2 * images - 1, self.patch_size)
        latents: Tensor = self.linear(patches) + self.head(self.transformer(self.embed(patches)))
        return latents


class PixelDecoder(nn.Module):
    """Pictures from joined code vectors: a linear path, and beside it transformer and convolutions.

    Convolution stages double the resolution one after the other; the last step to pixels is linear.
    The second path starts at zero.
    """

    def __init__(self, patch_size: int, in_dim: int, config: PixelDecoderConfig) -> None:
        super().__init__()
        self.patch_size = patch_size
        width = config.transformer.width
        self.linear = nn.Linear(in_dim, 3 * patch_size**2)
        self.embed = nn.Linear(in_dim, width)
        self.transformer = Transformer(config.transformer)
        self.stages = nn.Sequential()
        for stage_width, depth in zip(config.stage_widths, config.stage_depths, strict=True):
            finer = [nn.Conv2d(width, 4 * stage_width, 1), nn.PixelShuffle(2)]
            blocks = [ResidualConvolutions(stage_width) for _ in range(depth)]
            self.stages.append(nn.Sequential(*finer, *blocks))
            width = stage_width
        rest = patch_size // 2 ** len(config.stage_widths)
        self.head = nn.Conv2d(width, 3 * rest**2, 1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        self.to_pixels = nn.PixelShuffle(rest)

    def forward(self, vectors: Float[Tensor, "b h w in_dim"]) -> Float[Tensor, "b 3 height width"]:
        """Pictures around [0, 1], not clamped."""
        grid = self._grid(vectors).permute(0, 3, 1, 2)
        fine = self.to_pixels(self.head(self.stages(grid)))
        pixels = unpatchify(self.linear(vectors), self.patch_size) + fine
        images: Tensor = (pixels.float() + 1) / 2
        return images

    def _grid(self, vectors: Tensor) -> Float[Tensor, "b h w width"]:
        """What the patches know of one another."""
        grid: Tensor = self.transformer(self.embed(vectors))
        return grid


def fit_linear_paths(
    encoder: PixelEncoder, decoder: PixelDecoder, images: Float[Tensor, "b 3 height width"]
) -> None:
    """Set the linear paths to the leading principal components of patches, latents near unit scale.

    Training then starts from the best linear code. The decoder reads pixel latents from the last
    channels of its input; its other inputs start at zero.
    """
    with torch.no_grad():
        patches = patchify(2 * images - 1, encoder.patch_size).flatten(0, 2).double()
        mean = patches.mean(dim=0)
        variances, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
        d = encoder.linear.out_features
        scale = variances.flip(0)[:d].clamp_min(1e-8).sqrt()
        # One scale for all: distances between latents then are distances between pixels.
        unit = scale.square().mean().sqrt()
        components = vectors.flip(-1)[:, :d].T
        strongest = components.abs().argmax(dim=1, keepdim=True)
        components = components * components.gather(1, strongest).sign()
        encoder.linear.weight.copy_(components / unit)
        encoder.linear.bias.copy_(-components @ mean / unit)
        decoder.linear.weight.zero_()
        decoder.linear.weight[:, -d:] = components.T * unit
        decoder.linear.bias.copy_(mean)


@torch.no_grad()
def warm_start(larger: PixelDecoder, smaller: PixelDecoder) -> None:
    """Start a larger decoder from what a smaller one has learned, where shapes allow.

    Tensors of the same shape are copied, and transformer blocks that only the larger one has begin
    as the identity. Convolutions may be wider: their old channels are copied and read nothing from
    the new ones. With transformers of one width the larger decoder then paints the very pictures
    that the smaller one paints; otherwise it starts from the linear path alone.
    """
    if larger.embed.weight.shape != smaller.embed.weight.shape:
        larger.linear.load_state_dict(smaller.linear.state_dict())
        return
    learned = smaller.state_dict()
    for name, target in larger.state_dict().items():
        if name in learned:
            _copy_into_corner(target, learned[name])
    old_depth = len(smaller.transformer.blocks)
    for block in list(larger.transformer.blocks)[old_depth:]:
        assert isinstance(block, Block)
        for residual in (block.attention.out, block.mlp[-1]):
            for parameter in residual.parameters():
                parameter.zero_()


def _copy_into_corner(target: Tensor, source: Tensor) -> None:
    """Old outputs take the old weights and nothing else; new outputs keep their own start."""
    target[: len(source)] = 0
    target[tuple(slice(n) for n in source.shape)] = source


def perturb_pixel_codes(
    indices: Tensor, num_codes: int, share: float, generator: torch.Generator
) -> Tensor:
    """Replace a random share of pixel codes by random others of the same parent.

    Args:
        indices: pixel codes (b, h, w) in [0, num_codes).
        num_codes: m.
        share: of the patches that get another code, in [0, 1].
        generator: on the CPU, so that every device draws the same.
    """
    hit = torch.rand(indices.shape, generator=generator) < share
    shift = torch.randint(1, max(2, num_codes), indices.shape, generator=generator)
    other = (indices + shift.to(indices.device)) % num_codes
    return torch.where(hit.to(indices.device), other, indices)


def join_vectors(
    semantic: Float[Tensor, "b h w c"], pixel: Float[Tensor, "b h w d"]
) -> Float[Tensor, "b h w c_plus_d"]:
    """Join code vectors along channels, the semantic unit vectors scaled to unit entries."""
    return torch.cat([F.normalize(semantic, dim=-1) * semantic.shape[-1] ** 0.5, pixel], dim=-1)
