"""Text tower and head against `transformers` itself, on small random models saved here."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from semhitok.errors import FormatError, NotFoundError, RangeError
from semhitok.model.teacher import Teacher, pack
from semhitok.model.text_tower import TextTower, check_text_tower

TEXTS = ["a photo of a red fish .", "a fish .", "a photo of the large blue house in a red sea ."]
PIXELS = torch.rand(3, 3, 64, 48, generator=torch.Generator().manual_seed(1))
GRID = (4, 3)


@pytest.fixture(params=["clip", "siglip", "siglip2"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, contrastive: Callable[[str], Path]) -> Path:
    return contrastive(kind)


def library_model(folder: Path) -> Any:
    return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def pooled(output: Any) -> Tensor:
    return F.normalize(output.pooler_output, dim=-1)


@torch.no_grad()
def test_texts_are_embedded_as_the_library_does(folder: Path, kind: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = {"clip": True}.get(kind, "max_length")
    tokens = tokenizer(TEXTS, padding=padding, truncation=True, max_length=10, return_tensors="pt")
    assert tokens["input_ids"].shape == (3, 10)
    expected = pooled(library_model(folder).get_text_features(**tokens))
    tower = TextTower.load(Teacher.from_pretrained(folder).config)
    found = tower.embed_texts(TEXTS)
    assert torch.allclose(found, expected, atol=1e-6)
    assert (found[0] - found[1]).abs().max() > 1e-2
    assert torch.allclose(tower.embed_texts(TEXTS[1:2]), found[1:2], atol=1e-6)


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
@torch.no_grad()
def test_siglips_head_gives_the_librarys_picture(
    name: str, contrastive: Callable[[str], Path]
) -> None:
    folder = contrastive(name)
    inputs: dict[str, Any] = {"pixel_values": (PIXELS - 0.5) / 0.5}
    if name == "siglip":
        inputs["interpolate_pos_encoding"] = True
    else:
        inputs = pack(inputs["pixel_values"], GRID)
    expected = pooled(library_model(folder).get_image_features(**inputs))
    teacher = Teacher.from_pretrained(folder)
    found = TextTower.load(teacher.config).embed_features(teacher(PIXELS, GRID))
    assert torch.allclose(found, expected, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3


@torch.no_grad()
def test_clip_pools_its_patches_by_their_mean(contrastive: Callable[[str], Path]) -> None:
    folder = contrastive("clip")
    teacher = Teacher.from_pretrained(folder)
    tower, model = TextTower.load(teacher.config), library_model(folder)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (teacher.config.mean, teacher.config.std))
    output = model.vision_model((PIXELS - mean) / std, interpolate_pos_encoding=True)
    assert "class token" in tower.pooling
    tokens = output.last_hidden_state
    expected = model.visual_projection(model.vision_model.post_layernorm(tokens[:, 1:].mean(dim=1)))
    found = tower.embed_features(teacher(PIXELS, GRID))
    assert torch.allclose(found, F.normalize(expected, dim=-1), atol=1e-5)
    # Its own class token through the same head is what the library gives.
    own = pooled(model.get_image_features((PIXELS - mean) / std, interpolate_pos_encoding=True))
    assert torch.allclose(tower.embed_features(tokens[:, :1, None]), own, atol=1e-5)


def test_a_tower_is_frozen_and_without_its_vision_trunk(folder: Path) -> None:
    tower = TextTower.load(Teacher.from_pretrained(folder).config)
    assert not any(p.requires_grad for p in tower.parameters())
    assert not any(module.training for module in tower.modules())
    assert not any("vision_model.encoder" in name for name in tower.state_dict())


def test_teachers_without_text_tower_are_refused(folder: Path, kind: str, tmp_path: Path) -> None:
    config = Teacher.from_pretrained(folder).config
    vit = dataclasses.replace(config, architecture={"model_type": "vit"})
    with pytest.raises(RangeError, match="is a vit, which has no text tower; .*: clip, siglip, "):
        check_text_tower(vit)
    with pytest.raises(RangeError, match=r"is read at layers \[1, -1\]; its head takes \[-1\]"):
        check_text_tower(dataclasses.replace(config, layers=(1, -1)))
    raw = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw["vision_config"]))
    alone = dataclasses.replace(config, source=str(tmp_path))
    with pytest.raises(NotFoundError, match="is a vision tower alone; .* needs the whole model"):
        check_text_tower(alone)
    with pytest.raises(NotFoundError, match="no teacher '.*nowhere': not a folder"):
        TextTower.load(dataclasses.replace(config, source=str(tmp_path / "nowhere")))


def copy_without(folder: Path, copy: Path, part: str) -> Path:
    """A copy that lacks the weights whose names contain `part`."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if part not in name}
    assert len(kept) < len(weights)
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_incomplete_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    config = Teacher.from_pretrained(folder).config
    copy = copy_without(folder, tmp_path / "weights", "text_model.final_layer_norm")
    with pytest.raises(FormatError, match="lacks 2 of the weights that its text tower and head ne"):
        TextTower.load(dataclasses.replace(config, source=str(copy)))
    copy = shutil.copytree(folder, tmp_path / "tokenizer")
    for file in copy.glob("tokenizer*"):
        file.unlink()
    without = dataclasses.replace(config, source=str(copy))
    with pytest.raises(FormatError, match="has no tokenizer, none of tokenizer.json, vocab.json"):
        TextTower.load(without)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match="the tokenizer of teacher .* cannot be loaded") as error:
        TextTower.load(without)
    assert "\n" not in str(error.value)


def test_a_head_of_other_features_is_refused(folder: Path) -> None:
    config = dataclasses.replace(Teacher.from_pretrained(folder).config, sha256="0123")
    with pytest.raises(FormatError, match="has weights of hash .*; the config names 0123"):
        TextTower.load(config)
