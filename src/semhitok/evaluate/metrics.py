"""How near a reconstruction is to its picture, and what a mean over pictures is worth."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from semhitok.errors import DataError, ShapeError
from semhitok.extras import require

MAX_PSNR_DB = 100.0
"""PSNR of equal pictures, so that means stay finite."""

SSIM_WINDOW = 11
"""Side of the Gaussian window (sigma 1.5) in pixels: the smallest side that SSIM takes."""

MS_SSIM_SIDE = SSIM_WINDOW * 2**4
"""Smallest side in pixels whose fifth scale still holds a window."""

BOOTSTRAP_SAMPLES = 2000


def psnr(a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, b]:
    """Peak signal-to-noise ratio of each pair in dB, for values in [0, 1]; at most MAX_PSNR_DB."""
    error = (a.float() - b.float()).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(error.clamp(min=10 ** (-MAX_PSNR_DB / 10)))


def ssim(a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, b]:
    """Structural similarity of each pair, for values in [0, 1]; 1 for equal pictures.

    Raises:
        MissingExtraError: torchmetrics is not installed.
        ShapeError: a side is shorter than SSIM_WINDOW.
    """
    return _structural("SSIM", "structural_similarity_index_measure", SSIM_WINDOW, a, b)


def ms_ssim(a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, b]:
    """SSIM over five scales (the published weights) of each pair, for values in [0, 1].

    Raises:
        MissingExtraError: torchmetrics is not installed.
        ShapeError: a side is shorter than MS_SSIM_SIDE.
    """
    function = "multiscale_structural_similarity_index_measure"
    return _structural("MS-SSIM", function, MS_SSIM_SIDE, a, b)


def _structural(name: str, function: str, smallest: int, a: Tensor, b: Tensor) -> Tensor:
    height, width = a.shape[-2:]
    if min(height, width) < smallest:
        raise ShapeError(f"{name}: picture is {height}x{width}; both sides need {smallest} px")
    measure = getattr(require("torchmetrics.functional.image", "evaluate"), function)
    values: Tensor = measure(
        a.float(), b.float(), kernel_size=SSIM_WINDOW, data_range=1.0, reduction="none"
    )
    return values.reshape(len(a))  # torchmetrics drops the batch axis of a single pair


def summarize(values: Float[Tensor, "n"]) -> dict[str, float]:
    """Mean, its standard error, and its 95% bootstrap interval (`low`, `high`).

    The bootstrap is seeded: the same values give the same interval. Of a single value nothing is
    known but itself, so its standard error is 0.

    Raises:
        DataError: no values.
    """
    if len(values) == 0:
        raise DataError("no values to average; at least one picture is needed")
    found = summarize_ratio(values, torch.ones_like(values))
    assert found is not None
    return found


def summarize_ratio(
    counted: Float[Tensor, "n"], base: Float[Tensor, "n"]
) -> dict[str, float] | None:
    """The ratio of two sums over items as `mean`, with error and interval as `summarize`.

    Precision, say: what each picture has of true answers, over what it has of answers. Items are
    drawn whole; of resamples those without any base say nothing. None where there is no base.
    """
    counted, base = (x.detach().double().cpu() for x in (counted, base))
    count, total = len(base), base.sum()
    if not total:
        return None
    generator = torch.Generator().manual_seed(0)
    ratios = []
    for _ in range(BOOTSTRAP_SAMPLES):
        drawn = torch.randint(count, (count,), generator=generator)
        ratios.append(counted[drawn].sum() / base[drawn].sum())
    bounds = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.stack(ratios).nanquantile(bounds).tolist()
    ratio = counted.sum() / total
    # Of the ratio's linear approximation; for a mean it is the standard error of the mean.
    error = float((counted - ratio * base).std() / total * count**0.5) if count > 1 else 0.0
    return {"mean": float(ratio), "standard_error": error, "low": low, "high": high}


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "k d"]) -> float:
    """Distance of two sets of features as if each were Gaussian; 0 for equal sets, less is better.

    |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) of the covariances A, B, in float64. With fewer
    features than dimensions the covariances are singular, and the figure depends on the count.

    Raises:
        DataError: fewer than two features in a set.

    Reference: Heusel et al., TTUR, arXiv:1706.08500.
    """
    if min(len(a), len(b)) < 2:
        raise DataError(f"Frechet distance of {len(a)} and {len(b)} features; two each are needed")
    first, second = _covariance_root(a), _covariance_root(b)
    # tr (A B)^(1/2) for A = R^T R and B = S^T S is the sum of the singular values of R S^T.
    overlap = torch.linalg.svdvals(first @ second.T).sum()
    means = (a.double().mean(dim=0) - b.double().mean(dim=0)).square().sum()
    distance = means + first.square().sum() + second.square().sum() - 2 * overlap
    return max(0.0, float(distance))


def _covariance_root(x: Float[Tensor, "n d"]) -> Float[Tensor, "r d"]:
    """R with R^T R the covariance, of min(n, d) rows."""
    x = x.detach().double().cpu()
    root: Tensor = (x - x.mean(dim=0)) / math.sqrt(len(x) - 1)
    if len(x) > x.shape[1]:
        root = torch.linalg.qr(root, mode="r")[1]
    return root
