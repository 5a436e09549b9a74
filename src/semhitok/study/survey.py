"""How alike the pixels of one semantic code are, by teacher, layer, patch size and K.

No network is trained: codes are k-means centres of a teacher's standardised features. The paper's
idea, a sub-codebook for each semantic code, rests on this being much less than one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from semhitok.data.sources import ImageSource
from semhitok.evaluate.reconstruction import evenly_spaced, read_batches
from semhitok.evaluate.similarity import BLOCKS, KMEANS_ITERATIONS, within_share
from semhitok.images import ImagePolicy
from semhitok.model import Teacher
from semhitok.model.kmeans import kmeans
from semhitok.model.layers import patchify
from semhitok.model.search import nearest

LAYERS = (2, 6, 12, -1)
PATCHES = (8, 16, 32)
CODES = (64, 256, 1024)
SIDE = 128
"""Pixels of the pictures."""
BATCH_SIZE = 16


@dataclass(frozen=True)
class Finding:
    """Within-code over total variance of held-out patch pixels, with 95% intervals."""

    teacher: str
    layer: int
    patch: int
    num_codes: int
    within: dict[str, float]
    random: dict[str, float]
    """The same codes dealt to other patches: 1 but for chance."""
    bound: dict[str, float]
    """K-means of as many codes on the pixels themselves."""


def survey(
    teachers: dict[str, Teacher],
    fitted: ImageSource,
    held_out: ImageSource,
    *,
    pictures: int = 400,
    layers: Sequence[int] = LAYERS,
    patches: Sequence[int] = PATCHES,
    codes: Sequence[int] = CODES,
) -> Iterator[Finding]:
    """Each teacher, layer, patch size and K in turn.

    Args:
        teachers: by name; convolutional ones, which give any grid by dilation.
        fitted: pictures that centres are fitted to.
        held_out: pictures on which pixels are compared.
        pictures: so many of each.
    """
    for patch in patches:
        first, second = (_pictures(s, pictures, patch) for s in (fitted, held_out))
        fit, seen = (patchify(images, patch).flatten(0, 2) for images in (first, second))
        blocks = torch.arange(len(second)).repeat_interleave((SIDE // patch) ** 2) % BLOCKS
        bounds = {k: within_share(_codes(fit, seen, k), seen, blocks) for k in codes}
        for name, teacher in teachers.items():
            for layer in layers:
                reader = teacher.reading([layer], output_stride=patch)
                features = [_features(reader, images, patch) for images in (first, second)]
                scale = 1 / features[0].std(dim=0).clamp_min(1e-6)
                unit = [F.normalize(f * scale, dim=-1) for f in features]
                for k in codes:
                    found = _codes(unit[0], unit[1], k, unit=True)
                    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
                    yield Finding(
                        name,
                        layer,
                        patch,
                        k,
                        within_share(found, seen, blocks),
                        within_share(found[order], seen, blocks),
                        bounds[k],
                    )


def describe(fitted: ImageSource, held_out: ImageSource, pictures: int) -> dict[str, Any]:
    """The survey's protocol."""
    return {
        "fitted": {"name": fitted.name, "fingerprint": fitted.fingerprint()},
        "held_out": {"name": held_out.name, "fingerprint": held_out.fingerprint()},
        "pictures": pictures,
        "side": SIDE,
        "features": "each channel over its deviation, l2-normalised",
        "kmeans": f"{KMEANS_ITERATIONS} iterations, k-means++, seed 0",
        "interval": f"95%, jackknife over {BLOCKS} blocks of pictures",
    }


def table(findings: Sequence[Finding]) -> str:
    """Markdown: a line for each teacher, layer and patch size, K along it."""
    codes = sorted({finding.num_codes for finding in findings})
    lines = [
        "| teacher | layer | patch, px | "
        + " | ".join(f"K = {k:,}" for k in codes)
        + " | k-means on pixels, K = "
        + f"{codes[-1]:,} |",
        "|---|---:|---:" + "|---:" * (len(codes) + 1) + "|",
    ]
    lines_of: dict[tuple[str, int, int], dict[int, Finding]] = {}
    for finding in findings:
        key = (finding.teacher, finding.layer, finding.patch)
        lines_of.setdefault(key, {})[finding.num_codes] = finding
    for (teacher, layer, patch), by_codes in lines_of.items():
        cells = [_interval(by_codes[k].within) if k in by_codes else "" for k in codes]
        bound = f"{by_codes[max(by_codes)].bound['mean']:.2f}"
        lines.append(f"| {teacher} | {layer} | {patch} | " + " | ".join([*cells, bound]) + " |")
    return "\n".join(lines)


def to_json(findings: Sequence[Finding], protocol: dict[str, Any]) -> dict[str, Any]:
    """Plain data of a survey."""
    return {"findings": [asdict(finding) for finding in findings], "protocol": protocol}


def from_json(data: dict[str, Any]) -> list[Finding]:
    """The findings in what `to_json` gave."""
    return [Finding(**finding) for finding in data["findings"]]


def _interval(share: dict[str, float]) -> str:
    return f"{share['mean']:.2f} ± {1.96 * share['standard_error']:.2f}"


def _pictures(source: ImageSource, count: int, patch: int) -> Float[Tensor, "n 3 side side"]:
    policy = ImagePolicy(size=SIDE, crop="square", multiple=patch)
    indices = evenly_spaced(len(source), count)
    return torch.cat([x for x, _ in read_batches(source, indices, policy, BATCH_SIZE, {})])


@torch.inference_mode()
def _features(
    teacher: Teacher, images: Float[Tensor, "n 3 side side"], patch: int
) -> Float[Tensor, "patches d"]:
    grid = (SIDE // patch, SIDE // patch)
    parts = [teacher(batch, grid).flatten(0, 2) for batch in images.split(BATCH_SIZE)]
    return torch.cat(parts)


def _codes(
    fitted: Tensor, held_out: Tensor, num_codes: int, *, unit: bool = False
) -> Int64[Tensor, "n"]:
    """Nearest k-means centre of the held-out rows."""
    generator = torch.Generator().manual_seed(0)
    centres = kmeans(
        fitted, num_codes, iterations=KMEANS_ITERATIONS, generator=generator, unit=unit
    )
    return nearest(held_out, centres)
