from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from answers import interval

from semhitok.errors import RangeError
from semhitok.lm.assistant import Assistant
from semhitok.lm.conversations import Conversation
from semhitok.lm.evaluation.held_out import measure_loss
from semhitok.lm.prepare import PrepareJob
from semhitok.lm.sequences import Sequences


@pytest.fixture
def sequences(assistant: Assistant, tmp_path: Path) -> Sequences:
    """Drawings, answers and texts of several lengths."""
    made = []
    for number in range(7):
        grid = torch.full((1 + number % 2, 2), number)
        words = "dog " * (1 + number % 4) + str(number)
        for key, asked, answer in (("draw", words, "<image>"), ("read", "<image>\nWhat?", words)):
            messages = (
                {"role": "user", "content": asked},
                {"role": "assistant", "content": answer},
            )
            made.append(Conversation(f"{key}-{number}", messages, (grid,)))
        made.append(Conversation(f"text-{number}", words))
    job = PrepareJob(assistant.processor, tmp_path / "out", {})
    job.claim()
    job.run(made)
    return Sequences(tmp_path / "out")


def test_nats_a_token_are_the_models_own(assistant: Assistant, sequences: Sequences) -> None:
    wanted = torch.zeros(2, 2)
    with torch.no_grad():
        for number in range(len(sequences)):
            one = sequences[number]
            labels = one.labels
            labels[0] = -100
            wanted += assistant.model(one.input_ids[None], labels=labels[None]).token_losses
    told: list[int] = []
    figures = measure_loss(assistant.model, sequences, interval, advance=told.append).figures["all"]
    sums, counts = wanted.unbind(dim=1)
    assert [figures["text_tokens"], figures["image_ids"]] == counts.tolist()
    assert figures["text"]["mean"] == pytest.approx(float(sums[0] / counts[0]), rel=1e-5)
    assert figures["image"]["mean"] == pytest.approx(float(sums[1] / counts[1]), rel=1e-5)
    assert told == [8, 16, 21] and figures["sequences"] == 21


def test_packed_or_not_is_the_same(assistant: Assistant, sequences: Sequences) -> None:
    apart = measure_loss(assistant.model, sequences, interval)
    together = measure_loss(assistant.model, sequences, interval, length=100, batch_size=3)
    assert set(apart.figures) == {"all", "understand", "generate", "text"}
    for kind, figures in apart.figures.items():
        for name, value in figures.items():
            other = together.figures[kind][name]
            if isinstance(value, dict):
                assert other["mean"] == pytest.approx(value["mean"], rel=1e-5)
            else:
                assert other == value
    assert apart.figures["understand"]["image"] is None
    assert together.protocol["packing"] == "items of 100 tokens"


def test_a_sequence_longer_than_an_item(assistant: Assistant, sequences: Sequences) -> None:
    with pytest.raises(RangeError, match="has a sequence of .* tokens, an item has 8; make items"):
        measure_loss(assistant.model, sequences, interval, length=8)


def test_intervals_are_over_sequences(assistant: Assistant, sequences: Sequences) -> None:
    seen: list[int] = []

    def count(counted: torch.Tensor, base: torch.Tensor) -> dict[str, float]:
        seen.append(len(base))
        return {}

    measure: Callable[..., object] = measure_loss
    measure(assistant.model, sequences, count)
    assert seen == [21, 21, *[7] * 6]
