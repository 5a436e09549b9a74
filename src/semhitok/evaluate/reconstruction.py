"""How well a tokenizer gives pictures back, and how it uses its codes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from semhitok.data.sources import ImageSource
from semhitok.errors import DataError, ImageError, RangeError, SemHiTokError
from semhitok.evaluate.codebooks import CodeCounter
from semhitok.evaluate.metrics import (
    BOOTSTRAP_SAMPLES,
    MAX_PSNR_DB,
    SSIM_WINDOW,
    psnr,
    ssim,
    summarize,
)
from semhitok.evaluate.report import Report, package_versions
from semhitok.images import ImagePolicy, to_tensor
from semhitok.model.lpips import LPIPS, MIN_SIDE, find_judge, judge_hash

SMALLEST_SIDE = max(SSIM_WINDOW, MIN_SIDE)
"""Pixels; a picture with a shorter side cannot be judged, and is named as failed."""


@runtime_checkable
class Tokenizer(Protocol):
    """What is measured: `SemHiTok`, or a baseline with the same few names."""

    @property
    def config(self) -> Any:
        """With `name`, `semantic.num_codes` (K) and `pixel.num_codes` (m)."""

    @property
    def patch_size(self) -> int:
        """Pixels per side of a patch."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def hash(self) -> str:
        """Of config and weights."""

    def parameters(self) -> Iterator[Tensor]:
        """The weights, of which the first one's dtype is reported."""

    def encode(self, images: Tensor) -> Tensor:
        """(b, h, w) ids of (b, 3, height, width) RGB in [0, 1]."""

    def decode(self, ids: Tensor) -> Tensor:
        """The pictures back. Takes `decoder` too where there are several."""

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Semantic and pixel codes."""


def evaluate(
    tok: Tokenizer,
    source: ImageSource,
    *,
    resolution: int | None,
    crop: Literal["square", "grid"] = "square",
    max_images: int | None = None,
    batch_size: int = 16,
    judge: str | Path | None = None,
    decoder: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Encode and decode pictures, and compare.

    Figures: PSNR, SSIM and LPIPS over pictures (mean, standard error, 95% interval), the rate, the
    use of the codes, and each failed picture with its reason. Reconstructions are rounded to 8 bits
    first, as a user would save them.

    Args:
        resolution: short side in pixels; None keeps each picture's own.
        crop: "square" cuts the centre square, "grid" only what exceeds a multiple of the patch.
        max_images: measure that many, evenly spaced over the source; None measures all.
        batch_size: pictures at a time; fewer where sizes differ.
        judge: folder of the judge's weights; None asks $SEMHITOK_JUDGES. Without one there is no
            LPIPS, and the protocol says so.
        decoder: as `tok.decode` takes it; None leaves the choice to the model.
        progress: called with (pictures done, pictures in all).

    Raises:
        DataError: no picture could be measured.
        NotFoundError: the judge's folder lacks its files.
        RangeError: max_images or batch_size below 1, or a resolution that patches do not tile.
    """
    for name, value in (("max_images", max_images), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise RangeError(f"{name} is {value}; it must be at least 1")
    folder = find_judge(judge)
    lpips = None if folder is None else LPIPS.load(folder).to(tok.device)
    policy = ImagePolicy(size=resolution, crop=crop, multiple=tok.patch_size)
    indices = evenly_spaced(len(source), max_images)
    failed: dict[str, str] = {}
    meter = _Meter(tok, lpips, decoder)
    for images in _batches(source, indices, policy, batch_size, failed):
        meter.update(images)
        if progress is not None:
            progress(meter.count + len(failed), len(indices))
    if meter.count == 0:
        reason = next(iter(failed.values()), "the source is empty")
        raise DataError(f"{source.name}: no picture could be measured ({reason})")
    protocol = {
        "data": _describe_data(source, len(indices)),
        "pixels": policy.describe(),
        "value_range": "[0, 1], reconstruction rounded to 8 bits",
        "metrics": _describe_metrics(folder),
        "model": {"name": tok.config.name, "hash": tok.hash, "decoder": decoder or "its default"},
        "dtype": str(next(tok.parameters()).dtype).removeprefix("torch."),
        "device": _describe_device(tok.device),
        "batch_size": batch_size,
        "versions": package_versions(),
    }
    return Report({**meter.figures(), "failed": failed}, protocol)


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """`limit` of the indices below `count`, evenly spaced: sources are often sorted by class."""
    if limit is None or limit >= count:
        return list(range(count))
    return [n * count // limit for n in range(limit)]


class _Meter:
    """Figures over batches of pictures."""

    def __init__(self, tok: Tokenizer, lpips: LPIPS | None, decoder: str | None) -> None:
        self.tok, self.lpips = tok, lpips
        self.decoder_choice: dict[str, Any] = {} if decoder is None else {"decoder": decoder}
        self.semantic_codes = tok.config.semantic.num_codes
        self.pixel_codes = tok.config.pixel.num_codes
        self.counter = CodeCounter(self.semantic_codes, self.pixel_codes)
        self.values: dict[str, list[Tensor]] = defaultdict(list)
        self.patches: list[int] = []

    @property
    def count(self) -> int:
        """Pictures so far."""
        return len(self.patches)

    @torch.inference_mode()
    def update(self, images: Float[Tensor, "b 3 height width"]) -> None:
        images = images.to(self.tok.device)
        ids = self.tok.encode(images)
        back = self.tok.decode(ids, **self.decoder_choice).float().mul(255).round().div(255)
        self.counter.update(*self.tok.split(ids))
        self.patches += [ids[0].numel()] * len(ids)
        self.values["psnr_db"].append(psnr(images, back).cpu())
        self.values["ssim"].append(ssim(images, back).cpu())
        if self.lpips is not None:
            self.values["lpips_squeeze"].append(self.lpips(images, back).cpu())

    def figures(self) -> dict[str, Any]:
        measured = {name: summarize(torch.cat(values)) for name, values in self.values.items()}
        return {
            "pictures": self.count,
            **measured,
            "rate": self._rate(),
            "codes": asdict(self.counter.statistics()),
        }

    def _rate(self) -> dict[str, float]:
        """Every id at log2(K * m) bits, that is without entropy coding."""
        bits = math.log2(self.semantic_codes * self.pixel_codes)
        total_patches = sum(self.patches)
        return {
            "bits_per_patch": bits,
            "bits_per_pixel": bits / self.tok.patch_size**2,
            "patches_per_picture": total_patches / self.count,
            "bits_per_picture": bits * total_patches / self.count,
            "bytes_per_picture": sum(math.ceil(n * bits / 8) for n in self.patches) / self.count,
        }


def _batches(
    source: ImageSource,
    indices: list[int],
    policy: ImagePolicy,
    batch_size: int,
    failed: dict[str, str],
) -> Iterator[Float[Tensor, "b 3 height width"]]:
    """Neighbours of equal size together; pictures that cannot be read go to `failed`."""
    batch: list[Tensor] = []
    for index in indices:
        try:
            image = to_tensor(_prepared(source.read(index), policy))
        except SemHiTokError as error:
            key = source.key(index)
            failed[key] = str(error).removeprefix(f"{key}: ")
            continue
        if batch and (len(batch) == batch_size or batch[0].shape != image.shape):
            yield torch.stack(batch)
            batch = []
        batch.append(image)
    if batch:
        yield torch.stack(batch)


def _prepared(picture: Image.Image, policy: ImagePolicy) -> Image.Image:
    image = policy.apply(picture)
    if min(image.size) < SMALLEST_SIDE:
        raise ImageError(
            f"picture is {image.height}x{image.width} px; to be judged it needs {SMALLEST_SIDE} "
            "on both sides: give a resolution"
        )
    return image


def _describe_data(source: ImageSource, asked: int) -> dict[str, Any]:
    return {
        "name": source.name,
        "pictures": len(source),
        "selection": "all" if asked == len(source) else f"{asked}, evenly spaced",
        "fingerprint": source.fingerprint(),
    }


def _describe_metrics(judge: Path | None) -> dict[str, str]:
    return {
        "psnr_db": f"mean over pictures; equal pictures count as {MAX_PSNR_DB:g} dB",
        "ssim": f"Gaussian window of {SSIM_WINDOW} px, sigma 1.5",
        "lpips_squeeze": (
            "not measured: no judge"
            if judge is None
            else f"SqueezeNet 1.1, heads 0.1, inputs in [0, 1]; weights {judge_hash(judge)}"
        ),
        "interval": f"95%, bootstrap over pictures, {BOOTSTRAP_SAMPLES} samples, seed 0",
    }


def _describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type
