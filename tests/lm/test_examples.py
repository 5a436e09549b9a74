from __future__ import annotations

import torch

from semhitok.lm.examples import Example, runs


def test_labels_are_what_is_learned() -> None:
    example = Example(torch.arange(10, 18), ((1, 3), (7, 8)))
    assert example.labels.tolist() == [-100, 11, 12, -100, -100, -100, -100, 17]
    assert len(example) == 8


def test_without_its_text_a_drawing_is_shorter_and_learns_the_same() -> None:
    example = Example(torch.arange(10, 18), ((5, 6), (7, 8)), (1, 4))
    bare = example.unconditional()
    assert bare.input_ids.tolist() == [10, 14, 15, 16, 17] and bare.learned == ((2, 3), (4, 5))
    assert bare.labels[bare.labels != -100].equal(example.labels[example.labels != -100])
    assert bare.unconditional() is bare and bare.dropped is None


def test_runs() -> None:
    for mask, wanted in (
        ([], ()),
        ([0, 0], ()),
        ([1, 1], ((0, 2),)),
        ([0, 1, 1, 0, 1], ((1, 3), (4, 5))),
    ):
        assert runs(torch.tensor(mask, dtype=torch.bool)) == wanted
