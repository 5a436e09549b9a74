from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semhitok import SemHiTok
from semhitok.data.sources import FolderSource, ImageSource
from semhitok.errors import DataError
from semhitok.evaluate import semantics
from semhitok.evaluate.semantics import check_labels, probe_semantics


@pytest.fixture
def tok(tiny_tokenizer: SemHiTok) -> SemHiTok:
    """Random, but for codes that are latents of such pictures."""
    images = torch.stack([torch.from_numpy(pixels(n % 2, n)) for n in range(8)])
    images = images.permute(0, 3, 1, 2).float() / 255
    semantic = tiny_tokenizer.semantic
    with torch.no_grad():
        latents = semantic.latents(images, (4, 4)).flatten(0, -2)
        semantic.codebook.codes.copy_(latents[::8])
    return tiny_tokenizer


def pixels(label: int, seed: int) -> np.ndarray:
    """Dark reds of class 0, bright blues of class 1."""
    noise = np.random.default_rng(seed).integers(0, 60, (32, 32, 3), dtype=np.uint8)
    return noise + np.array([[60, 0, 0], [100, 100, 190]][label], dtype=np.uint8)


class Labelled(ImageSource):
    """Pictures made on the spot; the last is broken, the last but one has no class."""

    def __init__(self, count: int, seed: int) -> None:
        self.name, self.count, self.seed = f"labelled-{seed}", count, seed
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return str(index)

    def read_bytes(self, index: int) -> bytes:
        import io

        self.asked.append(index)
        if index == self.count - 1:
            return b"broken"
        buffer = io.BytesIO()
        Image.fromarray(pixels(index % 2, self.seed + index)).save(buffer, "PNG")
        return buffer.getvalue()

    def labels(self) -> np.ndarray:
        labels = np.arange(self.count, dtype=np.int64) % 2
        labels[-2] = -1
        return labels

    def _identity(self) -> list[str]:
        return [self.name]


def test_probe_of_separable_classes(tok: SemHiTok) -> None:
    codes = tok.semantic.codebook.codes.clone()
    figures = probe_semantics(tok, Labelled(42, 0), Labelled(22, 1000), 32, kmeans_codes=codes)
    accuracy = figures["linear_probe"]
    assert set(accuracy) == {"teacher", "quantized", "kmeans", "semantic_features", "pixel"}
    assert figures["knn"].keys() == accuracy.keys()
    assert -1 < figures["cosine"] < 1
    assert 0.6 < accuracy["teacher"] <= 1.0
    assert accuracy["kmeans"] == accuracy["quantized"]  # for the codes are the same
    assert figures["retention"]["quantized"] == accuracy["quantized"] / accuracy["teacher"]
    assert figures["protocol"]["train"]["pictures"] == 40
    assert figures["protocol"]["train"]["failed"] == 1
    assert json.loads(json.dumps(figures)) == figures


def test_the_features(tok: SemHiTok) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    kmeans = torch.nn.functional.normalize(torch.randn(5, tok.config.semantic.code_dim), dim=-1)
    with torch.no_grad():
        grids = semantics._grids(tok, kmeans, True, images)
    ids = tok.encode(images)
    semantic, pixel = tok.split(ids)
    assert torch.equal(grids["quantized"], tok.semantic.codebook.lookup(semantic))
    assert torch.allclose(grids["pixel"], tok.pixel.codebook.lookup(semantic, pixel))
    assert torch.allclose(grids["semantic_features"], tok.semantic_features(ids))
    with torch.no_grad():
        distances = torch.cdist(tok.semantic.latents(images, (4, 4)).flatten(0, 2), kmeans)
    assert torch.equal(grids["kmeans"].flatten(0, 2), kmeans[distances.argmin(-1)])


def test_subsample_is_seeded_and_bounded(tok: SemHiTok) -> None:
    sources = [Labelled(60, 0), Labelled(60, 0)]
    for source in sources:
        probe_semantics(tok, source, Labelled(22, 9), 32, max_train=30, max_val=5)
    assert sources[0].asked == sources[1].asked and len(sources[0].asked) == 30


def test_data_without_labels_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="has no labels"):
        check_labels(FolderSource(tmp_path))
