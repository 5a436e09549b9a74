from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from semhitok.lm.drawing import (
    END,
    HEIGHT,
    IMAGE,
    TEXT,
    WIDTH,
    Draw,
    ImageGrid,
    OwnPicture,
    next_kinds,
)
from semhitok.lm.model import UnifiedModel
from semhitok.lm.sampling import Level, Sampling
from semhitok.lm.vocabulary import Vocabulary

Make = Callable[..., UnifiedModel]
HEADS = ["flat", "factorised"]
WORDS = Vocabulary(text_size=10, text_length=9, num_semantic=4, num_pixel=2, max_side=3)
# 0-9 text, 10-17 ids, 18 begin, 19 end, 20-22 heights, 23-25 widths
COLD = Level(temperature=0.0)


# -- what comes next ---------------------------------------------------------------------------


def test_what_comes_next_is_read_off_the_tokens() -> None:
    picture = WORDS.layout(torch.tensor([[1, 2], [3, 4], [5, 6]]))
    tokens = torch.cat([torch.tensor([7]), picture, torch.tensor([8, 18, 21, 23, 10])])
    wanted = [TEXT, HEIGHT, WIDTH, *[IMAGE] * 6, END, TEXT, TEXT, HEIGHT, WIDTH, IMAGE, IMAGE]
    found = [int(next_kinds(tokens[None, :n], WORDS)[0]) for n in range(1, len(tokens) + 1)]
    assert found == wanted


def allowed(
    rows: list[list[int]], sizes: list[tuple[int, int]], max_length: int
) -> list[list[int]]:
    """Tokens that may follow each row."""
    kinds, heights = next_kinds(torch.tensor(rows), WORDS)
    grid = ImageGrid(WORDS, sizes, max_length)
    columns = [row.nonzero()[:, 0] for row in grid.allowed(kinds, heights, len(rows[0]))]
    return [[c if c < 10 else c + 8 for c in row.tolist()] for row in columns]


def test_only_whole_pictures_may_be_written() -> None:
    text, sizes = list(range(9)), [(1, 2), (3, 1)]
    rows = [[1, 2, 3], [1, 2, 18], [1, 18, 20], [1, 18, 22], [1, 18, 21]]
    assert allowed(rows, sizes, 50) == [[*text, 18], [20, 22], [24], [23], []]
    assert allowed([[18, 20, 23, 10, 19]], [], 50) == [text]


def test_no_picture_is_begun_that_would_not_end() -> None:
    sizes, text = [(1, 2), (3, 1)], list(range(9))
    assert [18 in allowed([[1]], sizes, 1 + left)[0] for left in (5, 6, 7)] == [False, True, True]
    assert allowed([[18]], sizes, 1 + 5) == [[20]]
    assert allowed([[18]], sizes, 1 + 6) == [[20, 22]]
    assert allowed([[18, 20]], sizes, 2 + 4) == [[24]]
    assert allowed([[1]], [(3, 3)], 13) == [text] and allowed([[1]], [(3, 3)], 14) != [text]


def test_the_other_half_reads_its_prompt_and_the_latest_picture() -> None:
    tokens = torch.tensor([[0, 5, 18, 20, 23, 10, 19, 4, 18, 20, 24, 10]] * 4)
    mask = torch.tensor([[0] + [1] * 11] * 4)
    open_one = OwnPicture(WORDS, 2, 2)(tokens, mask)
    assert torch.equal(open_one[:2], mask[:2])
    assert open_one[2:].tolist() == [[0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]] * 2
    # In the prompt, all is read, pictures too.
    assert torch.equal(OwnPicture(WORDS, 2, 11)(tokens, mask), mask)


# -- how it is drawn ---------------------------------------------------------------------------


@torch.no_grad()
def drawn(
    model: UnifiedModel,
    opening: list[int],
    hidden: Tensor,
    sampling: Sampling | None = None,
    sizes: tuple[tuple[int, int], ...] = (),
) -> Tensor:
    """A token for each hidden state, after `opening`."""
    sampling = sampling or Sampling()
    rows = len(hidden) // (1 if sampling.guidance == 1 else 2)
    draw = Draw(model, ImageGrid(model.vocabulary, sizes, 50), sampling, range(rows))
    out = draw(torch.tensor(opening).expand(len(hidden), -1), hidden)
    assert out.shape == (len(hidden), model.vocabulary.size) and (out.isfinite().sum(1) == 1).all()
    return out.argmax(dim=-1)


def a_state(model: UnifiedModel, seed: int = 0) -> Tensor:
    return torch.randn(1, model.config.text_config.hidden_size, generator=generator(seed))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def block(model: UnifiedModel, state: Tensor) -> Tensor:
    """Log-probabilities of the image ids among themselves: (16, 4)."""
    words = model.vocabulary
    ids = model.log_probs(state)[0, words.image_offset : words.marker_offset]
    return ids.log_softmax(-1).view(words.num_semantic, words.num_pixel)


def chi_square(tokens: Tensor, offset: int, probs: Tensor) -> float:
    """Over its degrees of freedom: near 1 for numbers that were drawn by `probs`."""
    found = torch.bincount(tokens - offset, minlength=probs.numel()).double()
    wanted = probs.double().flatten() * len(tokens)
    return float(((found - wanted) ** 2 / wanted).sum() / (probs.numel() - 1))


@pytest.mark.parametrize("image_head", HEADS)
def test_both_levels_together_are_the_joint_distribution(
    make_unified: Make, image_head: str
) -> None:
    model, rows = make_unified(image_head=image_head), 6000
    state = a_state(model)
    tokens = drawn(model, model.vocabulary.opening(2, 2).tolist(), state.expand(rows, -1))
    probs = block(model, state).exp()
    assert chi_square(tokens, model.vocabulary.image_offset, probs) < 1.6
    assert chi_square(tokens, model.vocabulary.image_offset, probs.roll(1, 0)) > 5


@pytest.mark.parametrize("image_head", HEADS)
def test_guidance_mixes_the_semantic_codes_and_then_the_pixel_codes(
    make_unified: Make, image_head: str
) -> None:
    model, rows = make_unified(image_head=image_head), 6000
    if image_head == "factorised":  # or its children would hardly differ, and both ways agree
        model.image_head.pixel.weight.data *= 5
    states = a_state(model, 1), a_state(model, 2)
    tokens = drawn(
        model,
        model.vocabulary.opening(2, 2).tolist(),
        torch.cat([state.expand(rows, -1) for state in states]),
        Sampling(guidance=2.0),
    )
    assert torch.equal(tokens[:rows], tokens[rows:])
    given, free = (block(model, state) for state in states)
    semantic = (2 * given.logsumexp(-1) - free.logsumexp(-1)).softmax(-1)
    pixel = (2 * given.log_softmax(-1) - free.log_softmax(-1)).softmax(-1)
    probs = semantic[:, None] * pixel
    offset = model.vocabulary.image_offset
    assert chi_square(tokens[:rows], offset, probs.clamp(min=1e-4)) < 1.6
    joint = (2 * given - free).flatten().softmax(-1)
    assert chi_square(tokens[:rows], offset, joint.clamp(min=1e-4)) > 3


def test_each_level_has_its_own_sampling(make_unified: Make) -> None:
    model = make_unified()
    # Semantic 0 is likeliest (0.31 + 0.29), though the likeliest id is of semantic 1 (0.4 + 0).
    probs = torch.full((64,), 1e-9)
    probs[[0, 1, 4]] = torch.tensor([0.31, 0.29, 0.4])
    with torch.no_grad():
        model.image_head.ids.weight.zero_()
        model.image_head.ids.weight[:, 0] = probs.log()
    states = torch.zeros(400, 32)
    states[:, 0] = 1
    for sampling, wanted in [
        (Sampling(semantic=COLD, pixel=COLD), {0}),
        (Sampling(semantic=COLD), {0, 1}),
        (Sampling(pixel=COLD), {0, 4}),
        (Sampling(text=COLD), {0, 1, 4}),
    ]:
        tokens = drawn(model, model.vocabulary.opening(1, 2).tolist(), states, sampling)
        assert set((tokens - 40).tolist()) == wanted


def test_text_and_markers_are_drawn_as_the_model_says(make_unified: Make) -> None:
    model, rows = make_unified(), 6000
    words, state = model.vocabulary, a_state(model)
    # Text that the tokenizer knows, and the begin of a picture where there may be one.
    tokens = drawn(model, [3, 5], state.expand(rows, -1), sizes=((1, 2),))
    known = [*range(words.text_length), words.begin]
    columns = torch.where(tokens == words.begin, words.text_length, tokens)
    assert chi_square(columns, 0, model.log_probs(state)[0, known].detach().softmax(-1)) < 1.6
    assert set(drawn(model, [3, 5], state.expand(99, -1)).tolist()) <= set(range(words.text_length))
    heights = drawn(model, [words.begin], state.expand(rows, -1), sizes=((1, 2), (3, 1), (3, 2)))
    tall = words.height_offset + 2
    probs = model.log_probs(state)[0, [words.height_offset, tall]].detach().softmax(-1)
    assert set(heights.tolist()) == {words.height_offset, tall}
    assert chi_square((heights == tall).long(), 0, probs) < 5


def test_the_end_is_forced_whatever_the_model_says(make_unified: Make) -> None:
    model = make_unified()
    one = model.vocabulary.layout(torch.tensor([[5]]))[:-1].tolist()
    assert drawn(model, one, a_state(model)).tolist() == [model.vocabulary.end]


def test_rows_of_all_kinds_in_one_batch(make_unified: Make) -> None:
    model = make_unified()
    words, states = model.vocabulary, torch.randn(4, 32, generator=generator(3))
    rows = torch.full((4, 4), 3)
    rows[1, 1:] = words.opening(1, 2)
    rows[2] = words.layout(torch.tensor([[5]]))[:-1]
    greedy = Sampling(COLD, COLD, COLD)
    found = Draw(model, ImageGrid(words, [], 50), greedy, range(4))(rows, states).argmax(dim=-1)
    for row in range(4):
        alone = drawn(model, rows[row].tolist(), states[row : row + 1], greedy)
        assert int(alone) == int(found[row])
    assert found[0] < 37 and 40 <= found[1] < 104 and found[2] == words.end and found[3] < 37


def test_only_what_is_needed_is_scored(make_unified: Make) -> None:
    """In a picture no text, and with the factorised head of one code's children alone."""
    model = make_unified(image_head="factorised")
    sizes: list[tuple[int, ...]] = []
    layers = [model.get_output_embeddings(), *model.image_head.children()]
    for layer in layers:
        layer.register_forward_hook(lambda _, inputs, output: sizes.append(tuple(output.shape)))
    states = a_state(model).expand(3, -1)
    drawn(model, model.vocabulary.opening(2, 2).tolist(), states)
    assert sizes == [(3, 16), (3, 16), (3, 16), (3, 4)]  # semantic, context, parent, children
    sizes.clear()
    drawn(model, [3], states)
    assert sizes == [(3, 40)]
