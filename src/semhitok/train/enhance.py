"""Stage 3: the Enhance Decoder, on frozen encoders and codebooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from semhitok.model import SemHiTok, Teacher, perturb_pixel_codes, warm_start
from semhitok.train.critic import PictureLosses
from semhitok.train.ema import WeightEMA
from semhitok.train.recipe import Recipe
from semhitok.train.stage import Losses, round_to_half, weighted
from semhitok.train.updater import Updater
from semhitok.train.world import World


class EnhanceTrainer:
    """A larger decoder learns to paint from the ids alone; noise on the ids makes it forgiving."""

    name = "enhance"

    def __init__(self, model: SemHiTok, teacher: Teacher, recipe: Recipe, world: World) -> None:
        assert recipe.enhance is not None and model.pixel.enhance is not None
        self.model, self.recipe, self.world = model, recipe, world
        self.config = recipe.enhance
        model.requires_grad_(False)
        self.decoder = model.pixel.enhance.requires_grad_(True)
        config = self.config
        self.updater = Updater([self.decoder], config.optimizer, config.steps, world)
        self.average = WeightEMA(self.decoder, config.ema)
        self.losses = PictureLosses(config, teacher, recipe, world)

    def begin(self, batches: Iterator[Tensor]) -> None:
        """Start from the stage-2 decoder."""
        assert self.model.pixel.decoder is not None
        warm_start(self.decoder, self.model.pixel.decoder)
        self.average = WeightEMA(self.decoder, self.config.ema)

    def step(self, images: Tensor, step: int) -> Losses:
        """One update from this rank's pictures (b, 3, height, width)."""
        micro = images.chunk(self.recipe.accumulate)
        logged, fakes = [], []
        generator = self.losses.generator(step)
        for part in micro:
            vectors = self._vectors(part, generator)
            with torch.autocast(part.device.type, torch.bfloat16, enabled=self.losses.reduced):
                fake = self.decoder(vectors)
            losses = self.losses(fake, part, step, generator)
            total = weighted(losses, self.losses.weights(step))
            (total / len(micro)).backward()
            logged.append({n: t.detach() for n, t in (losses | {"total": total}).items()})
            fakes.append(fake.detach())
        norm = self.updater.update(step)
        critic = self.losses.train_critic(images, torch.cat(fakes), step)
        self.average.update(self.decoder, step)
        means = {f"loss/{n}": torch.stack([x[n] for x in logged]).mean() for n in logged[0]}
        return means | critic | {"gradient_norm": norm}

    def _vectors(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """What the decoder reads: the ids as `encode` gives them, some of them disturbed."""
        ids = self.model.encode(images).clone()
        semantic, pixel = self.model.split(ids)
        m = self.model.config.pixel.num_codes
        if self.config.noise:
            pixel = perturb_pixel_codes(pixel, m, self.config.noise, generator)
        with torch.no_grad():
            return self.model.decoder_input(self.model.join(semantic, pixel))

    def finish(self) -> None:
        """Take the averaged weights, rounded to what a model file stores."""
        self.average.copy_to(self.decoder)
        round_to_half(self.decoder)

    @torch.no_grad()
    def samples(self, images: Tensor) -> Tensor:
        """Reconstructions by the weights as they learn."""
        return self.model.decode(self.model.encode(images), decoder="enhance").clone()

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.updater.state_dict(),
            "average": self.average.state_dict(),
            "losses": self.losses.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updater.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.losses.load_state_dict(state["losses"])
