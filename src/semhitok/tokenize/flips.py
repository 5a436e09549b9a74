"""How many ids reduced precision changes, on a sample of the job's own pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from semhitok.data.sources import ImageSource
from semhitok.errors import ImageError, NotFoundError
from semhitok.images import ImagePolicy, to_tensor
from semhitok.model import SemHiTok

SAMPLE = 64


@dataclass(frozen=True)
class Flips:
    """Shares of the patches whose codes differ from float32's."""

    pictures: int
    ids: float
    semantic: float
    pixel: float
    """Among patches whose semantic code is the same: with another parent the codes mean nothing."""
    device: str
    """Where both were computed."""


def sample_evenly(count: int, wanted: int) -> list[int]:
    """Indices of `wanted` of `count` pictures, or of all, evenly spaced."""
    wanted = min(count, wanted)
    return [number * count // wanted for number in range(wanted)]


@torch.inference_mode()
def measure_flips(
    model: SemHiTok, source: ImageSource, policy: ImagePolicy, precision: torch.dtype
) -> Flips:
    """Encode a sample in float32 and in `precision`; the model keeps the latter."""
    total = same_parent = semantic_flips = pixel_flips = id_flips = pictures = 0
    for image in _pictures(source, policy):
        exact = model.split(_encode(model, image, torch.float32))
        reduced = model.split(_encode(model, image, precision))
        same = exact[0] == reduced[0]
        pictures += 1
        total += same.numel()
        same_parent += int(same.sum())
        semantic_flips += int((~same).sum())
        pixel_flips += int((same & (exact[1] != reduced[1])).sum())
        id_flips += int((~same | (exact[1] != reduced[1])).sum())
    model.set_precision(precision)
    return Flips(
        pictures,
        id_flips / max(total, 1),
        semantic_flips / max(total, 1),
        pixel_flips / max(same_parent, 1),
        model.device.type,
    )


def _encode(model: SemHiTok, image: Tensor, precision: torch.dtype) -> Tensor:
    return model.set_precision(precision).encode(image)


def _pictures(source: ImageSource, policy: ImagePolicy) -> Iterator[Tensor]:
    for index in sample_evenly(len(source), SAMPLE):
        try:
            image = policy.read(source.read_bytes(index), source.key(index))
        except (ImageError, NotFoundError):
            continue  # named in the shard that should have held it
        yield to_tensor(image)[None]
