"""Packed items: whole examples, apart from one another, the same on resuming."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from semhitok.errors import FormatError, NotFoundError, RangeError
from semhitok.lm.conversations import Conversation
from semhitok.lm.model import UnifiedModel
from semhitok.lm.prepare import PrepareJob
from semhitok.lm.processor import UnifiedProcessor
from semhitok.lm.sequences import PackedSequences, Sequences, Source

Make = Callable[..., UnifiedProcessor]
LENGTH = 64


def talk(key: str, asked: str, answer: str, *grids: Tensor) -> Conversation:
    messages = ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})
    return Conversation(key, messages, grids)


def some(count: int, kind: str) -> list[Conversation]:
    random = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        size = tuple(torch.randint(1, 4, (2,), generator=random).tolist())
        grid = torch.randint(0, 64, size, generator=random)
        words = "dog " * (number % 5 + 1)
        if kind == "drawn":
            made.append(talk(f"drawn-{number}", words + str(number), "<image>", grid))
        elif kind == "read":
            made.append(talk(f"read-{number}", "<image>\nWhat?", words + str(number), grid))
        else:
            made.append(Conversation(f"text-{number}", words + str(number)))
    return made


@pytest.fixture
def folders(make_processor: Make, tmp_path: Path) -> Callable[..., Path]:
    """Prepares conversations; a folder each."""

    def prepare(name: str, made: list[Conversation], *about: Any, **options: Any) -> Path:
        job = PrepareJob(make_processor(*about), tmp_path / name, {}, **options)
        job.claim()
        job.run(made)
        return tmp_path / name

    return prepare


@pytest.fixture
def mixture(folders: Callable[..., Path]) -> list[Source]:
    read = Sequences(folders("read", some(20, "read") + some(9, "text"), shard_size=8))
    return [Source(read), Source(Sequences(folders("drawn", some(12, "drawn"))), weight=1.5)]


def parts(item: Any) -> list[slice]:
    """The examples of an item, padding the last one if there is any."""
    starts = (item["position_ids"] == 0).nonzero()[:, 0].tolist() + [LENGTH]
    return [slice(a, b) for a, b in zip(starts, starts[1:], strict=False)]


def test_what_was_prepared_is_read(make_processor: Make, folders: Callable[..., Path]) -> None:
    processor = make_processor()
    made = some(5, "drawn") + some(5, "read") + some(3, "text")
    found = Sequences([folders("a", made[:7], shard_size=3), folders("b", made[7:])])
    assert len(found) == 13 and found.keys.to_pylist() == [c.key for c in made]
    assert found.kinds.tolist() == ["generate"] * 5 + ["understand"] * 5 + ["text"] * 3
    for number, conversation in enumerate(made):
        if isinstance(conversation.messages, str):
            wanted = processor.plain(conversation.messages)
        else:
            wanted = processor.example(conversation.messages, conversation.pictures)
        example = found[number]
        assert torch.equal(example.input_ids, wanted.input_ids)
        assert (example.learned, example.dropped) == (wanted.learned, wanted.dropped)
        assert found.lengths[number] == len(wanted)
        without = len(wanted) - len(wanted.unconditional())
        assert found.dropped_lengths[number] == without and (without > 0) == (number < 5)


def test_items_are_whole_examples(mixture: list[Source]) -> None:
    packed = PackedSequences(mixture, length=LENGTH, items=60, drop=0.5)
    known = {}
    for source in mixture:
        for number in range(len(source.sequences)):
            whole = source.sequences[number]
            for example in (whole, whole.unconditional()):
                known[tuple(example.input_ids.tolist())] = example.labels
    seen = 0
    for item in (packed[n] for n in range(60)):
        assert all(item[name].shape == (LENGTH,) for name in item)  # type: ignore[literal-required]
        for part in parts(item):
            tokens, labels = item["input_ids"][part], item["labels"][part]
            assert torch.equal(item["position_ids"][part], torch.arange(len(tokens)))
            if tuple(tokens.tolist()) not in known:
                assert part.stop == LENGTH and not tokens.any() and bool((labels == -100).all())
                continue
            seen += 1
            wanted = known[tuple(tokens.tolist())].clone()
            wanted[0] = -100
            assert torch.equal(labels, wanted)
    assert seen > 90


def test_item_n_follows_from_seed_and_n(mixture: list[Source]) -> None:
    def items(numbers: list[int], seed: int = 0, count: int = 99) -> list[list[int]]:
        packed = PackedSequences(mixture, length=LENGTH, items=count, seed=seed)
        return [packed[n]["input_ids"].tolist() for n in numbers]

    wanted = [1, 40, 7, 98, 0]
    each = [items([n])[0] for n in wanted]
    assert items(wanted) == each == items(wanted, count=100_000)
    assert items(wanted, seed=1) != each
    packed = PackedSequences(mixture, length=LENGTH, items=99)
    packed[98]
    again = pickle.loads(pickle.dumps(packed))
    assert [again[n]["input_ids"].tolist() for n in wanted] == each
    with pytest.raises(IndexError):
        packed[99]


def test_what_is_dropped_leaves_the_unconditional_prompt(
    make_processor: Make, mixture: list[Source]
) -> None:
    processor = make_processor()
    bare = processor.unconditional().tolist()
    packed = PackedSequences(mixture[1:], length=LENGTH, items=20, drop=1.0)
    for item in (packed[n] for n in range(20)):
        for part in parts(item):
            tokens = item["input_ids"][part].tolist()
            if any(tokens):
                assert tokens[: len(bare) + 1] == [*bare, processor.vocabulary.begin]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_packed_item_costs_what_its_examples_cost_alone(
    make_processor: Make,
    make_language: Callable[..., PreTrainedModel],
    mixture: list[Source],
    family: str,
    attention: str,
) -> None:
    processor = make_processor()
    language = make_language(family, vocab_size=processor.vocabulary.text_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = UnifiedModel.unite(
            language, processor.tokenizer, text_length=len(processor.text), max_side=8
        )
    assert model.vocabulary == processor.vocabulary
    model.set_attn_implementation(attention)
    packed = PackedSequences(mixture, length=LENGTH, items=4, drop=0.3)
    batch = torch.utils.data.default_collate([packed[n] for n in range(4)])
    model.train()
    loss = model(**batch).loss
    total, count = 0.0, 0
    for item in (packed[n] for n in range(4)):
        for part in parts(item):
            labels = item["labels"][None, part]
            learned = int((labels[:, 1:] != -100).sum())
            if learned:
                alone = model(item["input_ids"][None, part], labels=labels).loss
                total, count = total + learned * float(alone.detach()), count + learned
    assert count > 50 and len(parts(packed[0])) > 2
    assert float(loss.detach()) == pytest.approx(total / count, rel=1e-5)
    without = model(batch["input_ids"], labels=batch["labels"]).loss
    assert abs(float(without.detach()) - total / count) > 1e-3, "they would see one another"


def test_padding_does_not_matter(
    make_processor: Make,
    make_language: Callable[..., PreTrainedModel],
    mixture: list[Source],
) -> None:
    processor = make_processor()
    language = make_language(vocab_size=processor.vocabulary.text_size)
    model = UnifiedModel.unite(
        language, processor.tokenizer, text_length=len(processor.text), max_side=8
    ).train()
    item = PackedSequences(mixture, length=LENGTH + 40, items=1)[0]
    used = int((item["labels"] != -100).nonzero()[-1]) + 1
    losses, gradients = [], []
    for length, filler in ((used, 0), (LENGTH + 40, 0), (LENGTH + 40, 9)):
        batch = {name: value[None, :length].clone() for name, value in item.items()}
        batch["input_ids"][0, used:] = filler
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(model.get_input_embeddings().weight.grad.clone())
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)
    assert torch.allclose(gradients[1], gradients[2], atol=1e-6)


# -- what does not fit ---------------------------------------------------------------------------


def test_vocabularies_are_not_mixed(folders: Callable[..., Path]) -> None:
    a = folders("a", some(3, "read"))
    b = folders("b", some(3, "read"), "plain")
    c = folders("c", some(3, "read"), "chatml", "words")
    with pytest.raises(FormatError, match="b was made with the chat template .*; use that one"):
        Sequences([a, b])
    with pytest.raises(FormatError, match="c was made with the (vocabulary|text tokenizer)"):
        PackedSequences([Source(Sequences(a)), Source(Sequences(c))], length=LENGTH, items=1)


def test_folders_that_are_not_whole(folders: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="has no manifest.json; prepare it with"):
        Sequences(tmp_path / "nowhere")
    folder = folders("a", some(3, "read"))
    shard = folder / "sequences-000000.parquet"
    data = shard.read_bytes()
    for damage in (data[:-9], data[:200] + b"\0" + data[201:]):
        shard.write_bytes(damage)
        with pytest.raises(FormatError, match="000000.parquet: no whole file of sequences"):
            Sequences(folder)
    other = folders("b", some(4, "read")) / "sequences-000000.parquet"
    shard.write_bytes(other.read_bytes())
    with pytest.raises(FormatError, match="its hash is not that of the manifest"):
        Sequences(folder)
    (folder / "manifest.json").write_text(json.dumps({"shards": [{}]}))
    with pytest.raises(FormatError, match="manifest.json is damaged"):
        Sequences(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"length": 20},
            "has a sequence of .* tokens, an item has 20; prepare with --max-length 20",
        ),
        ({"drop": 1.5}, "drop 1.5; needed"),
        ({"items": -1}, "-1 items"),
    ],
)
def test_impossible_items(mixture: list[Source], options: dict[str, Any], said: str) -> None:
    with pytest.raises(RangeError, match=said):
        PackedSequences(mixture, **{"length": LENGTH, "items": 9, **options})


def test_impossible_weights(mixture: list[Source]) -> None:
    for weight in (0.0, -1.0, 0.001):
        with pytest.raises(RangeError, match=f"has weight {weight}"):
            PackedSequences([Source(mixture[0].sequences, weight)], length=LENGTH, items=9)
    with pytest.raises(RangeError, match="0 sources"):
        PackedSequences([], length=LENGTH, items=9)
