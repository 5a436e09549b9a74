"""One optimiser, its schedule, its clipping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from semhitok.train.updater import Updater, learning_rate
from semhitok.train.world import World
from semhitok.yaml_recipes import Optimizer


def test_rate_warms_up_linearly_and_falls_by_a_cosine() -> None:
    config = Optimizer(lr=2.0, final=0.1, warmup=4)
    rates = [learning_rate(config, step, 104) for step in range(105)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[54] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert rates[29] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    assert rates[104] == pytest.approx(0.2)
    assert all(before >= after for before, after in zip(rates[4:], rates[5:], strict=False))


def test_rate_without_warm_up_starts_at_the_peak_and_stays_at_the_end() -> None:
    config = Optimizer(lr=2.0, final=0.5, warmup=0)
    assert learning_rate(config, 0, 10) == 2.0
    assert learning_rate(config, 50, 10) == pytest.approx(1.0)


def fill(module: nn.Module, value: float) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, value)


def test_scale_multiplies_the_rate_of_what_it_names() -> None:
    # Adam's first step is lr in the direction of the sign, whatever the gradient's size.
    modules = nn.ModuleDict({"plain": nn.Linear(2, 2), "scaled": nn.Linear(2, 2)})
    before = {name: p.detach().clone() for name, p in modules.named_parameters()}
    config = Optimizer(lr=0.01, warmup=0, clip=1e9)
    updater = Updater([modules], config, 100, World(), {modules["scaled"]: 0.25})
    fill(modules, 1.0)
    updater.update(0)
    for name, parameter in modules.named_parameters():
        moved = (before[name] - parameter.detach()).mean()
        expected = 0.0025 if name.startswith("scaled") else 0.01
        assert float(moved) == pytest.approx(expected, rel=1e-4), name


def test_norm_is_that_before_clipping_and_gradients_are_forgotten() -> None:
    layer = nn.Linear(3, 1, bias=False)
    updater = Updater([layer], Optimizer(lr=0.1, warmup=0, clip=0.5), 10, World())
    fill(layer, 4.0)
    norm = updater.update(0)
    assert float(norm) == pytest.approx(math.sqrt(48))
    assert layer.weight.grad is None
    first_moment = updater.optimizer.state[layer.weight]["exp_avg"]
    assert float(first_moment.norm()) == pytest.approx(0.5 * (1 - 0.9), rel=1e-4)


def test_decay_is_for_matrices_that_have_no_rate_of_their_own() -> None:
    modules = nn.ModuleDict({"plain": nn.Linear(2, 2), "codes": nn.Linear(2, 2, bias=False)})
    config = Optimizer(lr=0.1, warmup=0, weight_decay=0.5)
    updater = Updater([modules], config, 10, World(), {modules["codes"]: 1.0})
    decays = {
        id(p): group["weight_decay"]
        for group in updater.optimizer.param_groups
        for p in group["params"]
    }
    assert decays[id(modules["plain"].weight)] == 0.5
    assert decays[id(modules["plain"].bias)] == 0
    assert decays[id(modules["codes"].weight)] == 0


def test_what_is_frozen_is_not_its_business() -> None:
    modules = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)])
    updater = Updater([modules], Optimizer(lr=0.1), 10, World())
    assert sum(len(g["params"]) for g in updater.optimizer.param_groups) == 2
