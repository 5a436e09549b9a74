"""Moving averages: of codebooks (a learning rule of VQ), and of weights (what is saved)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from semhitok.train.world import World


class CodebookEMA:
    """Codes as the moving mean of the latents that chose them.

    Keeps, per code, a decayed count of latents and their decayed sum; the code is sum over count.
    Works on any table of rows (n, d): K semantic codes, or the K x m codes of a flat id.

    Reference: van den Oord et al., VQ-VAE, arXiv:1711.00937, appendix A.1.
    """

    def __init__(
        self, codes: Float[Tensor, "n d"], decay: float = 0.99, unit: bool = False
    ) -> None:
        """Start from the given codes, each as if chosen once. `unit` keeps codes at length one."""
        self.codes = codes
        self.decay = decay
        self.unit = unit
        self.counts = torch.ones(len(codes), device=codes.device)
        self.sums = codes.clone()

    @torch.no_grad()
    def update(
        self, latents: Float[Tensor, "p d"], indices: Int64[Tensor, "p"], world: World
    ) -> None:
        """Take one batch into the averages, over all ranks."""
        counts = torch.zeros_like(self.counts).index_add_(
            0, indices, torch.ones(len(indices), device=latents.device)
        )
        sums = torch.zeros_like(self.sums).index_add_(0, indices, latents.float())
        world.sum_(counts, sums)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        self._write(self.counts > 1e-4)

    @torch.no_grad()
    def restart(
        self, dead: Bool[Tensor, "n"], latents: Float[Tensor, "p d"], generator: torch.Generator
    ) -> int:
        """Move dead codes to random latents: vector, sum and count together; how many moved.

        `latents` and `generator` must be the same on all ranks.
        """
        places = dead.nonzero()[:, 0][: len(latents)]
        if len(places):
            order = torch.randperm(len(latents), generator=generator).to(latents.device)
            self.codes[places] = latents[order[: len(places)]].float()
            # A newcomer counts as an average code: it is neither dead at once nor immovable.
            self.counts[places] = self.counts.mean().clamp_min(1e-3)
            self.sums[places] = self.codes[places] * self.counts[places, None]
        return len(places)

    def _write(self, chosen: Bool[Tensor, "n"]) -> None:
        means = self.sums / self.counts[:, None].clamp_min(1e-4)
        means = F.normalize(means, dim=-1) if self.unit else means
        self.codes.copy_(torch.where(chosen[:, None], means, self.codes))

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self.counts, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.counts.copy_(state["counts"])
        self.sums.copy_(state["sums"])


class WeightEMA:
    """Moving average of a module's floating-point state."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {n: t.detach().clone() for n, t in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take the module's weights after `step` (from 0); early steps are forgotten faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in module.state_dict().items():
            self.average[name].lerp_(tensor.to(self.average[name].dtype), 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        """Give the module the averaged weights."""
        module.load_state_dict(self.average)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.average.items():
            tensor.copy_(state[name])
