"""A study that takes seconds: labelled pictures, and the smallest scale there is."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

if TYPE_CHECKING:
    from semhitok.study.measure import Exam
    from semhitok.study.scales import Scale


def write_pictures(path: Path, count: int, classes: int, seed: int) -> Path:
    """Smooth pictures of 64 px in the Hugging Face layout; a class has its own colour."""
    random = np.random.default_rng(seed)
    tints = np.random.default_rng(0).integers(0, 160, (classes, 1, 1, 3))
    rows = []
    for number in range(count):
        coarse = random.integers(0, 96, (6, 6, 3)) + tints[number % classes]
        picture = Image.fromarray(coarse.astype(np.uint8)).resize(
            (64, 64), Image.Resampling.BICUBIC
        )
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        image = {"bytes": stream.getvalue(), "path": f"{number}.png"}
        rows.append({"image": image, "label": number % classes})
    names = [f"class {n}" for n in range(classes)]
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.Table.from_pylist(rows).replace_schema_metadata(metadata)
    pq.write_table(table, path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("study") / "pictures.parquet", 48, 4, seed=1)


@pytest.fixture(scope="session")
def exam(pictures: Path) -> Exam:
    from semhitok.data.sources import open_source
    from semhitok.study.measure import Exam

    source = open_source(pictures)
    return Exam(source, source, source, judge=None)


@pytest.fixture(scope="session")
def smoke() -> Scale:
    from semhitok.study.scales import find_scale

    return dataclasses.replace(find_scale("smoke"), photos=4, probe=(24, 12))
