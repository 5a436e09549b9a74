"""A minute training: a recipe of three short stages, twelve pictures, and a random teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from semhitok.data.sources import FolderSource
    from semhitok.model import SemHiTok, Teacher
    from semhitok.train.recipe import Recipe
    from semhitok.train.run import Run

# The package is imported inside the fixtures, as in ../conftest.py: what an initial conftest
# imports goes unchecked in every test.

MINUTE = (
    "name=minute",
    "dtype=float32",
    "checkpoint_every=2",
    "log_every=1",
    "sample_every=3",
    "model.image_size=32",
    "model.semantic.num_codes=16",
    "model.semantic.decoder={width: 32, depth: 1, heads: 4}",
    "model.pixel.num_codes=8",
    "model.pixel.code_dim=4",
    "model.pixel.offset_rank=2",
    "model.pixel.encoder={width: 32, depth: 1, heads: 4}",
    "model.pixel.decoder={transformer: {width: 32, depth: 1, heads: 4}, stage_widths: [8],"
    " stage_depths: [1]}",
    "model.pixel.enhance={transformer: {width: 32, depth: 2, heads: 4}, stage_widths: [12],"
    " stage_depths: [1]}",
    "data={scale: [32, 48], threads: 1, cache_gb: 0.01}",
    "semantic.phases=[{steps: 5, crop: 32, batch_size: 4}]",
    "semantic.optimizer.warmup=2",
    "semantic.buffer_rows=64",
    "semantic.kmeans_iterations=2",
    "semantic.restart_every=2",
    "semantic.restart_below=0.9",
    # Two phases, so that a run also goes on in the second.
    "pixel.phases=[{steps: 3, crop: 32, batch_size: 4}, {steps: 2, crop: 40, batch_size: 4}]",
    "pixel.optimizer.warmup=2",
    "pixel.buffer_rows=128",
    "pixel.kmeans_iterations=2",
    "pixel.restart_every=2",
    "pixel.restart_below=0.9",
    "pixel.weights={l1: 1.0, mse: 1.0, perceptual: 0.1, adversarial: 0.1, commitment: 0.25,"
    " codebook: 1.0}",
    "pixel.perceptual={layers: [0, 2]}",
    "pixel.adversarial={kind: patch, width: 8, depth: 2, start: 2, warmup: 1,"
    " optimizer: {lr: 0.001, warmup: 1}}",
    "enhance.phases=[{steps: 5, crop: 32, batch_size: 4}]",
    "enhance.optimizer.warmup=2",
    "enhance.noise=0.1",
    "enhance.perceptual={layers: [0, 2]}",
    "enhance.adversarial={kind: patch, width: 8, depth: 2, start: 2, warmup: 1,"
    " optimizer: {lr: 0.001, warmup: 1}}",
)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MobileNetV2 of few channels as `transformers` saves it; its features do not fade."""
    from transformers import MobileNetV2Config, MobileNetV2Model

    folder = tmp_path_factory.mktemp("teacher") / "mobilenet"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.1))
        for name, tensor in model.state_dict().items():
            if tensor.ndim > 1:
                torch.nn.init.kaiming_normal_(tensor)
            elif name.endswith("bias"):
                torch.nn.init.normal_(tensor, std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve smooth pictures of about 48 px."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        size = (48 + 4 * (number % 3), 48 + 3 * (number % 2))
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def source(photos: Path) -> FolderSource:
    from semhitok.data.sources import FolderSource

    return FolderSource(photos)


@pytest.fixture(scope="session")
def overrides(teacher_folder: Path) -> tuple[str, ...]:
    """What makes the recipe `tiny` a minute one."""
    return (*MINUTE, f"teacher.source={teacher_folder}")


@pytest.fixture(scope="session")
def make_recipe(overrides: tuple[str, ...]) -> Callable[..., Recipe]:
    """The minute recipe, with further overrides."""

    def make(*more: str) -> Recipe:
        from semhitok.train.recipe import load_recipe

        return load_recipe("tiny", [*overrides, *more])

    return make


@pytest.fixture(scope="session")
def start_run(make_recipe: Callable[..., Recipe], source: FolderSource) -> Callable[..., Run]:
    """A run of the minute recipe in a folder, with further overrides."""

    def start(folder: Path, *more: str) -> Run:
        from semhitok.train.run import Run

        return Run(make_recipe(*more), source, folder)

    return start


@pytest.fixture(scope="session")
def straight(
    start_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Folder of a run that nothing interrupted, one for each set of overrides."""
    done: dict[tuple[str, ...], Path] = {}

    def folder(*more: str) -> Path:
        if more not in done:
            run_folder = tmp_path_factory.mktemp("straight") / "run"
            start_run(run_folder, *more).train()
            done[more] = run_folder
        return done[more]

    return folder


@pytest.fixture(scope="session")
def teacher(teacher_folder: Path) -> Teacher:
    from semhitok.model import Teacher

    return Teacher.from_pretrained(teacher_folder, output_stride=8)


@pytest.fixture
def build(make_recipe: Callable[..., Recipe]) -> Callable[..., tuple[SemHiTok, Teacher, Recipe]]:
    """Model, teacher and recipe as `Run` puts them together, without a folder."""

    def made(*more: str) -> tuple[SemHiTok, Teacher, Recipe]:
        from semhitok.model import SemHiTok
        from semhitok.train.run import load_teacher, tokenizer_config

        recipe = make_recipe(*more)
        torch.manual_seed(recipe.seed)
        loaded = load_teacher(recipe)
        return SemHiTok(tokenizer_config(recipe, loaded), loaded).eval(), loaded, recipe

    return made


@pytest.fixture
def batches() -> Callable[[], Any]:
    """Endless batches of four smooth seeded pictures of 32 px."""

    def endless() -> Any:
        generator = torch.Generator().manual_seed(1)
        while True:
            coarse = torch.rand(4, 3, 5, 5, generator=generator)
            yield torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)

    return endless


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, Tensor]]:
    """Tensors of a run's model."""

    def load(folder: Path) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        return load_file(folder / "model" / "model.safetensors")

    return load


@pytest.fixture(scope="session")
def records() -> Callable[[Path], list[dict[str, Any]]]:
    """Lines of a run's `metrics.jsonl`, without the speed, which is never the same."""

    def read(folder: Path) -> list[dict[str, Any]]:
        lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            del line["images_per_second"]
        return lines

    return read


@pytest.fixture(scope="session")
def assert_same_run(
    weights: Callable[[Path], dict[str, Tensor]],
    records: Callable[[Path], list[dict[str, Any]]],
) -> Callable[[Path, Path], None]:
    """Two runs ended in the same bits, and logged the same steps, each once."""

    def check(folder: Path, reference: Path) -> None:
        ours, theirs = weights(folder), weights(reference)
        assert ours.keys() == theirs.keys()
        assert [n for n, t in ours.items() if not torch.equal(t, theirs[n])] == []
        assert records(folder) == records(reference)
        names = {f.name for f in (folder / "samples").iterdir()}
        assert names == {f.name for f in (reference / "samples").iterdir()}
        assert not [f for f in folder.rglob(".*") if f.is_file()]

    return check
