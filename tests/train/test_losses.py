"""What pictures and features are compared by."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from semhitok.model import Teacher
from semhitok.train.losses import (
    FeatureLoss,
    hinge_discriminator_loss,
    pixel_distances,
    semantic_losses,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def feature_loss(teacher: Teacher) -> FeatureLoss:
    return FeatureLoss(teacher.reading((0, 2, 6)))


def test_feature_loss_is_zero_for_equal_pictures_alone(
    feature_loss: FeatureLoss, images: Tensor
) -> None:
    assert float(feature_loss(images, images.clone(), seeded())) == 0
    other = (images + 0.1 * torch.randn(images.shape, generator=seeded())).clamp(0, 1)
    small = float(feature_loss(0.9 * images + 0.1 * other, images, seeded()))
    assert 0 < small < float(feature_loss(other, images, seeded()))


def test_feature_loss_trains_the_fake_picture_alone(
    feature_loss: FeatureLoss, images: Tensor
) -> None:
    fake = images.flip(0).requires_grad_()
    real = images.clone().requires_grad_()
    feature_loss(fake, real, seeded()).backward()
    assert fake.grad is not None and bool((fake.grad.abs().sum(dim=(1, 2, 3)) > 0).all())
    assert real.grad is None
    assert all(p.grad is None and not p.requires_grad for p in feature_loss.parameters())


def test_feature_loss_rolls_pictures_by_the_generator(
    feature_loss: FeatureLoss, images: Tensor
) -> None:
    fake = images.flip(0)
    losses = [float(feature_loss(fake, images, seeded(seed))) for seed in (0, 0, 1, 2)]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_hinge_loss_is_zero_beyond_the_margins() -> None:
    def loss(real: float, fake: float) -> float:
        return float(hinge_discriminator_loss(torch.tensor([real]), torch.tensor([fake])))

    assert loss(1.5, -1.5) == 0
    assert loss(0.0, 0.0) == 1.0
    assert loss(-1.0, -2.0) == 1.0
    assert loss(2.0, 1.0) == 1.0
    assert loss(0.5, -0.25) == pytest.approx((0.5 + 0.75) / 2)


def test_pixel_distances_are_scaled_as_if_in_minus_one_to_one() -> None:
    real = torch.zeros(1, 3, 4, 4)
    distances = pixel_distances(torch.full_like(real, 0.1), real)
    assert float(distances["l1"]) == pytest.approx(0.2)
    assert float(distances["mse"]) == pytest.approx(0.04)
    assert float(distances["psnr"]) == pytest.approx(20.0, rel=1e-5)


def test_psnr_of_equal_pictures_is_finite_and_trains_nothing() -> None:
    real = torch.rand(1, 3, 4, 4, generator=seeded())
    fake = real.clone().requires_grad_()
    psnr = pixel_distances(fake, real)["psnr"]
    assert float(psnr) == pytest.approx(100) and not psnr.requires_grad


def test_semantic_losses_by_hand() -> None:
    target = torch.tensor([3.0, 4.0]).expand(1, 2, 2, 2)
    assert float(semantic_losses(2 * target, target)["cosine"]) == pytest.approx(0, abs=1e-6)
    assert float(semantic_losses(2 * target, target)["feature_l1"]) == pytest.approx(3.5)
    turned = torch.tensor([-4.0, 3.0]).expand(1, 2, 2, 2)
    assert float(semantic_losses(turned, target)["cosine"]) == pytest.approx(1.0)
    assert math.isclose(float(semantic_losses(-target, target)["cosine"]), 2.0, rel_tol=1e-6)
