"""Twenty small pictures with labels, two of them broken, and a job over them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from twenty import BROKEN, COUNT

if TYPE_CHECKING:
    from semhitok.model import SemHiTok
    from semhitok.tokenize.job import TokenizeJob


def picture_bytes(seed: int, size: tuple[int, int]) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet; the pictures have two sizes, so that batches wait for one another."""
    rows = []
    for number in range(COUNT):
        content = picture_bytes(number, (40, 40) if number % 3 else (56, 40))
        if number in BROKEN:
            content = content[:60]
        image = {"bytes": content, "path": f"{number}.png"}
        rows.append({"image": image, "label": number % 4, "captions": [f"picture {number}"] * 2})
    path = tmp_path_factory.mktemp("data") / "twenty.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="session")
def start(data: Path, make_tokenizer: Callable[..., SemHiTok]) -> Callable[..., TokenizeJob]:
    """The job in a folder: claims it, as the command does."""

    def begin(
        folder: Path,
        *,
        shard_size: int = 6,
        batch_size: int = 4,
        workers: int = 0,
        crop: Literal["grid", "random", "buckets"] = "grid",
    ) -> object:
        from semhitok.data.sources import open_source
        from semhitok.data.tokens import TokenMetadata
        from semhitok.images import ImagePolicy
        from semhitok.tokenize.job import TokenizeJob
        from semhitok.tokenize.plan import Plan

        model, source = make_tokenizer(), open_source(data)
        seed = 3 if crop == "random" else None
        policy = ImagePolicy(size=32, crop=crop, multiple=8, seed=seed)
        metadata = TokenMetadata(
            model="toy",
            hash="abc",
            num_semantic=16,
            num_pixel=4,
            patch_size=8,
            policy=policy.describe(),
            dtype="float32",
            version="1",
        )
        plan = Plan.make(source, metadata, shard_size)
        plan.claim(folder)
        return TokenizeJob(plan, source, policy, model, folder, batch_size, workers)

    return begin  # type: ignore[return-value]


@pytest.fixture(scope="session")
def whole(start: Callable[..., TokenizeJob], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    job = start(folder)
    job.run_rank()
    job.finish()
    return folder
