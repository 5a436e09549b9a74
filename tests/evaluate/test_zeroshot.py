"""Zero-shot accuracy against what `transformers` itself says of the same pictures."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor

from semhitok import SemHiTok
from semhitok.data.sources import FolderSource, ImageSource
from semhitok.errors import DataError, RangeError
from semhitok.evaluate.zeroshot import check_zero_shot, embed_classes, zero_shot
from semhitok.images import to_tensor
from semhitok.model import Teacher
from semhitok.model.config import TokenizerConfig
from semhitok.model.text_tower import TextTower
from semhitok.model.trunk import CLIP_MEAN, CLIP_STD

NAMES = ["red fish", "blue_house", "sea", "large green"]
TEMPLATES = ["a photo of a {}.", "the {}."]
COUNT = 24


def picture(seed: int) -> Image.Image:
    """Coarse noise; another brightness, hue and grain for each seed."""
    random = np.random.default_rng(seed)
    side, colour = int(random.choice([1, 2, 8, 32])), random.integers(0, 256, 3)
    noise = random.integers(0, 256, (side, side, 3)) * random.random()
    pixels = np.clip(colour + noise - 64, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST)


class Classes(ImageSource):
    """Pictures of 64 px; the last is broken, the last but one has no class."""

    name = "classes"

    def __init__(self, labels: list[int]) -> None:
        self._labels = [*labels, -1, 0]

    def __len__(self) -> int:
        return len(self._labels)

    def key(self, index: int) -> str:
        return str(index)

    def read_bytes(self, index: int) -> bytes:
        if index == len(self) - 1:
            return b"broken"
        buffer = io.BytesIO()
        picture(index).save(buffer, "PNG")
        return buffer.getvalue()

    def labels(self) -> np.ndarray:
        return np.array(self._labels, dtype=np.int64)

    def class_names(self) -> list[str] | None:
        return NAMES

    def _identity(self) -> list[str]:
        return [self.name]


@torch.no_grad()
def library_guesses(folder: Path, kind: str) -> list[int]:
    """Classes by the whole model of `transformers`, prompts averaged; CLIP's patches by hand."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pixels = torch.stack([to_tensor(picture(n)) for n in range(COUNT)])
    words = []
    for name in NAMES:
        prompts = [template.format(name.replace("_", " ")) for template in TEMPLATES]
        tokens = tokenizer(prompts, padding="max_length", max_length=10, return_tensors="pt")
        embedded = model.get_text_features(**tokens).pooler_output
        words.append(F.normalize(embedded, dim=-1).mean(dim=0))
    if kind == "siglip":
        images = model.get_image_features((pixels - 0.5) / 0.5).pooler_output
    else:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        vision = model.vision_model
        patches = vision((pixels - mean) / std).last_hidden_state[:, 1:]
        images = model.visual_projection(vision.post_layernorm(patches.mean(dim=1)))
    scores = F.normalize(images, dim=-1) @ F.normalize(torch.stack(words), dim=-1).T
    guesses: list[int] = scores.argmax(dim=1).tolist()
    return guesses


Build = Callable[[Path], SemHiTok]


@pytest.fixture
def build(tiny_config: TokenizerConfig) -> Build:
    """A tokenizer of random weights on the teacher in a folder, with latents as its codes."""

    def make(folder: Path) -> SemHiTok:
        torch.manual_seed(0)
        teacher = Teacher.from_pretrained(folder)
        semantic = dataclasses.replace(
            tiny_config.semantic, teacher=teacher.config, code_dim=teacher.dim
        )
        config = dataclasses.replace(tiny_config, semantic=semantic, patch_size=16, image_size=64)
        model = SemHiTok(config, teacher).eval()
        pixels = torch.stack([to_tensor(picture(n)) for n in range(8)])
        with torch.no_grad():
            assert model.semantic.projection is not None
            features = model.semantic.trunk_features(pixels, (4, 4))
            model.semantic.projection.fit(features.flatten(0, 2))
            latents = model.semantic.latents(pixels, (4, 4)).flatten(0, 2)
            model.semantic.codebook.codes.copy_(latents[::8])
        return model

    return make


@pytest.fixture(params=["siglip", "clip"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_accuracy_is_that_of_the_librarys_own_model(
    kind: str, contrastive: Callable[[str], Path], build: Build
) -> None:
    folder = contrastive(kind)
    labels = library_guesses(folder, kind)
    assert len(set(labels)) > 2
    wrong = [(label + 1) % len(NAMES) if n < 6 else label for n, label in enumerate(labels)]
    for given, accuracy in ((labels, 1.0), (wrong, 0.75)):
        figures = zero_shot(build(folder), Classes(given), 64, templates=TEMPLATES, batch_size=5)
        assert figures["teacher"] == accuracy
        assert 0 <= figures["semantic_features"] <= 1
        assert figures["retention"] == figures["semantic_features"] / accuracy
    assert json.loads(json.dumps(figures)) == figures
    protocol = figures["protocol"]
    assert (protocol["pictures"], protocol["failed"], protocol["classes"]) == (COUNT, 1, 4)
    assert protocol["templates"] == TEMPLATES and protocol["teacher"] == str(folder)
    assert ("mean of the patches" if kind == "clip" else "own attention-pooling") in (
        protocol["picture_embedding"]
    )


def test_features_that_are_the_teachers_lose_nothing(
    kind: str,
    contrastive: Callable[[str], Path],
    build: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = contrastive(kind)
    source, model = Classes([n % 4 for n in range(COUNT)]), build(folder)
    trunk, seen = model.semantic.trunk_features, list[Tensor]()

    def look(images: Tensor, grid: tuple[int, int]) -> Tensor:
        seen.append(trunk(images, grid))
        return seen[-1]

    monkeypatch.setattr(model.semantic, "trunk_features", look)
    monkeypatch.setattr(model.semantic, "features", lambda codes: seen[-1])
    same = zero_shot(model, source, 64, templates=TEMPLATES)
    assert same["teacher"] == same["semantic_features"] > 0 and same["retention"] == 1
    monkeypatch.setattr(model.semantic, "features", lambda codes: torch.zeros_like(seen[-1]))
    none = zero_shot(model, source, 64, templates=TEMPLATES)
    assert none["teacher"] == same["teacher"]
    assert none["semantic_features"] == 0.25  # one guess for all


def test_the_quantized_features_are_those_of_the_ids(
    contrastive: Callable[[str], Path], build: Build
) -> None:
    folder = contrastive("siglip")
    model = build(folder)
    pixels = torch.stack([to_tensor(picture(n)) for n in range(COUNT)])
    tower = TextTower.load(model.config.semantic.teacher)
    embedded = tower.embed_features(model.semantic_features(model.encode(pixels)))
    guesses: list[int] = (embedded @ embed_classes(tower, NAMES).T).argmax(dim=1).tolist()
    assert zero_shot(model, Classes(guesses), 64)["semantic_features"] == 1.0
    some = zero_shot(model, Classes(guesses), 64, max_images=7)
    assert some["semantic_features"] == 1.0 and some["protocol"]["pictures"] == 7


def test_words_are_averaged_over_templates(contrastive: Callable[[str], Path]) -> None:
    tower = TextTower.load(Teacher.from_pretrained(contrastive("clip")).config)
    one, two, both = (
        embed_classes(tower, ["sea"], t) for t in (["a {}."], ["{}"], ["a {}.", "{}"])
    )
    assert torch.allclose(both, F.normalize(one + two, dim=-1), atol=1e-6)
    assert not torch.allclose(one, two, atol=1e-3)
    spaced = embed_classes(tower, ["blue house"])
    assert torch.equal(embed_classes(tower, ["blue_house"]), spaced)


def test_what_cannot_be_measured_is_refused(
    tiny_tokenizer: SemHiTok, tmp_path: Path, contrastive: Callable[[str], Path], build: Build
) -> None:
    with pytest.raises(RangeError, match="is a mobilenet_v2, which has no text tower"):
        zero_shot(tiny_tokenizer, Classes([0]), 32)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="has no labels"):
        check_zero_shot(FolderSource(tmp_path), [])
    nameless = Classes([0])
    nameless.class_names = lambda: None
    with pytest.raises(DataError, match="classes: has no class names; zero-shot accuracy needs"):
        check_zero_shot(nameless, [])
    with pytest.raises(DataError, match="classes: not one of 1 pictures can be read"):
        zero_shot(build(contrastive("clip")), Classes([]), 64)
