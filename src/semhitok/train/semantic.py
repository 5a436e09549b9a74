"""Stage 1: the semantic codebook and its decoder (VQ-KD)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from semhitok.errors import DataError
from semhitok.model import SemHiTok, Teacher
from semhitok.model.kmeans import kmeans
from semhitok.train.ema import CodebookEMA, WeightEMA
from semhitok.train.losses import semantic_losses
from semhitok.train.recipe import Recipe
from semhitok.train.stage import Losses, round_to_half, usage, weighted
from semhitok.train.updater import Updater
from semhitok.train.world import World

ROWS_PER_PICTURE = 64
"""Latents taken from each picture for the first codebook: neighbours repeat one another."""


class SemanticTrainer:
    """The codebook learns by moving averages, the decoder by gradient; so does a trunk that is not
    frozen, and a projection that is not fixed.

    Reference: Peng et al., BEiT v2 (VQ-KD), arXiv:2208.06366.
    """

    name = "semantic"

    def __init__(self, model: SemHiTok, teacher: Teacher, recipe: Recipe, world: World) -> None:
        self.model, self.teacher, self.recipe, self.world = model, teacher, recipe, world
        self.config = recipe.semantic
        branch = self.branch = model.semantic
        assert branch.trunk and branch.projection and branch.decoder
        self.projection, self.decoder = branch.projection, branch.decoder
        self.trained = nn.ModuleDict({"decoder": branch.decoder})
        if branch.config.trunk != "frozen":
            self.trained["trunk"] = branch.trunk
        if branch.config.projection == "mlp":
            self.trained["projection"] = self.projection
        self.updater = self.make_updater({})
        self.average = WeightEMA(self.trained, self.config.ema)
        self.codebook = CodebookEMA(branch.codebook.codes, self.config.codebook_decay, unit=True)
        self.kmeans_codes = branch.codebook.codes.clone()

    def make_updater(self, scales: dict[nn.Module, float]) -> Updater:
        """Over all that is trained; `scales` multiplies the rate of some, beside the trunk's."""
        if self.branch.config.trunk == "finetuned":
            scales = {self.trained["trunk"]: self.config.trunk_lr, **scales}
        config = self.config
        return Updater([self.trained], config.optimizer, config.steps, self.world, scales)

    @torch.no_grad()
    def begin(self, batches: Iterator[Tensor]) -> None:
        """Fit what is fixed to data, and start the codebook by k-means on a buffer of latents."""
        branch = self.branch
        generator = torch.Generator().manual_seed(self.recipe.seed)
        features = self._buffer(batches, generator)
        self.projection.fit(features)
        self.decoder.mean.copy_(features.mean(dim=0))
        self.decoder.deviation.copy_(features.std(dim=0).clamp_min(1e-6))
        codes = kmeans(
            self.projection(features),
            branch.config.num_codes,
            iterations=self.config.kmeans_iterations,
            generator=generator,
            unit=True,
        )
        branch.codebook.codes.copy_(codes)
        self.codebook = CodebookEMA(branch.codebook.codes, self.config.codebook_decay, unit=True)
        self.kmeans_codes = codes.clone()
        self.average = WeightEMA(self.trained, self.config.ema)

    def _buffer(
        self, batches: Iterator[Tensor], generator: torch.Generator
    ) -> Float[Tensor, "n d"]:
        """Features of random patches, the same on every rank."""
        rows: list[Tensor] = []
        while sum(map(len, rows)) < self.config.buffer_rows:
            images = next(batches)
            features = self.branch.trunk_features(
                images, self.model.grid(*images.shape[-2:])
            ).flatten(1, 2)
            chosen = torch.randperm(features.shape[1], generator=generator)[:ROWS_PER_PICTURE]
            rows.append(
                self.world.gather_rows(features[:, chosen.to(features.device)]).flatten(0, 1)
            )
        features = torch.cat(rows)[: self.config.buffer_rows]
        needed = self.model.config.semantic.num_codes
        if len(features) < needed:
            raise DataError(
                f"semantic.buffer_rows is {len(features)}; {needed} codes need as many at least"
            )
        return features

    def step(self, images: Tensor, step: int) -> Losses:
        """One update from this rank's pictures (b, 3, height, width)."""
        branch = self.branch
        grid = self.model.grid(*images.shape[-2:])
        learns = branch.config.trunk != "frozen"
        micro = images.chunk(self.recipe.accumulate)
        latents, indices, logged = [], [], []
        for part in micro:
            with torch.set_grad_enabled(learns):
                features = branch.trunk_features(part, grid)
            with torch.no_grad():
                target = self.teacher(part, grid) if learns else features
            projected = self.projection(features)
            found = branch.codebook(projected)
            with torch.autocast(part.device.type, torch.bfloat16, enabled=self._reduced):
                predicted = self.decoder(found.quantized)
            losses = semantic_losses(predicted, self.decoder.standardize(target))
            losses["commitment"] = found.commitment_loss
            total = weighted(losses, self.config.weights)
            (total / len(micro)).backward()
            latents.append(projected.detach().flatten(0, -2))
            indices.append(found.indices.flatten())
            logged.append({n: t.detach() for n, t in (losses | {"total": total}).items()})
        norm = self.updater.update(step)
        self.average.update(self.trained, step)
        self.codebook.update(torch.cat(latents), torch.cat(indices), self.world)
        restarted = self._restart(torch.cat(latents), step)
        return {
            **{f"loss/{n}": torch.stack([x[n] for x in logged]).mean() for n in logged[0]},
            **usage("semantic", torch.cat(indices), branch.config.num_codes),
            "semantic/dead": self._dead().sum(),
            "semantic/restarted": torch.tensor(float(restarted)),
            "gradient_norm": norm,
        }

    @property
    def _reduced(self) -> bool:
        return self.recipe.dtype == "bfloat16"

    def _dead(self) -> Tensor:
        counts = self.codebook.counts
        return counts < self.config.restart_below * counts.mean()

    def _restart(self, latents: Tensor, step: int) -> int:
        """Move codes that nobody chooses; never in the last tenth, so that they can settle."""
        late = step >= 0.9 * self.config.steps
        if late or (step + 1) % self.config.restart_every:
            return 0
        generator = torch.Generator().manual_seed(self.recipe.seed + 1_000_003 * (step + 1))
        everyone = self.world.gather_rows(latents)
        return self.codebook.restart(self._dead(), everyone, generator)

    def finish(self) -> None:
        """Take the averaged weights, rounded to what a model file stores."""
        self.average.copy_to(self.trained)
        round_to_half(self.trained)
        round_to_half(self.projection)
        round_to_half(self.branch.codebook)

    def samples(self, images: Tensor) -> Tensor | None:
        """Stage 1 paints nothing."""
        return None

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.updater.state_dict(),
            "average": self.average.state_dict(),
            "codebook": self.codebook.state_dict(),
            "kmeans_codes": self.kmeans_codes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updater.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.codebook.load_state_dict(state["codebook"])
        self.kmeans_codes.copy_(state["kmeans_codes"])
