"""Critics of stages 2 and 3: on pixels, or on a frozen network's features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semhitok.model import Teacher


class PatchDiscriminator(nn.Module):
    """PatchGAN: strided convolutions that score overlapping patches as real or not.

    Norms are per picture, so that a batch's other pictures do not matter.

    Reference: Isola et al., arXiv:1611.07004.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for _ in range(depth - 1):
            layers += [nn.Conv2d(width, 2 * width, 4, 2, 1), nn.GroupNorm(8, 2 * width)]
            layers += [nn.LeakyReLU(0.2)]
            width *= 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 1 h w"]:
        """Scores of pictures in [0, 1]; above zero reads as real."""
        scores: Tensor = self.layers(2 * images - 1)
        return scores


class FeatureDiscriminator(nn.Module):
    """Small heads on layers of a frozen network: judges what pictures mean rather than their grain.

    Reference: Sauer et al., Projected GANs, arXiv:2111.01007.
    """

    def __init__(self, network: Teacher, width: int) -> None:
        super().__init__()
        # Outside the module tree: frozen weights are nobody's parameters here.
        self._network = [network]
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c, width, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 3, padding=1)
            )
            for c in network.widths
        )

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b n"]:
        """Scores of pictures in [0, 1], all layers side by side."""
        layers = self._network[0].maps(images)
        scores = [
            head(F.normalize(layer, dim=1) * layer.shape[1] ** 0.5).flatten(1)
            for head, layer in zip(self.heads, layers, strict=True)
        ]
        return torch.cat(scores, dim=1)
