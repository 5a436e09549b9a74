import pytest
import torch

from semhitok.errors import DataError, ShapeError
from semhitok.evaluate.metrics import (
    MAX_PSNR_DB,
    frechet_distance,
    psnr,
    ssim,
    summarize,
    summarize_ratio,
)


def test_psnr_of_a_known_error(images):
    darker = images * 0
    grey = darker + 0.1  # mean squared error 0.01
    assert psnr(darker, grey).tolist() == pytest.approx([20.0] * len(images), abs=1e-4)


def test_psnr_is_per_picture_and_finite_for_equal_ones(images):
    other = images.clone()
    other[0] = 1 - other[0]
    values = psnr(images, other)
    assert values[0] < 40
    assert values[1:].tolist() == pytest.approx([MAX_PSNR_DB] * (len(images) - 1), abs=1e-3)


def test_ssim_of_equal_pictures_is_one(images):
    assert ssim(images, images).tolist() == pytest.approx([1.0] * len(images), abs=1e-6)
    assert ssim(images[:1], images[:1]).shape == (1,)


def test_ssim_is_torchmetrics_gaussian_one(images):
    from torchmetrics.image import StructuralSimilarityIndexMeasure

    noisy = (
        images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    ).clamp(0, 1)
    expected = StructuralSimilarityIndexMeasure(data_range=1.0)(noisy, images)
    assert float(ssim(images, noisy).mean()) == pytest.approx(float(expected), abs=1e-6)
    assert float(expected) < 0.95


def test_ssim_refuses_pictures_smaller_than_its_window(images):
    with pytest.raises(ShapeError, match="picture is 10x32; both sides need 11 px"):
        ssim(images[:, :, :10], images[:, :, :10])


def test_summary_has_the_mean_its_error_and_a_repeatable_interval():
    values = torch.arange(1.0, 101.0)
    summary = summarize(values)
    assert summary["mean"] == 50.5
    assert summary["standard_error"] == pytest.approx(2.9011, abs=1e-3)  # sd 29.011 / 10
    half_width = 1.96 * summary["standard_error"]
    assert summary["low"] == pytest.approx(50.5 - half_width, abs=0.4)
    assert summary["high"] == pytest.approx(50.5 + half_width, abs=0.4)
    assert summarize(values) == summary


def test_summary_of_one_value_and_of_none():
    assert summarize(torch.tensor([3.0])) == {
        "mean": 3.0,
        "standard_error": 0.0,
        "low": 3.0,
        "high": 3.0,
    }
    with pytest.raises(DataError, match="at least one picture"):
        summarize(torch.zeros(0))


@pytest.mark.parametrize("count", [40, 6], ids=["more than dimensions", "fewer"])
def test_frechet_distance_equals_the_formula(count):
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(count, 8, generator=generator, dtype=torch.float64)
    b = 0.5 * torch.randn(30, 8, generator=generator, dtype=torch.float64) + 0.3
    product = torch.cov(a.T) @ torch.cov(b.T)
    eigenvalues = torch.linalg.eigvals(product).real.clamp_min(0)
    expected = (
        (a.mean(0) - b.mean(0)).square().sum()
        + torch.cov(a.T).trace()
        + torch.cov(b.T).trace()
        - 2 * eigenvalues.sqrt().sum()
    )
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(DataError, match="1 and 30 features"):
        frechet_distance(a[:1], b)


def test_ratio_of_sums_and_its_interval():
    generator = torch.Generator().manual_seed(1)
    base = torch.randint(1, 6, (400,), generator=generator).double()
    counted = (torch.rand(400, generator=generator) < 0.3) * base
    found = summarize_ratio(counted, base)
    assert found["mean"] == pytest.approx(float(counted.sum() / base.sum()))
    assert found["low"] < found["mean"] < found["high"]
    half = (found["high"] - found["low"]) / 2
    assert half == pytest.approx(1.96 * found["standard_error"], rel=0.15)
    assert summarize_ratio(counted, torch.ones_like(base)) == summarize(counted)


def test_ratio_of_nothing():
    assert summarize_ratio(torch.zeros(3), torch.zeros(3)) is None
    rare = summarize_ratio(torch.tensor([1.0, 0, 0, 0]), torch.tensor([1.0, 0, 0, 0]))
    assert rare["mean"] == rare["low"] == rare["high"] == 1, (
        "resamples without base are passed over"
    )
