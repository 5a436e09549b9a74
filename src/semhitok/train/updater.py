"""One optimiser with its schedule and its clipping."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from semhitok.train.world import World
from semhitok.yaml_recipes import Optimizer


def learning_rate(config: Optimizer, step: int, steps: int) -> float:
    """Linear warm-up to `lr`, then a cosine that nears `final * lr` as the `steps` end."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, steps - config.warmup)
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return config.lr * (config.final + (1 - config.final) * cosine)


class Updater:
    """AdamW over some modules; `scales` multiplies the rate of the parameters it names."""

    def __init__(
        self,
        modules: list[nn.Module],
        config: Optimizer,
        steps: int,
        world: World,
        scales: dict[nn.Module, float] | None = None,
    ) -> None:
        self.modules, self.config, self.steps, self.world = modules, config, steps, world
        scaled = {p: s for module, s in (scales or {}).items() for p in module.parameters()}
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for module in modules:
            for parameter in module.parameters():
                if parameter.requires_grad:
                    # Decay is for matrices; codes, scales and biases mean what they are.
                    decays = parameter.ndim > 1 and parameter not in scaled
                    groups.setdefault((scaled.get(parameter, 1.0), decays), []).append(parameter)
        self.scales = [scale for scale, _ in groups]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": parameters, "weight_decay": config.weight_decay if decays else 0.0}
                for (_, decays), parameters in groups.items()
            ],
            lr=config.lr,
            betas=config.betas,
        )

    def update(self, step: int) -> Tensor:
        """Average gradients over ranks, clip, step, forget them; the gradient's norm."""
        self.world.average_gradients(self.modules)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip)
        rate = learning_rate(self.config, step, self.steps)
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = rate * scale
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = {"state": {}, **state}
        self.optimizer.load_state_dict(state)
