"""What pictures are compared by, beside their pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semhitok.model import Teacher


class FeatureLoss(nn.Module):
    """Squared distance of unit-normalised features of a frozen network, summed over its layers.

    The pictures are rolled at random by up to the network's stride first: a trunk that strides by
    two sees one phase of the pixels only, and a decoder would hide a checkerboard in the others.
    """

    def __init__(self, network: Teacher) -> None:
        super().__init__()
        self.network = network
        self.stride = network.config.stride

    def forward(self, fake: Tensor, real: Tensor, generator: torch.Generator) -> Float[Tensor, ""]:
        shift = tuple(torch.randint(self.stride, (2,), generator=generator).tolist())
        # Rolled around, the seam is the same in both.
        fake, real = fake.roll(shift, (-2, -1)), real.roll(shift, (-2, -1))
        with torch.no_grad():
            targets = self.network.maps(real)
        layers = self.network.maps(fake)
        total = fake.new_zeros(())
        for ours, target in zip(layers, targets, strict=True):
            ours, target = F.normalize(ours.float(), dim=1), F.normalize(target.float(), dim=1)
            total = total + (ours - target).square().sum(dim=1).mean()
        return total


class LPIPSLoss(nn.Module):
    """LPIPS as a loss; a network trained by it is not to be graded by it alone."""

    def __init__(self, lpips: nn.Module) -> None:
        super().__init__()
        self.lpips = lpips

    def forward(self, fake: Tensor, real: Tensor, generator: torch.Generator) -> Float[Tensor, ""]:
        distance: Tensor = self.lpips(fake, real)
        return distance.mean()


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """Real scores above 1, fake ones below -1."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def semantic_losses(
    predicted: Float[Tensor, "b h w d"], target: Float[Tensor, "b h w d"]
) -> dict[str, Float[Tensor, ""]]:
    """VQ-KD: one minus cosine, and L1, over standardised features."""
    predicted = predicted.float()
    return {
        "cosine": 1 - F.cosine_similarity(predicted, target, dim=-1).mean(),
        "feature_l1": F.l1_loss(predicted, target),
    }


def pixel_distances(fake: Tensor, real: Tensor) -> dict[str, Float[Tensor, ""]]:
    """L1 and mean squared error of pictures in [0, 1], scaled as if in [-1, 1], and PSNR in dB."""
    mse = F.mse_loss(fake, real)
    psnr = -10 * mse.detach().clamp_min(1e-10).log10()  # of equal pictures 100 dB, and not infinity
    return {"l1": 2 * F.l1_loss(fake, real), "mse": 4 * mse, "psnr": psnr}
