"""Which parts learn from which loss, stage by stage; micro-batches; how codes start and revive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from semhitok.errors import DataError, RecipeError
from semhitok.model import SemHiTok, Teacher
from semhitok.model.codebook import FreeOffsets, HierarchicalCodebook, LowRankOffsets
from semhitok.train.enhance import EnhanceTrainer
from semhitok.train.losses import LPIPSLoss, semantic_losses
from semhitok.train.pixel import PixelTrainer, SubcodeUsage
from semhitok.train.recipe import Recipe
from semhitok.train.run import TRAINERS
from semhitok.train.semantic import SemanticTrainer
from semhitok.train.stage import round_to_half, usage, weighted
from semhitok.train.world import World

Build = Callable[..., tuple[SemHiTok, Teacher, Recipe]]
Batches = Callable[[], Iterator[Tensor]]

PARTS = {
    "pixel.codebook.base": "base",
    "pixel.codebook.offsets": "offsets",
    "pixel.encoder": "encoder",
    "pixel.decoder": "decoder",
    "pixel.enhance": "enhance",
    "semantic.trunk": "trunk",
    "semantic.projection": "projection",
    "semantic.decoder": "semantic decoder",
    "semantic.codebook": "semantic codebook",
}


def with_gradient(model: SemHiTok) -> set[str]:
    """Parts of the model that have a gradient, be it only in one place."""
    return {
        next(part for prefix, part in PARTS.items() if name.startswith(prefix))
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
    }


def learners(
    trainer: Any, model: SemHiTok, teacher: Teacher, batches: Iterator[Tensor]
) -> tuple[set[str], set[str]]:
    """Parts with a gradient as the stage's parts are updated, and as the critic is."""
    found: dict[str, set[str]] = {"stage": set(), "critic": set()}
    critic = trainer.losses.critic if hasattr(trainer, "losses") else None

    def noting(updater: Any, who: str) -> None:
        update = updater.update

        def noted(step: int) -> Tensor:
            found[who] = with_gradient(model)
            if critic is not None and any(
                p.grad is not None and bool(p.grad.abs().sum() > 0)
                for p in critic.network.parameters()
            ):
                found[who].add("critic")
            norm: Tensor = update(step)
            return norm

        updater.update = noted

    trainer.begin(batches)
    noting(trainer.updater, "stage")
    if critic is not None:
        noting(critic.updater, "critic")
    trainer.step(next(batches), 0)
    assert all(p.grad is None for p in teacher.parameters())
    return found["stage"], found["critic"]


# -- stage 1 -----------------------------------------------------------------------------------

MLP = ("model.semantic.projection=mlp", "model.semantic.code_dim=8")
FINETUNED = ("model.semantic.trunk=finetuned",)
STUDENT = (
    "model.semantic.trunk=student",
    "model.semantic.student={transformer: {width: 16, depth: 1, heads: 2}}",
)


@pytest.mark.parametrize("loss", ["cosine", "feature_l1"])
@pytest.mark.parametrize(
    "more, expected",
    [
        ((), set()),
        (MLP, {"projection"}),
        (FINETUNED, {"trunk"}),
        ((*FINETUNED, *MLP), {"trunk", "projection"}),
        ((*STUDENT, *MLP), {"trunk", "projection"}),
    ],
    ids=["frozen", "mlp", "finetuned", "finetuned mlp", "student mlp"],
)
def test_who_learns_from_the_teachers_features(
    build: Build, batches: Batches, more: tuple[str, ...], expected: set[str], loss: str
) -> None:
    model, teacher, recipe = build(*more, f"semantic.weights={{{loss}: 1.0}}")
    trainer = SemanticTrainer(model, teacher, recipe, World())
    found, _ = learners(trainer, model, teacher, batches())
    assert found == {"semantic decoder"} | expected


@pytest.mark.parametrize(
    "more, expected",
    [(MLP, {"projection"}), (FINETUNED, {"trunk"}), ((*STUDENT, *MLP), {"trunk", "projection"})],
    ids=["mlp", "finetuned", "student mlp"],
)
def test_who_learns_from_semantic_commitment(
    build: Build, batches: Batches, more: tuple[str, ...], expected: set[str]
) -> None:
    model, teacher, recipe = build(*more, "semantic.weights={commitment: 1.0}")
    trainer = SemanticTrainer(model, teacher, recipe, World())
    assert learners(trainer, model, teacher, batches())[0] == expected


def test_a_trunk_that_learns_is_held_to_the_teacher(build: Build, batches: Batches) -> None:
    model, teacher, recipe = build(*STUDENT, *MLP)
    trainer, stream = SemanticTrainer(model, teacher, recipe, World()), batches()
    trainer.begin(stream)
    images, branch = next(stream), model.semantic
    assert branch.decoder is not None
    with torch.no_grad():
        predicted = branch.decoder(branch.codebook(branch.latents(images, (4, 4))).quantized)
        expected = semantic_losses(predicted, branch.decoder.standardize(teacher(images, (4, 4))))
    found = trainer.step(images, 0)
    for name, value in expected.items():
        assert found[f"loss/{name}"].item() == pytest.approx(value.item(), rel=1e-4)


def test_semantic_codes_move_by_averages_and_stay_unit(build: Build, batches: Batches) -> None:
    model, teacher, recipe = build("semantic.restart_every=100")
    trainer, stream = SemanticTrainer(model, teacher, recipe, World()), batches()
    trainer.begin(stream)
    codes = model.semantic.codebook.codes
    before = codes.clone()
    assert torch.equal(trainer.kmeans_codes, before)
    trainer.step(next(stream), 0)
    assert not torch.equal(codes, before)
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(16))
    assert torch.equal(trainer.kmeans_codes, before)


def test_stage_one_starts_from_standardised_targets(build: Build, batches: Batches) -> None:
    model, teacher, recipe = build("semantic.buffer_rows=256")
    SemanticTrainer(model, teacher, recipe, World()).begin(batches())
    stream = batches()
    pictures = torch.cat([next(stream) for _ in range(4)])
    assert model.semantic.decoder is not None
    targets = model.semantic.decoder.standardize(teacher(pictures, (4, 4))).flatten(0, 2)
    torch.testing.assert_close(targets.mean(dim=0), torch.zeros(32), atol=1e-4, rtol=0)
    spread = targets.std(dim=0)
    torch.testing.assert_close(spread[spread > 0.5], torch.ones(int((spread > 0.5).sum())))


def test_too_small_a_buffer_is_refused(build: Build, batches: Batches) -> None:
    model, teacher, recipe = build("semantic.buffer_rows=15")
    trainer = SemanticTrainer(model, teacher, recipe, World())
    with pytest.raises(DataError, match="semantic.buffer_rows is 15; 16 codes need as many"):
        trainer.begin(batches())


# -- stages 2 and 3 ----------------------------------------------------------------------------


def weight(stage: str, loss: str) -> tuple[str, ...]:
    """One loss alone; the critic is heard, and learns, from the first step."""
    return (
        f"{stage}.weights={{{loss}: 1.0}}",
        f"{stage}.adversarial.start=0",
        f"{stage}.adversarial.warmup=0",
    )


@pytest.mark.parametrize("rank", ["2", "null"], ids=["low-rank", "free"])
@pytest.mark.parametrize(
    "loss, expected",
    [
        ("l1", {"encoder", "decoder"}),
        ("mse", {"encoder", "decoder"}),
        ("perceptual", {"encoder", "decoder"}),
        ("adversarial", {"encoder", "decoder"}),
        ("commitment", {"encoder"}),
        ("codebook", {"base", "offsets"}),
    ],
)
def test_who_learns_from_each_loss_of_stage_two(
    build: Build, batches: Batches, loss: str, expected: set[str], rank: str
) -> None:
    model, teacher, recipe = build(*weight("pixel", loss), f"model.pixel.offset_rank={rank}")
    trainer = PixelTrainer(model, teacher, recipe, World())
    found, critics = learners(trainer, model, teacher, batches())
    assert found == expected
    assert critics == {"critic"}


@pytest.mark.parametrize("kind", ["patch", "features"])
@pytest.mark.parametrize("loss", ["l1", "mse", "perceptual", "adversarial"])
def test_only_the_enhance_decoder_learns_in_stage_three(
    build: Build, batches: Batches, loss: str, kind: str
) -> None:
    adversarial = (f"enhance.adversarial.kind={kind}", "enhance.adversarial.layers=[0, 2]")
    model, teacher, recipe = build(*weight("enhance", loss), *adversarial)
    trainer = EnhanceTrainer(model, teacher, recipe, World())
    found, critics = learners(trainer, model, teacher, batches())
    assert found == {"enhance"}
    assert critics == {"critic"}


@pytest.mark.shared
def test_lpips_takes_the_teachers_place(build: Build, batches: Batches, shared: Path) -> None:
    lpips = f"enhance.perceptual={{lpips: {shared / 'judges'}}}"
    model, teacher, recipe = build(*weight("enhance", "perceptual"), lpips)
    trainer = EnhanceTrainer(model, teacher, recipe, World())
    assert isinstance(trainer.losses.perceptual, LPIPSLoss)
    assert learners(trainer, model, teacher, batches())[0] == {"enhance"}


def test_the_critic_is_heard_from_its_start_and_learns_before(
    build: Build, batches: Batches
) -> None:
    model, teacher, recipe = build()  # start 2, warmup 1
    trainer, stream = PixelTrainer(model, teacher, recipe, World()), batches()
    trainer.begin(stream)
    logged = [trainer.step(next(stream), step) for step in range(3)]
    assert ["loss/adversarial" in values for values in logged] == [False, False, True]
    assert ["critic/loss" in values for values in logged] == [False, True, True]


def test_enhance_decoder_starts_from_the_stage_two_decoder(
    build: Build, batches: Batches, images: Tensor
) -> None:
    model, teacher, recipe = build()
    with torch.no_grad():
        for parameter in model.pixel.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    trainer = EnhanceTrainer(model, teacher, recipe, World())
    before = model.decode(model.encode(images), decoder="pixel")
    trainer.begin(batches())
    after = model.decode(model.encode(images), decoder="enhance")
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", ["semantic", "pixel", "enhance"])
def test_each_stage_lowers_its_loss_on_one_batch(
    build: Build, batches: Batches, stage: str
) -> None:
    model, teacher, recipe = build(
        "enhance.noise=0",
        "enhance.weights={mse: 1.0}",
        "pixel.weights={mse: 1.0, commitment: 0.25, codebook: 1.0}",
        "pixel.restart_every=100",
        *(f"{name}.phases=[{{steps: 10, crop: 32, batch_size: 4}}]" for name in TRAINERS),
    )
    trainer, stream = TRAINERS[stage](model, teacher, recipe, World()), batches()
    trainer.begin(stream)
    images = next(stream)
    name = "loss/total" if stage == "semantic" else "loss/mse"
    losses = [float(trainer.step(images, step)[name]) for step in range(10)]
    assert losses[-1] < 0.95 * losses[0]


# -- micro-batches -----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["semantic", "pixel", "enhance"])
def test_two_micro_batches_are_one_batch(build: Build, batches: Batches, stage: str) -> None:
    def after_three_steps(accumulate: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # Without what draws anew for each micro-batch: rolled features and disturbed codes.
        model, teacher, recipe = build(
            f"accumulate={accumulate}",
            "pixel.adversarial=null",
            "pixel.perceptual=null",
            "pixel.weights={l1: 1.0, mse: 1.0, commitment: 0.25, codebook: 1.0}",
            "enhance.adversarial=null",
            "enhance.perceptual=null",
            "enhance.weights={l1: 1.0, mse: 1.0}",
            "enhance.noise=0",
        )
        trainer = TRAINERS[stage](model, teacher, recipe, World())
        stream = batches()
        trainer.begin(stream)
        before = {n: t.clone() for n, t in model.state_dict().items()}
        for step in range(3):
            trainer.step(next(stream), step)
        return before, model.state_dict()

    before, one = after_three_steps(1)
    _, two = after_three_steps(2)
    assert max(float((one[n] - before[n]).abs().max()) for n in one) > 1e-3
    for name, tensor in one.items():
        torch.testing.assert_close(
            two[name], tensor, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


# -- sub-codes: how they start, learn by means, and revive -------------------------------------


def test_all_sub_codebooks_start_at_the_k_means_codes(build: Build, batches: Batches) -> None:
    tables = {}
    for learning in ("gradient", "ema"):
        model, teacher, recipe = build(f"pixel.learning={learning}", "model.pixel.offset_rank=null")
        PixelTrainer(model, teacher, recipe, World()).begin(batches())
        tables[learning] = model.pixel.codebook.table().detach()
    assert torch.equal(tables["ema"], tables["gradient"])
    assert torch.equal(tables["ema"], tables["ema"][:1].expand_as(tables["ema"]))


def test_sub_codes_learn_as_means_of_their_latents(build: Build, batches: Batches) -> None:
    model, teacher, recipe = build(
        "pixel.learning=ema", "model.pixel.offset_rank=null", "pixel.restart_every=100"
    )
    trainer, stream = PixelTrainer(model, teacher, recipe, World()), batches()
    trainer.begin(stream)
    codebook = model.pixel.codebook
    before = codebook.table().detach().clone()
    images = next(stream)
    out = model(images)
    trainer.step(images, 0)
    after = codebook.table().detach()
    moved = (after - before).norm(dim=-1) > 1e-5  # beyond the rounding of sum over count
    chosen = torch.zeros_like(moved)
    chosen[out.semantic.flatten(), out.pixel.indices.flatten()] = True
    assert bool((moved <= chosen).all()) and bool(moved.any())
    parent, place = (int(x) for x in moved.nonzero()[0])
    mine = (out.semantic == parent) & (out.pixel.indices == place)
    latents, decay = out.latents.detach()[mine], recipe.pixel.codebook_decay
    sums = decay * before[parent, place] + (1 - decay) * latents.sum(dim=0)
    expected = sums / (decay + (1 - decay) * len(latents))
    torch.testing.assert_close(after[parent, place], expected, rtol=1e-4, atol=1e-5)
    for step in range(1, 4):
        trainer.step(next(stream), step)
    assert bool(codebook.table().isfinite().all())


def test_low_rank_offsets_cannot_learn_by_means(build: Build, make_recipe: Any) -> None:
    with pytest.raises(RecipeError, match="offset_rank"):
        build("pixel.learning=ema")
    model, teacher, _ = build()
    with pytest.raises(RecipeError, match="low-rank offsets cannot; set pixel.offset_rank to null"):
        PixelTrainer(model, teacher, make_recipe("pixel.learning=ema"), World())


def seen(parents: list[int], indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    latents = 5 + torch.randn(len(parents), 3, generator=torch.Generator().manual_seed(0))
    return latents, torch.tensor(parents), torch.tensor(indices)


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_a_dead_sub_code_moves_to_a_latent_of_its_parent(
    make_recipe: Callable[..., Recipe], learning: str
) -> None:
    config = make_recipe(f"pixel.learning={learning}", "pixel.restart_below=0.5").pixel
    torch.manual_seed(0)
    codebook = HierarchicalCodebook(4, 3, FreeOffsets(5, 4, 3))
    counts = SubcodeUsage(codebook, config, World())
    # Parent 1 uses codes 0, 1 and 3 of four, parent 2 all of its codes, the others are not seen.
    latents, parents, indices = seen([1] * 6 + [2] * 4, [0, 0, 1, 1, 3, 3, 0, 1, 2, 3])
    counts.update(latents, parents, indices)
    before = codebook.table().detach().clone()
    assert counts.restart(latents, parents, torch.Generator().manual_seed(1)) == 1
    after = codebook.table().detach()
    assert (after != before).any(dim=-1).nonzero().tolist() == [[1, 2]]
    distances = torch.cdist(after[1, 2][None], latents[:6])
    assert float(distances.min()) < 1e-5
    # It counts as an average one: it is not dead again at once, nor thrown back by its mean.
    assert counts.counts[1, 2] == pytest.approx(counts.counts[1].sum().item() / 5, rel=0.5)
    assert counts.restart(latents, parents, torch.Generator().manual_seed(1)) == 0
    counts.update(latents[:1] * 0 + after[1, 2], torch.tensor([1]), torch.tensor([2]))
    torch.testing.assert_close(codebook.table()[1, 2].detach(), after[1, 2], rtol=1e-4, atol=1e-4)


def test_a_base_code_that_no_parent_uses_moves(make_recipe: Callable[..., Recipe]) -> None:
    config = make_recipe("pixel.restart_below=0.5").pixel
    torch.manual_seed(0)
    codebook = HierarchicalCodebook(4, 3, LowRankOffsets(5, 4, 3, 2))
    torch.nn.init.normal_(codebook.offsets.tables)
    counts = SubcodeUsage(codebook, config, World())
    # Code 3 is dead in parent 1 alone, code 2 in all of them.
    latents, parents, indices = seen([1] * 6 + [2] * 6, [0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 3, 3])
    counts.update(latents, parents, indices)
    assert counts.dead_base().tolist() == [False, False, True, False]
    before = codebook.base.detach().clone()
    assert counts.restart(latents, parents, torch.Generator().manual_seed(1)) == 1
    assert (codebook.base != before).any(dim=-1).tolist() == [False, False, True, False]
    own = codebook.table().detach()[parents, 2]
    assert float((own - latents).norm(dim=-1).min()) < 1e-5
    assert not counts.dead_base().any()


def test_typical_vectors_are_the_means_of_what_was_chosen(build: Build, batches: Batches) -> None:
    model, teacher, recipe = build()
    trainer, codebook = PixelTrainer(model, teacher, recipe, World()), model.pixel.codebook
    trainer.begin(batches())
    trainer.usage.counts.zero_()
    trainer.usage.counts[3, [1, 5]] = torch.tensor([1.0, 3.0])
    trainer.usage.counts[4, 2] = 4.0
    trainer.usage.write_typical()
    codes = codebook.table().detach()
    third = (codes[3, 1] + 3 * codes[3, 5]) / 4
    torch.testing.assert_close(codebook.typical[3], third)
    torch.testing.assert_close(codebook.typical[4], codes[4, 2])
    torch.testing.assert_close(codebook.typical[0], (third + codes[4, 2]) / 2)  # never seen


def test_nothing_revives_in_the_last_tenth(build: Build, batches: Batches) -> None:
    model, teacher, recipe = build(
        "semantic.phases.0.steps=10",
        "pixel.phases=[{steps: 10, crop: 32, batch_size: 4}]",
        "semantic.restart_every=1",
        "pixel.restart_every=1",
        "semantic.restart_below=0.99",
        "pixel.restart_below=0.99",
    )
    for trainer_class, name in ((SemanticTrainer, "semantic"), (PixelTrainer, "pixel")):
        trainer: Any = trainer_class(model, teacher, recipe, World())
        stream = batches()
        trainer.begin(stream)
        restarted = [
            float(trainer.step(next(stream), step)[f"{name}/restarted"]) for step in (0, 8, 9)
        ]
        assert restarted[0] > 0 and restarted[1] > 0 and restarted[2] == 0


# -- what stages share -------------------------------------------------------------------------


def test_a_weight_that_names_no_loss_is_refused() -> None:
    losses = {"l1": torch.tensor(2.0), "mse": torch.tensor(3.0)}
    assert float(weighted(losses, {"l1": 0.5, "mse": 2.0})) == 7.0
    with pytest.raises(RecipeError, match="weights names 'l2'; did you mean 'l1'"):
        weighted(losses, {"l2": 1.0})


def test_usage_and_perplexity() -> None:
    found = usage("pixel", torch.tensor([0, 0, 2, 2]), 4)
    assert float(found["pixel/usage"]) == 0.5
    assert float(found["pixel/perplexity"]) == pytest.approx(2.0)


def test_rounded_weights_fit_float16() -> None:
    layer = torch.nn.Linear(5, 5)
    round_to_half(layer)
    assert torch.equal(layer.weight, layer.weight.half().float())
