"""Adversarial and perceptual losses of stages 2 and 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from semhitok.model import Teacher
from semhitok.model.lpips import LPIPS
from semhitok.train.discriminator import FeatureDiscriminator, PatchDiscriminator
from semhitok.train.losses import (
    FeatureLoss,
    LPIPSLoss,
    hinge_discriminator_loss,
    pixel_distances,
)
from semhitok.train.recipe import Adversarial, EnhanceStage, Perceptual, PixelStage, Recipe
from semhitok.train.stage import Losses
from semhitok.train.updater import Updater
from semhitok.train.world import World


def perceptual_loss(config: Perceptual, teacher: Teacher) -> nn.Module:
    """The feature loss that a recipe names."""
    if config.lpips is not None:
        return LPIPSLoss(LPIPS.load(config.lpips))
    return FeatureLoss(teacher.reading(config.layers))


class Critic:
    """A discriminator with its own optimiser; decoder and critic learn in turn."""

    def __init__(
        self, config: Adversarial, teacher: Teacher, steps: int, reduced: bool, world: World
    ) -> None:
        self.config, self.reduced = config, reduced
        self.network: nn.Module
        if config.kind == "patch":
            self.network = PatchDiscriminator(config.width, config.depth)
        else:
            frozen = teacher.reading(config.layers).to(world.device)
            self.network = FeatureDiscriminator(frozen, config.width)
        self.network.to(world.device)
        self.updater = Updater([self.network], config.optimizer, steps, world)

    def is_heard(self, step: int) -> bool:
        """Whether the decoder learns from it at this step."""
        return step >= self.config.start

    def learns(self, step: int) -> bool:
        """Whether it learns at this step: a while before it is heard."""
        return step >= self.config.start - self.config.warmup

    def loss(self, fake: Tensor) -> Tensor:
        """What the decoder minimises: minus the critic's score of its pictures."""
        self.network.requires_grad_(False)
        with torch.autocast(fake.device.type, torch.bfloat16, enabled=self.reduced):
            loss: Tensor = -self.network(fake).float().mean()
        self.network.requires_grad_(True)
        return loss

    def step(self, real: Tensor, fake: Tensor, step: int) -> Losses:
        """One update from real and detached fake pictures."""
        with torch.autocast(real.device.type, torch.bfloat16, enabled=self.reduced):
            scores = self.network(torch.cat([real, fake.detach()]))
        real_scores, fake_scores = scores.float().chunk(2)
        loss = hinge_discriminator_loss(real_scores, fake_scores)
        loss.backward()
        self.updater.update(step)
        return {
            "critic/loss": loss.detach(),
            "critic/real": real_scores.detach().mean(),
            "critic/fake": fake_scores.detach().mean(),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.updater.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.updater.load_state_dict(state["optimizer"])


class PictureLosses:
    """All that reconstructions are judged by in a stage, and the critic that learns there."""

    def __init__(
        self, config: PixelStage | EnhanceStage, teacher: Teacher, recipe: Recipe, world: World
    ) -> None:
        self.config, self.seed = config, recipe.seed
        self.reduced = recipe.dtype == "bfloat16"
        self.perceptual: nn.Module | None = None
        if config.perceptual is not None:
            self.perceptual = perceptual_loss(config.perceptual, teacher).to(world.device)
        self.critic: Critic | None = None
        if config.adversarial is not None:
            adversarial = config.adversarial
            self.critic = Critic(adversarial, teacher, config.steps, self.reduced, world)

    def generator(self, step: int) -> torch.Generator:
        """Randomness of a step, the same on all ranks and in every rerun."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)

    def __call__(self, fake: Tensor, real: Tensor, step: int, generator: torch.Generator) -> Losses:
        """Losses by name; PSNR among them, to be logged."""
        losses = pixel_distances(fake, real)
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(fake, real, generator)
        if self.critic is not None and self.critic.is_heard(step):
            losses["adversarial"] = self.critic.loss(fake)
        return losses

    def weights(self, step: int) -> dict[str, float]:
        """The recipe's weights, but for a critic that is not heard yet."""
        heard = self.critic is not None and self.critic.is_heard(step)
        return {n: w for n, w in self.config.weights.items() if heard or n != "adversarial"}

    def train_critic(self, real: Tensor, fake: Tensor, step: int) -> Losses:
        """One update of the critic, once it learns."""
        if self.critic is None or not self.critic.learns(step):
            return {}
        return self.critic.step(real, fake, step)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.critic is None else {"critic": self.critic.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
