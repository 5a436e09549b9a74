"""The bundled model: its weight, that its ids stay what they are, that it is worth having."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semhitok import SemHiTok
from semhitok.data.sources import open_source
from semhitok.evaluate.adapters import TokenizerAdapter
from semhitok.evaluate.reconstruction import evaluate
from semhitok.hub import read_metrics, resolve
from semhitok.train.recipe import load_recipe
from semhitok.train.run import load_teacher

GOLDEN = Path(__file__).parent / "golden" / "tiny-chelsea.json"
SAME_IDS = 0.99
"""Least share of golden ids: another CPU's rounding may flip a few, another model flips most."""


@pytest.fixture(scope="module")
def tiny() -> SemHiTok:
    return SemHiTok.from_pretrained("tiny")


def chelsea() -> Image.Image:
    pytest.importorskip("skimage")
    with resources.as_file(resources.files("skimage") / "data" / "chelsea.png") as path:
        return Image.open(path).convert("RGB")


def test_it_weighs_at_most_32_megabytes() -> None:
    folder = resolve("tiny")
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 32_000_000


def test_its_ids_are_the_golden_ones(tiny: SemHiTok) -> None:
    """A change of these ids spoils every stored token: it needs a new version of the model."""
    golden = json.loads(GOLDEN.read_text())
    ids = tiny.encode(tiny.preprocess(chelsea()))
    assert golden["hash"] == tiny.hash
    same = (ids[0].numpy() == np.array(golden["ids"])).mean()
    assert same >= SAME_IDS, f"{1 - same:.1%} of the ids differ from the golden ones"


def test_the_card_carries_what_a_user_must_know(tiny: SemHiTok) -> None:
    card = (resolve("tiny") / "README.md").read_text()
    for word in ("license:", "Apache-2.0", "ImageNet", "Flickr8k", "non-commercial", tiny.hash):
        assert word in card
    assert read_metrics(resolve("tiny"))["evaluation"]


@pytest.mark.shared
def test_photos_come_back_recognisably(tiny: SemHiTok, shared: Path) -> None:
    source = open_source(shared / "data" / "imagenet1k-dev.parquet")
    report = evaluate(TokenizerAdapter(tiny), source, resolution=128, max_images=48)
    assert report.figures["psnr_db"]["mean"] > 22.4


@pytest.mark.shared
def test_both_levels_are_in_use(tiny: SemHiTok, shared: Path) -> None:
    source = open_source(shared / "data" / "tiny-imagenet-val.parquet")
    codes = evaluate(TokenizerAdapter(tiny), source, resolution=64, max_images=500).figures["codes"]
    assert codes["semantic_usage"] > 0.6
    assert codes["pixel_entropy"] > 6


def test_both_decoders_and_any_shape(tiny: SemHiTok) -> None:
    x = torch.rand(1, 3, 24, 40)
    ids = tiny.encode(x)
    assert ids.shape == (1, 3, 5)
    assert not torch.equal(tiny.decode(ids, decoder="pixel"), tiny.decode(ids, decoder="enhance"))


def test_its_encoder_is_the_teacher_when_a_recipe_names_none(tiny: SemHiTok) -> None:
    teacher = load_teacher(load_recipe("tiny"))
    x = torch.rand(1, 3, 32, 48)
    assert torch.equal(teacher(x, (4, 6)), tiny.semantic.trunk_features(x, (4, 6)))
