"""Recipes: what is refused and how, overlays, overrides; the bundled ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel

import semhitok
from semhitok.errors import FormatError, NotFoundError, RecipeError
from semhitok.model import SemHiTok
from semhitok.train.recipe import Recipe, load_recipe
from semhitok.train.run import planned_config
from semhitok.yaml_recipes import bundled_recipes


def test_bundled_recipes_load() -> None:
    assert bundled_recipes() == ["semhitok-256", "semhitok-384", "tiny"]
    for name in bundled_recipes():
        assert load_recipe(name).name == name


@pytest.mark.parametrize("name, grid", [("semhitok-256", 16), ("semhitok-384", 24)])
def test_large_recipes_plan_the_papers_vocabulary(name: str, grid: int) -> None:
    config = planned_config(name)
    assert config.vocab_size == 196_608
    assert config.image_size // config.patch_size == grid
    assert config.semantic.teacher.stride == config.patch_size
    with torch.device("meta"):
        model = SemHiTok(config)
    assert model.pixel.enhance is not None
    assert sum(p.numel() for p in model.parameters()) > 3e8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["semhitok-256", "semhitok-384"])
def test_large_models_encode_and_decode(name: str) -> None:
    """With random weights, without a network; about four GB."""
    model = SemHiTok(planned_config(name)).eval()
    side = model.config.image_size
    ids = model.encode(torch.rand(1, 3, side, side))
    assert ids.shape == (1, side // 16, side // 16)
    assert model.decode(ids).shape == (1, 3, side, side)
    assert model.features(ids).shape[-1] == 256 + 8


def test_a_recipe_without_an_architecture_cannot_be_planned() -> None:
    with pytest.raises(RecipeError, match="tiny does not tell teacher.architecture"):
        planned_config("tiny")


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "pixel.optimizer.warmpu=3",
            r"unknown key 'pixel.optimizer.warmpu'; did you mean 'warmup'",
        ),
        ("sed=1", r"unknown key 'sed'; did you mean 'seed'"),
        ("pixel.phases.0.crops=64", r"unknown key 'pixel.phases.0.crops'; did you mean 'crop'"),
        ("enhance.adversarial.optimizer.beta=[0, 1]", r"did you mean 'betas'"),
        ("enhance.perceptual.layer=[1]", r"did you mean 'layers'"),
        ("enhance.perceptual={}", r"enhance.perceptual is {}: .*teacher's layers or the folder"),
        ("enhance.perceptual.lpips=judges/", r"either the teacher's layers or the folder of lpips"),
        ("zzzz=1", r"unknown key 'zzzz'; allowed: accumulate"),
        ("seed=many", r"recipe: seed is 'many': .*integer"),
        (
            "pixel.phases.1.crop=0",
            r"recipe: pixel.phases.1.crop is 0: .*greater than or equal to 1",
        ),
        ("semantic.ema=1.0", r"semantic.ema is 1.0"),
        ("dtype=float16", r"dtype is 'float16': .*'float32' or 'bfloat16'"),
        ("enhance.noise=2", r"enhance.noise is 2"),
        ("data=3", r"recipe: data is 3"),
        ("pixel.optimizer={}", r"recipe: pixel.optimizer.lr: Field required"),
        ("seed", r"--set 'seed' has no '='; write --set path.to.key=value"),
        ("pixel.phases.7.crop=8", r"--set pixel.phases.7.crop: '7' is no place in a list of 2"),
        ("pixel.phases.x.crop=8", r"'x' is no place in a list of 2"),
        ("pixel.phases.2={}", r"'2' is no place in a list of 2"),
        ("seed.deep=8", r"--set seed.deep: 'seed' is not a section"),
        ("seed=[1", r"--set seed: '\[1' is not a YAML value"),
    ],
)
def test_refusals_are_one_line_that_names_the_key(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe("tiny", [override])
    assert "\n" not in str(caught.value)


def test_overrides_reach_into_sections_and_lists() -> None:
    recipe = load_recipe(
        "tiny",
        [
            "seed=7",
            "pixel.phases.1.steps=11",
            "pixel.phases.0={steps: 1, crop: 8, batch_size: 2}",
            "pixel.optimizer.lr=1e-4",
            "model.pixel.num_codes=64",
            "pixel.weights.mse=0.5",
            "enhance.adversarial=null",
            "semantic.phases.0.enlarge=false",
        ],
    )
    assert recipe.seed == 7
    assert [phase.steps for phase in recipe.pixel.phases] == [1, 11]
    assert recipe.pixel.steps == 12
    assert recipe.pixel.optimizer.lr == 1e-4
    assert recipe.model["pixel"]["num_codes"] == 64
    assert recipe.pixel.weights["mse"] == 0.5 and recipe.pixel.weights["l1"] == 1.0
    assert recipe.enhance is not None and recipe.enhance.adversarial is None
    assert not recipe.semantic.phases[0].enlarge
    # The bundled recipe itself is as it was.
    assert load_recipe("tiny").seed == 0


def test_an_overlay_extends_a_recipe_key_by_key(tmp_path: Path) -> None:
    overlay = tmp_path / "wide.yaml"
    overlay.write_text("extends: tiny\nname: wide\nmodel: {pixel: {num_codes: 128}}\nseed: 3\n")
    again = tmp_path / "wider.yaml"
    again.write_text(f"extends: {overlay}\nname: wider\nenhance: null\n")
    recipe, tiny = load_recipe(str(again)), load_recipe("tiny")
    assert (recipe.name, recipe.seed, recipe.enhance) == ("wider", 3, None)
    assert recipe.model["pixel"]["num_codes"] == 128
    assert recipe.model["pixel"]["code_dim"] == tiny.model["pixel"]["code_dim"]
    assert recipe.semantic == tiny.semantic


def test_unknown_recipes_get_near_matches(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no recipe 'tinny'; did you mean 'tiny'\?"):
        load_recipe("tinny")
    with pytest.raises(NotFoundError, match="no recipe file .*none.yaml"):
        load_recipe(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("text, message", [("- 1", "holds list"), ("a: [", "not valid YAML")])
def test_files_that_are_no_recipes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(FormatError, match=message) as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        parts: list[Any] = [field.annotation, *get_args(field.annotation)]
        for part in parts:
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from sections(part)


def test_every_field_is_read_somewhere() -> None:
    root = Path(semhitok.__file__).parent
    code = "\n".join(path.read_text() for path in sorted(root.rglob("*.py")))
    fields = {name for section in sections(Recipe) for name in section.model_fields}
    assert {"crop", "betas", "restart_every", "licence"} <= fields
    unread = [n for n in sorted(fields) if not re.search(rf"\.{n}\b(?!\s*=[^=])", code)]
    # The stages' own sections are looked up by the stage's name.
    assert unread == []
