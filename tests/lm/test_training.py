"""Stages of the multimodal model's training: who learns, and that a stopped run goes on exactly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerFast

from semhitok.errors import FormatError, RecipeError, TrainingError
from semhitok.lm import training
from semhitok.lm.conversations import Conversation
from semhitok.lm.generation import draw
from semhitok.lm.model import UnifiedModel
from semhitok.lm.prepare import PrepareJob
from semhitok.lm.processor import UnifiedProcessor
from semhitok.lm.recipe import FAMILY, LanguageRecipe, load_language_recipe
from semhitok.lm.sampling import Sampling
from semhitok.lm.sequences import Sequences
from semhitok.lm.training import LanguageRun, newest_checkpoint
from semhitok.model import SemHiTok
from semhitok.yaml_recipes import bundled_recipes, parse

STAGE: dict[str, Any] = {
    "name": "joint",
    "trains": "all",
    "data": {"drawn": 1.0, "read": 1.0},
    "steps": 6,
    "batch_size": 4,
    "micro_batch": 2,
    "length": 48,
    "optimizer": {"lr": 3e-3, "warmup": 2},
}


@pytest.fixture
def language(tmp_path: Path, make_text: Callable[..., PreTrainedTokenizerFast]) -> Path:
    """A folder with the config and text tokenizer of a tiny Qwen3, without weights."""
    text = make_text("chatml")
    config = AutoConfig.for_model(
        "qwen3", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=len(text) + 5, max_position_embeddings=256,
    )  # fmt: skip
    config.save_pretrained(tmp_path / "language")
    text.save_pretrained(tmp_path / "language")
    return tmp_path / "language"


@pytest.fixture
def processor(language: Path, tiny_tokenizer: SemHiTok) -> UnifiedProcessor:
    return UnifiedProcessor.for_language(language, tiny_tokenizer, max_side=8)


def prepared(processor: UnifiedProcessor, folder: Path, kind: str) -> Sequences:
    """Ten pictures of one id each, drawn from its name or named."""
    made = []
    for number in range(10):
        grid, name = torch.full((2, 3), 6 * number), f"dog {number}"
        asked, answer = (name, "<image>") if kind == "drawn" else ("<image>\nWhat?", name)
        messages = ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})
        made.append(Conversation(f"{kind}-{number}", messages, (grid,)))
    job = PrepareJob(processor, folder, {})
    job.claim()
    job.run(made)
    return Sequences(folder)


@pytest.fixture
def data(processor: UnifiedProcessor, tmp_path: Path) -> dict[str, Sequences]:
    return {kind: prepared(processor, tmp_path / kind, kind) for kind in ("drawn", "read")}


Start = Callable[..., LanguageRun]


@pytest.fixture
def start(
    language: Path, processor: UnifiedProcessor, data: dict[str, Sequences], tmp_path: Path
) -> Start:
    """A run of some stages in a folder; float32, so that bits can be compared."""

    def build(folder: str, *stages: dict[str, Any], **changes: Any) -> LanguageRun:
        recipe = parse(
            LanguageRecipe,
            {
                "name": "test",
                "dtype": "float32",
                "language": {"source": str(language), "weights": "random"},
                "head_width": 16,
                "checkpoint_every": 2,
                "log_every": 1,
                "stages": [{**STAGE, **stage} for stage in stages or ({},)],
                **changes,
            },
        )
        return LanguageRun(recipe, processor, data, tmp_path / folder)

    return build


@pytest.fixture
def fails_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int | None], None]]:
    """Makes the training die in its n-th micro-batch from then on; None lets it live again."""
    step = training._StageTrainer.training_step
    left: list[int | None] = [None]

    def dying(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("killed")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(training._StageTrainer, "training_step", dying)
    yield lambda n: left.__setitem__(0, n)


def figures(run: LanguageRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def equal_bits(one: UnifiedModel, other: UnifiedModel) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return set(ours) == set(theirs) and all(ours[n].equal(theirs[n]) for n in ours)


def test_what_is_learned_can_be_drawn_and_is_saved_beside_its_processor(
    start: Start,
    processor: UnifiedProcessor,
    tiny_tokenizer: SemHiTok,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = start("run", {"steps": 150, "optimizer": {"lr": 1e-2, "warmup": 5}}, log_every=25)
    model = run.train()
    assert capsys.readouterr().out == ""  # of commands that is for results
    first, last = figures(run)[0], figures(run)[-1]
    assert last["loss/image"] < 0.3 * first["loss/image"]
    assert last["loss/text"] < 0.3 * first["loss/text"]

    folder = run.folder / "model"
    again = UnifiedModel.from_pretrained(folder).attach(tiny_tokenizer).eval()
    assert equal_bits(model, again)
    saved = UnifiedProcessor.from_pretrained(folder, tiny_tokenizer)
    assert saved.identity() == processor.identity()
    prompts = [saved.prompt([{"role": "user", "content": f"dog {n}"}]) for n in (2, 7)]
    likeliest = Sampling.likeliest()
    drawn = draw(again, prompts, (2, 3), sampling=likeliest)
    hits = [(grid == 6 * n).float().mean() for n, grid in zip((2, 7), drawn, strict=True)]
    assert min(hits) > 0.6


def test_a_run_that_dies_goes_on_to_the_same_bits(
    start: Start, fails_at: Callable[[int | None], None]
) -> None:
    whole = start("whole")
    unbroken = whole.train()
    # Two micro-batches a step: in the fourth step, after the checkpoint of the second; then in the
    # last, in another process as far as anyone can see.
    broken = start("broken")
    for micro_batch in (7, 7):
        fails_at(micro_batch)
        with pytest.raises(RuntimeError, match="killed"):
            broken.train()
        broken = start("broken")
    fails_at(None)
    assert equal_bits(broken.train(), unbroken)
    assert figures(broken) == figures(whole)
    assert not list((broken.folder / "joint").glob("checkpoint-2"))  # only the last are kept


def test_a_checkpoint_that_was_cut_off_is_passed_over(
    start: Start, fails_at: Callable[[int | None], None]
) -> None:
    run = start("run")
    fails_at(9)
    with pytest.raises(RuntimeError, match="killed"):
        run.train()
    stage = run.folder / "joint"
    (stage / "checkpoint-4" / "whole").unlink()
    assert newest_checkpoint(stage) == stage / "checkpoint-2"
    assert not (stage / "checkpoint-4").exists()


def test_a_run_that_dies_after_its_last_step_trains_no_more(
    start: Start, fails_at: Callable[[int | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start("whole").train()
    broken = start("broken")

    def full(self: LanguageRun, model: UnifiedModel, folder: Path) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(LanguageRun, "_save", full)
        with pytest.raises(OSError, match="no space"):
            broken.train()
    fails_at(0)  # a further step would die
    assert equal_bits(start("broken").train(), whole)


def test_stages_train_what_they_say_and_the_tokenizer_never(
    start: Start, tiny_tokenizer: SemHiTok
) -> None:
    before = tiny_tokenizer.hash
    stages = [{"name": "adapter", "trains": "added", "steps": 3}, {"name": "joint", "steps": 2}]
    run = start("run", *stages)
    fresh = run._start(0)
    run.train()
    adapter, joint = (
        UnifiedModel.from_pretrained(folder / "model")
        for folder in (run.folder / "adapter", run.folder)
    )

    def moved(one: UnifiedModel, other: UnifiedModel, part: str) -> bool:
        ours, theirs = (model.get_submodule(part).state_dict() for model in (one, other))
        return any(not ours[name].equal(theirs[name]) for name in ours)

    for part in ("adapter", "markers", "marker_head", "image_head"):
        assert moved(fresh, adapter, part) and moved(adapter, joint, part), part
    assert not moved(fresh, adapter, "language") and moved(adapter, joint, "language")
    assert tiny_tokenizer.hash == before


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_low_rank_updates_are_merged(start: Start, fails_at: Callable[[int | None], None]) -> None:
    low = {"trains": "lora", "lora": {"rank": 2, "alpha": 8, "layers": ["q_proj", "up_proj"]}}
    run = start("run", low)
    fresh = run._start(0)
    model = run.train()
    assert type(model) is UnifiedModel
    then, now = fresh.language.state_dict(), model.language.state_dict()
    changed = {name.split(".")[-2] for name in now if not now[name].equal(then[name])}
    assert changed == {"q_proj", "up_proj"}
    update = now["model.layers.0.mlp.up_proj.weight"] - then["model.layers.0.mlp.up_proj.weight"]
    assert torch.linalg.matrix_rank(update, rtol=1e-3) == 2
    assert not fresh.markers.weight.equal(model.markers.weight)

    broken = start("broken", low)
    fails_at(7)
    with pytest.raises(RuntimeError, match="killed"):
        broken.train()
    fails_at(None)
    assert equal_bits(start("broken", low).train(), model)


def test_accumulated_micro_batches_are_one_batch(start: Start) -> None:
    once, apart = (
        start(f"of-{size}", {"micro_batch": size, "steps": 2}).train() for size in (4, 1)
    )
    for (name, ours), theirs in zip(once.named_parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5, msg=name)


def test_weight_of_image_losses(make_unified: Callable[..., UnifiedModel], tokens: Tensor) -> None:
    model = make_unified()
    whole = model(input_ids=tokens, labels=tokens)
    text, image = whole.token_losses
    total = text[1] + image[1]
    assert torch.isclose(whole.loss, (text[0] + image[0]) / total)
    light = model(input_ids=tokens, labels=tokens, image_weight=0.25)
    assert torch.isclose(light.loss, (text[0] + 0.25 * image[0]) / total)
    part = model(input_ids=tokens, labels=tokens, num_items_in_batch=2 * int(total))
    assert torch.isclose(2 * part.loss, whole.loss)


def test_runs_that_cannot_be_are_refused(
    start: Start, data: dict[str, Sequences], processor: UnifiedProcessor, tmp_path: Path
) -> None:
    start("run")
    with pytest.raises(RecipeError, match="holds a run of another recipe; use the same"):
        start("run", {"steps": 7})
    data["read"] = prepared(processor, tmp_path / "other", "drawn")
    with pytest.raises(RecipeError, match="holds a run of another data; use the same"):
        start("run")
    del data["read"]
    with pytest.raises(RecipeError, match="learns from read; give each a prepared folder"):
        start("new")
    drawn = {"data": {"drawn": 1.0}}
    with pytest.raises(RecipeError, match="batch_size is 4; it must be a multiple of micro_batch"):
        start("new", drawn, {**drawn, "name": "second", "micro_batch": 3})


def test_sequences_of_another_tokenizer_are_refused(
    start: Start, data: dict[str, Sequences]
) -> None:
    data["read"].identity = {**data["read"].identity, "tokenizer_hash": "0" * 64}
    with pytest.raises(FormatError, match="data read was made with the image tokenizer"):
        start("run")


def test_a_loss_that_is_not_finite_ends_the_training(start: Start) -> None:
    run = start("run", {"optimizer": {"lr": 1e30, "warmup": 0, "clip": 1e30}, "steps": 20})
    with pytest.raises(TrainingError, match="stage joint, step .*not finite .*lower the learning"):
        run.train()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"trains": "lora"}, "'lora' goes with trains: lora"),
        ({"trains": "none"}, "stages.0.trains is 'none'"),
        ({"data": {}}, "stages.0.data"),
        ({"stepz": 3}, "unknown key 'stages.0.stepz'; did you mean 'steps'"),
    ],
)
def test_recipes_that_cannot_be_are_refused(change: dict[str, Any], words: str) -> None:
    whole = {"name": "test", "language": {"source": "x"}, "stages": [{**STAGE, **change}]}
    with pytest.raises(RecipeError, match=words):
        parse(LanguageRecipe, whole)


@pytest.mark.parametrize("name", bundled_recipes(FAMILY))
def test_bundled_recipes_are_sound(name: str) -> None:
    recipe = load_language_recipe(name)
    assert recipe.name == name
    for stage in recipe.stages:
        assert stage.batch_size % stage.micro_batch == 0
