from __future__ import annotations

import re

import pytest
import torch

from semhitok.errors import FormatError, IdError, RangeError, ShapeError
from semhitok.lm.vocabulary import Vocabulary

PAPER = Vocabulary(text_size=152_064, text_length=151_665, num_semantic=16_384, num_pixel=12)
SMALL = Vocabulary(text_size=10, text_length=9, num_semantic=4, num_pixel=2, max_side=3)
# 0-9 text, 10-17 ids, 18 begin, 19 end, 20-22 heights, 23-25 widths


def test_text_then_ids_then_markers() -> None:
    assert (PAPER.image_offset, PAPER.marker_offset) == (152_064, 152_064 + 196_608)
    assert (SMALL.begin, SMALL.end, SMALL.height_offset, SMALL.width_offset) == (18, 19, 20, 23)
    assert SMALL.size == 26


def test_ids_and_tokens_are_inverse_over_the_whole_range() -> None:
    ids = torch.arange(PAPER.num_images)
    tokens = PAPER.to_tokens(ids)
    assert tokens[-1] == 152_064 + 196_607 == PAPER.begin - 1
    assert torch.equal(PAPER.to_ids(tokens), ids)


def test_layout_is_the_picture_between_its_markers() -> None:
    tokens = SMALL.layout(torch.tensor([[0, 7, 3]]))
    assert tokens.tolist() == [18, 20, 25, 10, 17, 13, 19]


def test_parse_is_the_inverse_of_join() -> None:
    largest = PAPER.num_images - 1
    side = PAPER.max_side
    pieces = [
        torch.tensor([[largest, 0], [1, largest]]),
        torch.tensor([5, 152_063]),
        torch.full((side, side), largest),
        torch.tensor([[7]]),
    ]
    found = PAPER.parse(PAPER.join(pieces))
    assert len(found) == len(pieces)
    assert all(torch.equal(a, b) for a, b in zip(found, pieces, strict=True))
    assert PAPER.parse(torch.empty(0, dtype=torch.int64)) == []
    assert PAPER.join([]).tolist() == []


@pytest.mark.parametrize("bad", [-1, 8])
def test_ids_outside_the_block(bad: int) -> None:
    with pytest.raises(IdError, match=re.escape(f"id {bad} at (0, 1) is outside the image block")):
        SMALL.layout(torch.tensor([[0, bad]]))


@pytest.mark.parametrize("bad", [9, 18])
def test_tokens_outside_the_block(bad: int) -> None:
    with pytest.raises(IdError, match=rf"token {bad} at \(0,\) is outside the image block"):
        SMALL.to_ids(torch.tensor([bad]))


def test_text_of_another_size() -> None:
    with pytest.raises(IdError, match=r"token 10 at \(0,\) is outside the text ids, \[0, 10\)"):
        SMALL.join([torch.tensor([10])])
    with pytest.raises(ShapeError, match=r"piece has shape \(1, 1, 1\)"):
        SMALL.join([torch.zeros(1, 1, 1, dtype=torch.int64)])


@pytest.mark.parametrize(
    "tokens, message",
    [
        ([1, 26], "token 26 at (1,) is outside the vocabulary, [0, 26)"),
        ([-1], "token -1 at (0,) is outside the vocabulary"),
    ],
)
def test_parse_refuses_other_tokens(tokens: list[int], message: str) -> None:
    with pytest.raises(IdError, match=re.escape(message)):
        SMALL.parse(torch.tensor(tokens))


@pytest.mark.parametrize(
    "tokens, message",
    [
        ([1, 10], "token 10 at 1 is an image id outside a picture"),
        ([1, 19], "token 19 at 1 is the end marker outside a picture"),
        ([22], "token 22 at 0 is a height marker outside a picture"),
        ([25], "token 25 at 0 is a width marker outside a picture"),
        ([1, 18], "picture at 1 is cut off before its height"),
        ([18, 20], "picture at 0 is cut off before its width"),
        ([18, 24, 24], "picture at 0 has a width marker (24) where its height must be, 20 to 22"),
        ([18, 20, 10], "picture at 0 has an image id (10) where its width must be, 23 to 25"),
        ([18, 20, 24], "says 1x2 = 2 ids and an end, but is cut off after 0"),
        ([18, 20, 24, 10], "says 1x2 = 2 ids and an end, but is cut off after 1"),
        ([18, 20, 24, 10, 11], "says 1x2 = 2 ids and an end, but is cut off after 2"),
        ([18, 20, 24, 10, 19], "says 1x2 = 2 ids, but after 1 comes 19, the end marker"),
        ([18, 20, 24, 10, 3, 19], "says 1x2 = 2 ids, but after 1 comes 3, a text id"),
        ([18, 20, 23, 10, 11, 19], "says 1x1 = 1 ids, but an image id (11) stands where its end"),
    ],
)
def test_parse_refuses_broken_pictures(tokens: list[int], message: str) -> None:
    with pytest.raises(FormatError, match=re.escape(message)):
        SMALL.parse(torch.tensor(tokens))


def test_sides_without_a_marker() -> None:
    with pytest.raises(RangeError, match="picture of 4x1 patches; sides from 1 to 3 have markers"):
        SMALL.layout(torch.zeros(4, 1, dtype=torch.int64))
    with pytest.raises(RangeError, match="picture of 1x0 patches"):
        SMALL.opening(1, 0)


def test_saved_with_its_offset() -> None:
    saved = SMALL.to_dict()
    assert saved["image_offset"] == 10
    assert Vocabulary.from_dict(saved) == SMALL
    with pytest.raises(FormatError, match="image_offset 11; after 10 text ids it must be 10"):
        Vocabulary.from_dict({**saved, "image_offset": 11})
    with pytest.raises(FormatError, match="unexpected keyword argument 'depth'"):
        Vocabulary.from_dict({**saved, "depth": 1})


def test_impossible_sizes() -> None:
    with pytest.raises(RangeError, match="num_pixel is 0; it must be at least 1"):
        Vocabulary(text_size=10, text_length=10, num_semantic=4, num_pixel=0)
    with pytest.raises(RangeError, match="tokenizer has 11 ids, but the language model has 10"):
        Vocabulary(text_size=10, text_length=11, num_semantic=4, num_pixel=1)
