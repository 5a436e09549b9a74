"""Stage 2: pixel encoder, sub-codebooks and decoder, on frozen semantic codes (SGHC)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from semhitok.model import HierarchicalCodebook, SemHiTok, Teacher, fit_linear_paths
from semhitok.model.kmeans import kmeans
from semhitok.train.critic import PictureLosses
from semhitok.train.ema import CodebookEMA, WeightEMA
from semhitok.train.recipe import PixelStage, Recipe
from semhitok.train.stage import Losses, round_to_half, usage, weighted
from semhitok.train.updater import Updater
from semhitok.train.world import World

FIT_BATCHES = 16
"""Batches that give the patches for principal components."""


class PixelTrainer:
    """All of the pixel branch but the Enhance Decoder learns; the semantic branch is only read."""

    name = "pixel"

    def __init__(self, model: SemHiTok, teacher: Teacher, recipe: Recipe, world: World) -> None:
        self.model, self.recipe, self.world = model, recipe, world
        self.config = recipe.pixel
        model.semantic.requires_grad_(False)
        branch = model.pixel
        assert branch.encoder is not None and branch.decoder is not None
        self.trained = nn.ModuleDict(
            {"encoder": branch.encoder, "codebook": branch.codebook, "decoder": branch.decoder}
        )
        branch.codebook.requires_grad_(self.config.learning == "gradient")
        scales: dict[nn.Module, float] = {branch.codebook: 1.0}
        scales[branch.codebook.offsets] = self.config.offsets_lr
        config = self.config
        self.updater = Updater([self.trained], config.optimizer, config.steps, world, scales)
        self.losses = PictureLosses(config, teacher, recipe, world)
        self.usage = SubcodeUsage(branch.codebook, config, world)
        self.average = WeightEMA(self.trained, config.ema)

    @torch.no_grad()
    def begin(self, batches: Iterator[Tensor]) -> None:
        """Linear paths from principal components, base codes by k-means of their latents."""
        branch = self.model.pixel
        assert branch.encoder is not None and branch.decoder is not None
        pictures = [self.world.gather_rows(next(batches)) for _ in range(FIT_BATCHES)]
        fit_linear_paths(branch.encoder, branch.decoder, torch.cat(pictures))
        generator = torch.Generator().manual_seed(self.recipe.seed + 1)
        latents = torch.cat([branch.encoder(p).flatten(0, 2) for p in pictures])
        order = torch.randperm(len(latents), generator=generator)[: self.config.buffer_rows]
        codes = kmeans(
            latents[order.to(latents.device)],
            self.model.config.pixel.num_codes,
            iterations=self.config.kmeans_iterations,
            generator=generator,
        )
        branch.codebook.base.copy_(codes)
        if self.config.learning == "ema":  # the offsets hold the codes that there were before
            branch.codebook.free_offsets("learning: ema").weight.zero_()
        self.usage = SubcodeUsage(branch.codebook, self.config, self.world)
        self.average = WeightEMA(self.trained, self.config.ema)

    def step(self, images: Tensor, step: int) -> Losses:
        """One update from this rank's pictures (b, 3, height, width)."""
        micro = images.chunk(self.recipe.accumulate)
        logged, latents, parents, indices, fakes = [], [], [], [], []
        generator = self.losses.generator(step)
        for part in micro:
            with torch.autocast(part.device.type, torch.bfloat16, enabled=self.losses.reduced):
                out = self.model(part)
            losses = self.losses(out.images, part, step, generator)
            losses["commitment"] = out.pixel.commitment_loss
            losses["codebook"] = out.pixel.codebook_loss
            total = weighted(losses, self.losses.weights(step))
            (total / len(micro)).backward()
            logged.append({n: t.detach() for n, t in (losses | {"total": total}).items()})
            fakes.append(out.images.detach())
            latents.append(out.latents.detach().flatten(0, 2))
            parents.append(out.semantic.flatten())
            indices.append(out.pixel.indices.flatten())
        norm = self.updater.update(step)
        critic = self.losses.train_critic(images, torch.cat(fakes), step)
        seen = (torch.cat(latents), torch.cat(parents), torch.cat(indices))
        self.usage.update(*seen)
        restarted = self._restart(*seen[:2], step)
        self.average.update(self.trained, step)
        return {
            **{f"loss/{n}": torch.stack([x[n] for x in logged]).mean() for n in logged[0]},
            **critic,
            **usage("pixel", seen[2], self.model.config.pixel.num_codes),
            **usage("semantic", seen[1], self.model.config.semantic.num_codes),
            "pixel/dead": self.usage.dead_base().sum(),
            "pixel/restarted": torch.tensor(float(restarted)),
            "gradient_norm": norm,
        }

    def _restart(self, latents: Tensor, parents: Tensor, step: int) -> int:
        late = step >= 0.9 * self.config.steps
        if late or (step + 1) % self.config.restart_every:
            return 0
        generator = torch.Generator().manual_seed(self.recipe.seed + 1_000_003 * (step + 1))
        latents, parents = self.world.gather_rows(latents), self.world.gather_rows(parents)
        return self.usage.restart(latents, parents, generator)

    def finish(self) -> None:
        """Take the averaged weights, rounded to what a model file stores."""
        self.average.copy_to(self.trained)
        self.usage.write_typical()
        round_to_half(self.trained)

    @torch.no_grad()
    def samples(self, images: Tensor) -> Tensor:
        """Reconstructions by the weights as they learn."""
        out: Tensor = self.model(images).images.clamp(0, 1)
        return out

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.updater.state_dict(),
            "average": self.average.state_dict(),
            "losses": self.losses.state_dict(),
            "usage": self.usage.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updater.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.losses.load_state_dict(state["losses"])
        self.usage.load_state_dict(state["usage"])


class SubcodeUsage:
    """How often each of the K x m codes is chosen; revives dead ones, and learns codes by moving
    means where the recipe says so.

    A code is dead when it is chosen less than `restart_below` of its even share of its parent's
    patches. With free offsets a dead code of a parent moves to a latent of that parent. Where
    offsets are low-rank only a base code can move, and does when it is dead over all parents.
    """

    def __init__(self, codebook: HierarchicalCodebook, config: PixelStage, world: World) -> None:
        self.codebook, self.config, self.world = codebook, config, world
        parents, m, _ = codebook.table().shape
        self.counts = torch.zeros(parents, m, device=codebook.base.device)
        self.means: CodebookEMA | None = None
        if config.learning == "ema":
            offsets = codebook.free_offsets("learning: ema")
            table = codebook.table().detach().flatten(0, 1).clone()
            codebook.base.data.zero_()
            offsets.weight.data.copy_(table.view_as(offsets.weight))
            self.means = CodebookEMA(offsets.weight.data.view_as(table), config.codebook_decay)

    @torch.no_grad()
    def update(self, latents: Tensor, parents: Tensor, indices: Tensor) -> None:
        """Take one batch of chosen codes."""
        flat = parents * self.counts.shape[1] + indices
        counts = torch.bincount(flat, minlength=self.counts.numel()).float()
        self.world.sum_(counts)
        decay = self.config.codebook_decay
        self.counts.mul_(decay).add_(counts.view_as(self.counts), alpha=1 - decay)
        if self.means is not None:
            self.means.update(latents, flat, self.world)

    @torch.no_grad()
    def write_typical(self) -> None:
        """Mean code vector of each parent's patches; of all patches for a parent not seen.

        Without a patch seen, in a stage of no steps, what was there stays.
        """
        if not self.counts.any():
            return
        codes = self.codebook.table()
        shares = self.counts / self.counts.sum().clamp_min(1e-8)
        everywhere = (shares[..., None] * codes).sum(dim=(0, 1))
        mass = shares.sum(dim=1, keepdim=True)
        own = (shares[..., None] * codes).sum(dim=1) / mass.clamp_min(1e-12)
        self.codebook.typical.copy_(torch.where(mass > 0, own, everywhere))

    def dead_base(self) -> Tensor:
        """Base codes that no parent's patches choose, (m,)."""
        total = self.counts.sum(dim=0)
        return total < self.config.restart_below * total.mean()

    @torch.no_grad()
    def restart(self, latents: Tensor, parents: Tensor, generator: torch.Generator) -> int:
        """Revive dead codes from random latents (n, d) of their parents (n,); how many moved."""
        order = torch.randperm(len(latents), generator=generator).to(latents.device)
        if hasattr(self.codebook.offsets, "weight"):
            return self._restart_free(latents[order], parents[order])
        return self._restart_base(latents[order], parents[order])

    def _restart_base(self, latents: Tensor, parents: Tensor) -> int:
        dead = self.dead_base().nonzero()[:, 0][: len(latents)]
        offsets = self.codebook.offsets.rows(parents[: len(dead)], dead)
        self.codebook.base[dead] = latents[: len(dead)] - offsets
        self.counts[:, dead] = self.counts.mean(dim=1, keepdim=True)
        return len(dead)

    def _restart_free(self, latents: Tensor, parents: Tensor) -> int:
        """One dead code of each parent in the batch, the least used, to one of its latents."""
        weight = self.codebook.free_offsets("restart").weight
        shares = self.counts / self.counts.mean(dim=1, keepdim=True).clamp_min(1e-8)
        weakest = shares.argmin(dim=1)
        present, first = _first_rows(parents)
        dead = shares[present, weakest[present]] < self.config.restart_below
        chosen, rows = present[dead], first[dead]
        places = weakest[chosen]
        weight[chosen, places] += latents[rows] - self.codebook.lookup(chosen, places)
        self.counts[chosen, places] = self.counts[chosen].mean(dim=1)
        if self.means is not None:
            flat = chosen * weight.shape[1] + places
            self.means.counts[flat] = self.means.counts.mean().clamp_min(1e-3)
            self.means.sums[flat] = self.means.codes[flat] * self.means.counts[flat, None]
        return len(chosen)

    def state_dict(self) -> dict[str, Any]:
        means = {} if self.means is None else {"means": self.means.state_dict()}
        return {"counts": self.counts, **means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts.copy_(state["counts"])
        if self.means is not None:
            self.means.load_state_dict(state["means"])


def _first_rows(parents: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct parents, and the first row of each."""
    present, inverse = parents.unique(return_inverse=True)
    rows = torch.arange(len(parents), device=parents.device)
    first = torch.full_like(present, len(parents)).scatter_reduce_(0, inverse, rows, "amin")
    return present, first
