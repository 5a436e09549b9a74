"""Critics: shapes, and pictures that do not matter to one another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from semhitok.model import Teacher
from semhitok.train.discriminator import FeatureDiscriminator, PatchDiscriminator


@pytest.fixture(params=["patch", "features"])
def critic(request: pytest.FixtureRequest, teacher: Teacher) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if request.param == "patch":
            return PatchDiscriminator(8, 3)
        return FeatureDiscriminator(teacher.reading((0, 2, 6)), 8)


def test_scores_do_not_depend_on_the_other_pictures(critic: nn.Module, images: Tensor) -> None:
    together = critic(images)
    for place in range(len(images)):
        alone = critic(images[place : place + 1])
        torch.testing.assert_close(alone[0], together[place], rtol=1e-5, atol=1e-6)
    others = torch.cat([images[:1], torch.rand(3, 3, 32, 32)])
    torch.testing.assert_close(critic(others)[0], together[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together[0], together[1])


def test_patch_critic_scores_a_grid() -> None:
    assert PatchDiscriminator(8, 3)(torch.rand(2, 3, 32, 48)).shape == (2, 1, 4, 6)


def test_feature_critic_owns_its_heads_alone(teacher: Teacher, images: Tensor) -> None:
    critic = FeatureDiscriminator(teacher.reading((0, 2)), 8)
    assert {n.split(".")[0] for n, _ in critic.named_parameters()} == {"heads"}
    assert len(critic.heads) == 2
    critic(images.requires_grad_()).sum().backward()
    assert images.grad is not None and bool(images.grad.abs().sum() > 0)
