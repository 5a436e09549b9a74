"""Do patches of one semantic code look alike? The paper's idea rests on it; here it is measured."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from semhitok.data.sources import ImageSource
from semhitok.errors import DataError
from semhitok.evaluate.reconstruction import evenly_spaced, read_batches
from semhitok.images import ImagePolicy
from semhitok.model import SemHiTok
from semhitok.model.kmeans import kmeans
from semhitok.model.layers import patchify
from semhitok.model.search import nearest

BLOCKS = 20
"""Groups of pictures that the jackknife leaves out one by one."""

KMEANS_ITERATIONS = 8


def within_share(
    codes: Int64[Tensor, "n"], vectors: Float[Tensor, "n d"], blocks: Int64[Tensor, "n"]
) -> dict[str, float]:
    """Variance of vectors within their code over their total variance, and its 95% interval.

    1 where codes say nothing of the vectors, for any number of codes: both variances are unbiased
    (sums of squares over n - codes seen, and n - 1). The interval is a jackknife's, which leaves
    out one block after the other: patches of one picture are not independent.

    Args:
        codes: any integers from 0.
        blocks: in [0, b), b >= 2; a picture's patches are all in one.

    Raises:
        DataError: fewer than two blocks, or no more patches than codes.
    """
    count, sizes = int(blocks.max()) + 1, int(codes.max()) + 1
    if count < 2:
        raise DataError("one block of pictures; an interval needs two at least")
    vectors = vectors.double()
    vectors = vectors - vectors.mean(dim=0)
    flat = blocks * sizes + codes
    sums = vectors.new_zeros(count * sizes, vectors.shape[1]).index_add_(0, flat, vectors)
    sums = sums.view(count, sizes, -1)
    numbers = torch.bincount(flat, minlength=count * sizes).view(count, sizes).double()
    squares = vectors.new_zeros(count).index_add_(0, blocks, vectors.square().sum(dim=1))
    share = _share(sums.sum(0), numbers.sum(0), squares.sum())
    without = torch.tensor(
        [
            _share(sums.sum(0) - sums[b], numbers.sum(0) - numbers[b], squares.sum() - squares[b])
            for b in range(count)
        ]
    )
    spread = float((without - without.mean()).square().sum() * (count - 1) / count)
    error = math.sqrt(spread)
    return {
        "mean": share,
        "standard_error": error,
        "low": share - 1.96 * error,
        "high": share + 1.96 * error,
    }


def _share(sums: Tensor, numbers: Tensor, squares: Tensor) -> float:
    total_number, seen = numbers.sum(), (numbers > 0).sum()
    if total_number <= seen:
        raise DataError(f"{int(total_number)} patches of {int(seen)} codes; more are needed")
    explained = (sums.square().sum(dim=1) / numbers.clamp_min(1)).sum()
    within = (squares - explained) / (total_number - seen)
    total = (squares - sums.sum(0).square().sum() / total_number) / (total_number - 1)
    return float(within / total)


@torch.inference_mode()
def similarity(
    model: SemHiTok,
    source: ImageSource,
    size: int,
    *,
    max_images: int | None = None,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Within-code over total variance of patch pixels and of pixel latents, by semantic code.

    Beside each the `random` control (the same codes dealt to other patches: 1 but for chance), and
    the bound that `kmeans` on the vectors themselves reaches with as many codes, fitted to every
    other picture and measured on the rest.

    Args:
        size: side in pixels of the square that each picture is brought to.

    Raises:
        DataError: too few pictures for as many codes.
    """
    policy = ImagePolicy(size=size, crop="square", multiple=model.patch_size)
    failed: dict[str, str] = {}
    codes, pixels, latents, pictures = [], [], [], []
    indices = evenly_spaced(len(source), max_images)
    number = 0
    assert model.pixel.encoder is not None
    for images, _ in read_batches(source, indices, policy, batch_size, failed):
        images = images.to(model.device)
        found = model.split(model.encode(images))[0]
        patches = found[0].numel()
        codes.append(found.flatten().cpu())
        pixels.append(patchify(images, model.patch_size).flatten(0, 2).cpu())
        latents.append(model.pixel.encoder(images).flatten(0, 2).cpu())
        pictures.append((number + torch.arange(len(images))).repeat_interleave(patches))
        number += len(images)
    if number < 2 * BLOCKS:
        raise DataError(f"{source.name}: {number} pictures; {2 * BLOCKS} are needed at least")
    semantic, picture = torch.cat(codes), torch.cat(pictures)
    figures = {
        name: _compare(semantic, torch.cat(vectors), picture, model.config.semantic.num_codes)
        for name, vectors in (("pixels", pixels), ("latents", latents))
    }
    protocol = {
        "data": source.name,
        "fingerprint": source.fingerprint(),
        "pictures": number,
        "failed": len(failed),
        "pixels": policy.describe(),
        "model": model.hash,
        "interval": f"95%, jackknife over {BLOCKS} blocks of pictures",
        "kmeans": f"{KMEANS_ITERATIONS} iterations, k-means++, fitted to even pictures, seed 0",
    }
    return {**figures, "protocol": protocol}


def _compare(
    semantic: Tensor, vectors: Tensor, picture: Tensor, num_codes: int
) -> dict[str, dict[str, float]]:
    generator = torch.Generator().manual_seed(0)
    blocks = picture % BLOCKS
    dealt = semantic[torch.randperm(len(semantic), generator=generator)]
    fitted = picture % 2 == 0
    centres = kmeans(vectors[fitted], num_codes, iterations=KMEANS_ITERATIONS, generator=generator)
    held_out, bound = vectors[~fitted], nearest(vectors[~fitted], centres)
    return {
        "semantic_code": within_share(semantic, vectors, blocks),
        "random": within_share(dealt, vectors, blocks),
        "kmeans": within_share(bound, held_out, (picture[~fitted] // 2) % BLOCKS),
    }
