from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import TextStreamer

from semhitok.lm.generation import draw, reply
from semhitok.lm.listening import Listener, StreamerListener, Telling
from semhitok.lm.model import UnifiedModel
from semhitok.lm.sampling import Sampling
from semhitok.lm.vocabulary import Vocabulary

Make = Callable[..., UnifiedModel]
WORDS = Vocabulary(text_size=10, text_length=9, num_semantic=4, num_pixel=2, max_side=3)
# 0-9 text, 10-17 ids, 18 begin, 19 end, 20-22 heights, 23-25 widths


class Notes(Listener):
    """All that it was told, for each row."""

    def __init__(self, rows: int) -> None:
        self.heard: list[list[object]] = [[] for _ in range(rows)]

    def text(self, row: int, token: int) -> None:
        self.heard[row].append(token)

    def picture(self, row: int, ids: Tensor, height: int) -> None:
        self.heard[row].append((ids.tolist(), height))

    def end(self, row: int) -> None:
        self.heard[row].append("end")


def tell(rows: int, stop: list[int], prompts: list[list[int]], *steps: list[int]) -> Notes:
    notes = Notes(rows)
    telling = Telling(WORDS, notes, rows, stop)
    telling.put(torch.tensor(prompts))
    for step in steps:
        telling.put(torch.tensor(step))
    telling.end()
    return notes


def test_text_then_a_picture_row_by_row_then_text() -> None:
    tokens = [4, 5, 18, 21, 24, 10, 11, 12, 17, 19, 6]
    notes = tell(1, [1], [[18, 20, 23, 10, 19]], *[[t] for t in tokens])
    assert notes.heard == [[4, 5, ([[0, 1]], 2), ([[0, 1], [2, 7]], 2), 6, "end"]]


def test_what_comes_after_the_stop_is_padding() -> None:
    notes = tell(2, [1, 3], [[5], [6]], [4, 3], [1, 0], [0, 0])
    assert notes.heard == [[4, "end"], ["end"]]


def test_a_picture_that_the_prompt_opened() -> None:
    prompts = [[5, 18, 20, 24], [6, 18, 21, 23]]
    notes = tell(2, [19], prompts, [12, 13], [14, 15], [19, 19], [0, 0])
    assert notes.heard == [[([[2, 4]], 1), "end"], [([[3]], 2), ([[3], [5]], 2), "end"]]


def pieces(heard: list[object]) -> list[list[object]]:
    """What was told, as replies are: runs of text, and pictures as they were when whole."""
    found: list[list[object]] = []
    for one in heard[:-1]:
        if isinstance(one, tuple):
            ids, height = one
            if len(ids) == height:
                found.append(ids)
        elif found and not isinstance(found[-1][0], list):
            found[-1].append(one)
        else:
            found.append([one])
    return found


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_what_is_told_is_what_comes_back(make_unified: Make, guidance: float) -> None:
    model = make_unified()
    lift = torch.zeros(model.vocabulary.num_markers + 1).index_fill(0, torch.tensor([0]), 3)
    model.marker_head.register_forward_hook(lambda _, inputs, logits: logits + lift)
    prompts, notes = [torch.tensor([3, 7]), torch.tensor([5]), torch.tensor([9])], Notes(3)
    sampling = Sampling(guidance=guidance)
    unconditional = torch.tensor([0])
    replies = reply(
        model,
        prompts,
        sizes=[(1, 2), (2, 2)],
        max_new_tokens=40,
        stop=list(range(4)),
        sampling=sampling,
        unconditional=unconditional,
        listener=notes,
    )
    assert [pieces(heard) for heard in notes.heard] == [[p.tolist() for p in r] for r in replies]
    assert all(heard[-1] == "end" and heard.count("end") == 1 for heard in notes.heard)
    assert any(p.ndim == 2 for r in replies for p in r)
    notes = Notes(3)
    sizes = [(2, 3), (1, 1), (3, 2)]
    grids = draw(model, prompts, sizes, sampling=sampling, listener=notes)
    for grid, heard in zip(grids, notes.heard, strict=True):
        rows = grid.tolist()
        told = [(rows[: n + 1], len(rows)) for n in range(len(rows))]
        assert heard == [*told, "end"]


class Speller:
    """A text tokenizer of letters; 0 is a space."""

    def decode(self, tokens: list[int], **kwargs: object) -> str:
        return "".join(" abcdefghijklmnopqrstuvwxyz"[token] for token in tokens)


def test_text_to_a_streamer_of_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []

    def show(ids: Tensor, height: int) -> None:
        print(f"[{len(ids)}/{height}]")

    listener = StreamerListener(TextStreamer(Speller()), show)
    telling = Telling(WORDS, listener, 1, [3])
    telling.put(torch.tensor([[7, 7]]))
    for token in [1, 2, 0, 4, 18, 21, 23, 10, 11, 19, 5, 3]:
        telling.put(torch.tensor([token]))
        shown.append(capsys.readouterr().out)
    telling.end()
    assert "".join(shown) == "ab d\n[1/2]\n[2/2]\ne\n"
    assert "".join(shown[:4]).startswith("ab ")  # printed as it comes
