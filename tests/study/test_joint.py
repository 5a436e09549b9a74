"""Joint training: ids and codes agree, averages learn, and the trunk hears the pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from semhitok.model import SemHiTok
from semhitok.study.joint import (
    HierarchicalQuantizer,
    JointSemHiTok,
    JointTrainer,
    Quantizer,
    SharedQuantizer,
)
from semhitok.study.measure import Exam
from semhitok.study.rows import row_named
from semhitok.study.runner import Study
from semhitok.study.scales import Scale
from semhitok.train.run import load_teacher, tokenizer_config
from semhitok.train.world import World

C, D = 6, 3


def latents(count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    semantic = torch.nn.functional.normalize(torch.randn(count, C, generator=generator), dim=-1)
    return semantic, torch.randn(count, D, generator=generator)


def quantizer(levels: tuple[int, ...], mixed: bool) -> SharedQuantizer:
    made = SharedQuantizer(C, D, levels, mixed=mixed, decay=0.5)
    made.begin(*latents(), torch.Generator().manual_seed(0))
    return made.requires_grad_(False)


@pytest.mark.parametrize("levels, mixed", [((24,), False), ((24,), True), ((6, 4), True)])
def test_ids_are_in_range_and_name_the_codes(levels: tuple[int, ...], mixed: bool) -> None:
    made, (semantic, pixel) = quantizer(levels, mixed), latents()
    tokens = made(semantic, pixel)
    assert tokens.ids.equal(made.search(semantic, pixel))
    assert 0 <= int(tokens.ids.min()) and int(tokens.ids.max()) < 24
    looked_up = made.lookup(tokens.ids)
    torch.testing.assert_close(tokens.semantic, looked_up[0])
    torch.testing.assert_close(tokens.pixel, looked_up[1])


def test_one_level_is_the_row_whose_two_distances_add_up_to_the_least() -> None:
    made, (semantic, pixel) = quantizer((24,), mixed=False), latents()
    codes = made.lookup(torch.arange(24))
    distance = D * torch.cdist(semantic, codes[0]).square() + torch.cdist(pixel, codes[1]).square()
    assert made.search(semantic, pixel).equal(distance.argmin(dim=1))


def test_the_second_level_codes_what_the_first_leaves() -> None:
    one, two, (semantic, pixel) = quantizer((6,), True), quantizer((6, 4), True), latents()
    errors = []
    for made in (one, two):
        found = made.lookup(made.search(semantic, pixel))
        errors.append(float((found[1] - pixel).square().mean()))
    assert errors[1] < 0.9 * errors[0]


def test_gradients_pass_to_both_latents_and_codes_move_by_averages() -> None:
    made, (semantic, pixel) = quantizer((24,), mixed=False), latents()
    semantic.requires_grad_(), pixel.requires_grad_()
    tokens = made(semantic, pixel)
    (tokens.semantic.sum() + tokens.pixel.sum()).backward()
    assert semantic.grad is not None and pixel.grad is not None
    assert torch.allclose(pixel.grad, torch.ones_like(pixel))
    before = made.tables[0].clone()
    made.learn(semantic.detach(), pixel.detach() + 1, tokens.ids, 0, True, World())
    moved = (made.tables[0] - before)[:, C:].mean()
    assert 0 < float(moved) < 1


@pytest.fixture
def make(exam: Exam, smoke: Scale, tmp_path: Path) -> Callable[[str], JointTrainer]:
    def build(name: str) -> JointTrainer:
        row = row_named(name)
        recipe = Study(exam.photos, exam, smoke, tmp_path, tmp_path / "runs").recipe(row, 0)
        teacher = load_teacher(recipe)
        model = row.build(recipe)(tokenizer_config(recipe, teacher), teacher)
        trainer = JointTrainer(model.eval(), teacher, recipe, World())
        generator = torch.Generator().manual_seed(0)
        batches = (torch.rand(8, 3, 64, 64, generator=generator) for _ in range(99))
        trainer.begin(batches)
        return trainer

    return build


@pytest.mark.parametrize("name", ["joint", "residual"])
def test_a_joint_step_moves_trunk_decoders_and_codes(
    name: str, make: Callable[[str], JointTrainer]
) -> None:
    trainer = make(name)
    model = trainer.model
    assert isinstance(model, JointSemHiTok)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    images = torch.rand(8, 3, 64, 64)
    for step in range(2):
        trainer.step(images, step)
    after = model.state_dict()
    changed = {n for n, t in after.items() if not t.equal(before[n])}
    for part in ("semantic.trunk.", "pixel.encoder.", "pixel.decoder.", "semantic.decoder."):
        assert any(n.startswith(part) for n in changed), part
    assert any("codes" in n or "level" in n for n in changed)


def test_pixels_alone_reach_the_trunk(make: Callable[[str], JointTrainer]) -> None:
    """What staging forbids: with no semantic loss the trunk's gradient is not zero."""
    trainer = make("joint")
    trainer.weights = {"l1": 1.0}
    # The decoder reads nothing of the semantic vector at first.
    torch.nn.init.normal_(trainer.painter.linear.weight, std=0.1)
    before = [p.clone() for p in trainer.trained["trunk"].parameters()]
    trainer.step(torch.rand(8, 3, 64, 64), 60)
    moved = [
        not p.equal(q) for p, q in zip(trainer.trained["trunk"].parameters(), before, strict=True)
    ]
    assert any(moved)


def test_a_joint_tokenizer_speaks_as_ours_does(make: Callable[[str], JointTrainer]) -> None:
    for name in ("joint", "hybrid"):
        model = make(name).model
        images = torch.rand(2, 3, 64, 64)
        ids = model.encode(images)
        assert ids.shape == (2, 8, 8) and int(ids.max()) < model.vocab_size
        assert model.decode(ids).shape == images.shape
        vectors = model.features(ids)
        assert vectors.shape[-1] == model.config.semantic.code_dim + model.config.pixel.code_dim
        assert model.semantic_features(ids).shape[-1] == model.config.semantic.teacher.dim


def test_the_hierarchy_is_the_tokenizers_own(make: Callable[[str], JointTrainer]) -> None:
    model = make("joint").model
    assert isinstance(model, JointSemHiTok)
    made: Quantizer = model.quantizer
    assert isinstance(made, HierarchicalQuantizer)
    images = torch.rand(2, 3, 64, 64)
    assert model.encode(images).equal(SemHiTok.encode(model, images))
