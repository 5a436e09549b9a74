"""How well pictures come back from a tokenizer or codec, at what rate, and how it uses codes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from semhitok.data.sources import ImageSource
from semhitok.errors import DataError, ImageError, RangeError, SemHiTokError
from semhitok.evaluate.adapters import Adapter, describe_device
from semhitok.evaluate.codebooks import CodeCounter
from semhitok.evaluate.inception import Inception, weights_hash
from semhitok.evaluate.judge import JUDGE_SIDE, Judge, imagenet_labels
from semhitok.evaluate.metrics import (
    BOOTSTRAP_SAMPLES,
    MAX_PSNR_DB,
    MS_SSIM_SIDE,
    SSIM_WINDOW,
    frechet_distance,
    ms_ssim,
    psnr,
    ssim,
    summarize,
)
from semhitok.evaluate.report import Report, package_versions
from semhitok.images import ImagePolicy, to_tensor
from semhitok.model.lpips import LPIPS, TRUNKS, TrunkName, find_judge, find_lpips, lpips_hash

SMALLEST_SIDE = max(SSIM_WINDOW, TRUNKS["squeeze"].min_side)
"""Pixels; a picture with a shorter side cannot be judged, and is named as failed."""


def evaluate(
    adapter: Adapter,
    source: ImageSource,
    *,
    resolution: int | None,
    crop: Literal["square", "grid"] = "square",
    multiple: int | None = None,
    max_images: int | None = None,
    batch_size: int = 16,
    judge: str | Path | None = None,
    lpips: str | Path | None = None,
    inception: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Encode and decode pictures, and compare.

    Figures over pictures (mean, standard error, 95% interval): PSNR, SSIM, MS-SSIM where pictures
    are large enough, LPIPS on the trunks in `lpips`, and by the judge LPIPS on its own, cosine and
    agreement of its first guess; over sets of pictures: `fd_judge` (a Frechet distance, and no
    rFID) and, with Inception, `rfid`. Then the rate, the use of codes where there are some, and
    each failed picture with its reason. Reconstructions are rounded to 8 bits first, as a user
    would save them.

    Args:
        resolution: short side in pixels; None keeps each picture's own.
        crop: "square" cuts the centre square, "grid" only what exceeds a multiple of the patch.
        multiple: of both sides, in pixels; None takes the adapter's. Adapters that are compared
            need the same, so that they see the same pictures.
        max_images: measure that many, evenly spaced over the source; None measures all.
        batch_size: pictures at a time; fewer where sizes differ.
        judge: folder of the judge's weights; None asks $SEMHITOK_JUDGES. Without one its figures
            are left out, and the protocol says so.
        lpips: folder of other trunks with their LPIPS heads; all that it holds are measured, as
            `lpips_alex`, `lpips_vgg` and, where no judge gives it, `lpips_squeeze`.
        inception: file of FID-Inception's weights; None leaves rFID out.
        device: where the measuring networks compute.
        progress: called with (pictures done, pictures in all).

    Raises:
        DataError: no picture could be measured.
        NotFoundError: weights are missing, of the judge, of LPIPS or of Inception.
        RangeError: max_images or batch_size below 1, or a resolution that patches do not tile.
    """
    for name, value in (("max_images", max_images), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise RangeError(f"{name} is {value}; it must be at least 1")
    folder = find_judge(judge)
    instruments = Instruments(
        torch.device(device),
        None if folder is None else Judge(folder).to(device),
        None if inception is None else Inception.load(Path(inception)).to(device),
        {} if lpips is None else _load_lpips(lpips, folder is not None, device),
    )
    policy = ImagePolicy(size=resolution, crop=crop, multiple=multiple or adapter.multiple)
    indices = evenly_spaced(len(source), max_images)
    failed: dict[str, str] = {}
    meter = _Meter(adapter, instruments, imagenet_labels(source))
    for images, batch in read_batches(
        source, indices, policy, batch_size, failed, smallest=instruments.smallest_side
    ):
        meter.update(images, batch)
        if progress is not None:
            progress(meter.count + len(failed), len(indices))
    if meter.count == 0:
        reason = next(iter(failed.values()), "the source is empty")
        raise DataError(f"{source.name}: no picture could be measured ({reason})")
    protocol = {
        "data": _describe_data(source, len(indices)),
        "pixels": policy.describe(),
        "value_range": "[0, 1], reconstruction rounded to 8 bits",
        "metrics": _describe_metrics(meter, folder, lpips, inception),
        "model": {"name": adapter.name, **adapter.describe()},
        "measured_on": describe_device(torch.device(device)),
        "batch_size": batch_size,
        "versions": package_versions(),
    }
    pictures: dict[str, list[Any]] = {
        "key": [source.key(index) for index in meter.indices],
        **meter.columns(),
    }
    return Report(
        {**meter.figures(), "failed": failed},
        protocol,
        pictures,
        indices=meter.indices,
        code_counts=None if meter.counter is None else meter.counter.counts,
    )


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """`limit` of the indices below `count`, evenly spaced: sources are often sorted by class."""
    if limit is None or limit >= count:
        return list(range(count))
    return [n * count // limit for n in range(limit)]


@dataclass(frozen=True)
class Instruments:
    """The networks that measure, where there are some."""

    device: torch.device
    judge: Judge | None
    inception: Inception | None
    lpips: dict[TrunkName, LPIPS] = field(default_factory=dict)
    """Beside the judge's own."""

    @property
    def smallest_side(self) -> int:
        """Pixels that a picture's short side needs for all of them."""
        return max([SMALLEST_SIDE, *(TRUNKS[name].min_side for name in self.lpips)])


def _load_lpips(
    folder: str | Path, judged: bool, device: torch.device | str
) -> dict[TrunkName, LPIPS]:
    """The measures in a folder, less the one that a judge brings along."""
    names = [name for name in find_lpips(folder) if not (judged and name == "squeeze")]
    return {name: LPIPS.load(folder, name).to(device) for name in names}


class _Meter:
    """Figures over batches of pictures."""

    def __init__(
        self, adapter: Adapter, instruments: Instruments, labels: Sequence[int] | None
    ) -> None:
        self.adapter, self.instruments = adapter, instruments
        self.labels = labels
        self.counter: CodeCounter | None = None
        self.values: dict[str, list[Tensor]] = defaultdict(list)
        self.features: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        self.indices: list[int] = []
        self.patches: list[int] = []
        self.bits: list[float] = []
        self.pixels = 0

    @property
    def count(self) -> int:
        """Pictures so far."""
        return len(self.indices)

    @torch.inference_mode()
    def update(self, images: Float[Tensor, "b 3 height width"], indices: list[int]) -> None:
        encoded = self.adapter.encode(images)
        back = self.adapter.decode(encoded).float().cpu().mul(255).round().div(255)
        self.indices += indices
        self.bits += self.adapter.bits(encoded)
        self.pixels += images.shape[0] * images.shape[-2] * images.shape[-1]
        self._count_codes(encoded)
        self.values["psnr_db"].append(psnr(images, back))
        self.values["ssim"].append(ssim(images, back))
        if min(images.shape[-2:]) >= MS_SSIM_SIDE:
            self.values["ms_ssim"].append(ms_ssim(images, back))
        device = self.instruments.device
        self._ask_networks(images.to(device), back.to(device), indices)

    def _count_codes(self, encoded: Any) -> None:
        codes = self.adapter.codes(encoded)
        if codes is None:
            return
        if self.counter is None:
            self.counter = CodeCounter(*self.adapter.codebook_sizes())
        self.counter.update(*codes)
        self.patches += [codes[0][0].numel()] * len(codes[0])

    def _ask_networks(self, images: Tensor, back: Tensor, indices: list[int]) -> None:
        judge, inception = self.instruments.judge, self.instruments.inception
        if judge is not None:
            labels = None
            if self.labels is not None:
                labels = torch.tensor([self.labels[n] for n in indices], device=images.device)
            opinion = judge.compare(images, back, labels)
            for name, values in opinion.figures.items():
                self.values[name].append(values.cpu())
            self._keep("fd_judge", opinion.original, opinion.reconstruction)
        for trunk, lpips in self.instruments.lpips.items():
            self.values[f"lpips_{trunk}"].append(lpips(images, back).cpu())
        if inception is not None:
            self._keep("rfid", inception(images), inception(back))

    def _keep(self, name: str, original: Tensor, reconstruction: Tensor) -> None:
        first, second = self.features.setdefault(name, ([], []))
        first.append(original.cpu())
        second.append(reconstruction.cpu())

    def columns(self) -> dict[str, list[Any]]:
        """Figures of each picture; those that only some pictures have are left out."""
        whole = {name: torch.cat(values) for name, values in self.values.items()}
        return {
            name: [round(x, 6) for x in values.tolist()]
            for name, values in whole.items()
            if len(values) == self.count
        }

    def figures(self) -> dict[str, Any]:
        whole = {name: torch.cat(values) for name, values in self.values.items()}
        figures: dict[str, Any] = {"pictures": self.count}
        figures |= {name: summarize(values) for name, values in whole.items()}
        if "judge_top1" in whole:
            original = float(whole["judge_top1_original"].mean())
            kept = float(whole["judge_top1"].mean()) / original if original else None
            figures["judge_top1_kept"] = kept
        for name, (first, second) in self.features.items():
            enough = self.count > 1
            figures[name] = (
                frechet_distance(torch.cat(first), torch.cat(second)) if enough else None
            )
        figures["rate"] = self._rate()
        if self.counter is not None:
            figures["codes"] = asdict(self.counter.statistics())
        return figures

    def _rate(self) -> dict[str, float]:
        total = sum(self.bits)
        rate = {
            "bits_per_pixel": total / self.pixels,
            "bits_per_picture": total / self.count,
            "bytes_per_picture": sum(math.ceil(bits / 8) for bits in self.bits) / self.count,
        }
        if self.counter is not None:
            patches = sum(self.patches)
            entropy = self.counter.statistics().joint_entropy
            rate["bits_per_patch"] = total / patches
            rate["patches_per_picture"] = patches / self.count
            rate["entropy_bytes_per_picture"] = entropy * patches / self.count / 8
            rate["zstd_bytes_per_picture"] = self.counter.zstd_bytes() / self.count
        return rate


def read_batches(
    source: ImageSource,
    indices: list[int],
    policy: ImagePolicy,
    batch_size: int,
    failed: dict[str, str],
    *,
    smallest: int = SMALLEST_SIDE,
) -> Iterator[tuple[Float[Tensor, "b 3 height width"], list[int]]]:
    """Neighbours of equal size together; pictures that cannot be read go to `failed`.

    So do those with a side shorter than `smallest` pixels.
    """
    batch: list[Tensor] = []
    places: list[int] = []
    for index in indices:
        try:
            image = to_tensor(_prepared(source.read(index), policy, smallest))
        except SemHiTokError as error:
            key = source.key(index)
            failed[key] = str(error).removeprefix(f"{key}: ")
            continue
        if batch and (len(batch) == batch_size or batch[0].shape != image.shape):
            yield torch.stack(batch), places
            batch, places = [], []
        batch.append(image)
        places.append(index)
    if batch:
        yield torch.stack(batch), places


def _prepared(picture: Image.Image, policy: ImagePolicy, smallest: int) -> Image.Image:
    image = policy.apply(picture)
    if min(image.size) < smallest:
        raise ImageError(
            f"picture is {image.height}x{image.width} px; to be judged it needs {smallest} "
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


def _describe_metrics(
    meter: _Meter,
    judge: Path | None,
    lpips: str | Path | None,
    inception: str | Path | None,
) -> dict[str, str]:
    scales = meter.values.get("ms_ssim")
    by_judge = "not measured: no judge" if judge is None else _describe_lpips(judge, "squeeze")
    others = (
        {} if lpips is None else {n: _describe_lpips(lpips, n) for n in meter.instruments.lpips}
    )
    rfid = "not measured: no Inception"
    if inception is not None:
        rfid = (
            f"FID-Inception 2015-12-05, weights {weights_hash(Path(inception))}; TensorFlow's "
            f"bilinear resize to 299 px from the size above; {meter.count} pairs of pictures"
        )
    return {
        "psnr_db": f"mean over pictures; equal pictures count as {MAX_PSNR_DB:g} dB",
        "ssim": f"Gaussian window of {SSIM_WINDOW} px, sigma 1.5",
        "ms_ssim": "five scales" if scales else f"not measured: sides below {MS_SSIM_SIDE} px",
        "lpips_squeeze": by_judge + ("" if judge is None else "; at the size above"),
        **{f"lpips_{name}": f"{text}; at the size above" for name, text in others.items()},
        "judge": by_judge
        + ("" if judge is None else f"; both pictures resized to {JUDGE_SIDE} px, bilinear"),
        "rfid": rfid,
        "interval": f"95%, bootstrap over pictures, {BOOTSTRAP_SAMPLES} samples, seed 0",
    }


def _describe_lpips(folder: str | Path, trunk: TrunkName) -> str:
    weights = lpips_hash(folder, trunk)
    return f"{TRUNKS[trunk].title} (ImageNet-1k) and LPIPS heads 0.1; weights {weights}"
