from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from semhitok.errors import FormatError, IdError, RangeError
from semhitok.lm.generation import (
    END,
    HEIGHT,
    IMAGE,
    TEXT,
    WIDTH,
    Draw,
    Guidance,
    ImageGrid,
    Level,
    Sampling,
    draw,
    next_kinds,
    reply,
)
from semhitok.lm.model import UnifiedModel
from semhitok.lm.vocabulary import Vocabulary

Make = Callable[..., UnifiedModel]
FAMILIES = ["qwen3", "qwen2", "llama"]
HEADS = ["flat", "factorised"]
WORDS = Vocabulary(text_size=10, text_length=9, num_semantic=4, num_pixel=2, max_side=3)
# 0-9 text, 10-17 ids, 18 begin, 19 end, 20-22 heights, 23-25 widths
PROMPTS = [torch.tensor([3, 7]), torch.tensor([5]), torch.tensor([9, 4, 11, 2, 6])]
SIZES = [(2, 3), (1, 1), (3, 2)]
GREEDY = Sampling(*[Level(temperature=0.0)] * 3)


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# -- one level ---------------------------------------------------------------------------------

PROBS = torch.tensor([0.1, 0.4, 0.0, 0.3, 0.2])


def picks(level: Level) -> Counter[int]:
    """How often each choice is drawn, of 1,000 numbers spread over [0, 1)."""
    uniform = torch.arange(1000) / 1000
    return Counter(level.pick(PROBS.log().expand(1000, -1), uniform).tolist())


def test_choices_are_drawn_as_often_as_they_are_likely() -> None:
    assert picks(Level()) == pytest.approx({0: 100, 1: 400, 3: 300, 4: 200}, abs=2)


def test_temperature() -> None:
    wanted = (PROBS**2 / (PROBS**2).sum() * 1000).tolist()
    found = picks(Level(temperature=0.5))
    assert [found[n] for n in range(5)] == pytest.approx(wanted, abs=2)
    assert picks(Level(temperature=0.0)) == {1: 1000}


def test_top_k_and_top_p() -> None:
    assert picks(Level(top_k=2)) == pytest.approx({1: 571, 3: 429}, abs=2)
    assert picks(Level(top_k=9)) == pytest.approx({0: 100, 1: 400, 3: 300, 4: 200}, abs=2)
    assert picks(Level(top_p=0.5)) == pytest.approx({1: 571, 3: 429}, abs=2)
    assert picks(Level(top_p=0.39)) == {1: 1000}
    assert picks(Level(top_p=0.95, top_k=3)) == pytest.approx({1: 444, 3: 333, 4: 222}, abs=2)


def test_nothing_impossible_is_drawn() -> None:
    scores = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    ends = torch.tensor([0.0]), torch.tensor([1 - 2**-24])
    assert [int(Level().pick(scores, u)) for u in ends] == [1, 2]
    assert [int(Level(top_p=0.9).pick(scores, u)) for u in ends] == [1, 2]


def test_impossible_levels() -> None:
    with pytest.raises(RangeError, match=r"temperature is -1.0; it must be at least 0"):
        Level(temperature=-1.0)
    with pytest.raises(RangeError, match="top_k is 0; it must be at least 1"):
        Level(top_k=0)
    with pytest.raises(RangeError, match=r"top_p is 0.0; it must be in \(0, 1\]"):
        Level(top_p=0.0)


# -- processors --------------------------------------------------------------------------------


def test_what_comes_next_is_read_off_the_tokens() -> None:
    picture = WORDS.layout(torch.tensor([[1, 2], [3, 4], [5, 6]]))
    tokens = torch.cat([torch.tensor([7]), picture, torch.tensor([8, 18, 21, 23, 10])])
    wanted = [TEXT, HEIGHT, WIDTH, *[IMAGE] * 6, END, TEXT, TEXT, HEIGHT, WIDTH, IMAGE, IMAGE]
    found = [int(next_kinds(tokens[None, :n], WORDS)[0]) for n in range(1, len(tokens) + 1)]
    assert found == wanted


def allowed(
    rows: list[list[int]], sizes: list[tuple[int, int]], max_length: int
) -> list[list[int]]:
    scores = torch.randn(len(rows), WORDS.size)
    out = ImageGrid(WORDS, sizes, max_length)(torch.tensor(rows), scores)
    return [row.isfinite().nonzero()[:, 0].tolist() for row in out]


def test_only_whole_pictures_may_be_written() -> None:
    text, sizes = list(range(9)), [(1, 2), (3, 1)]
    rows = [[1, 2, 3], [1, 2, 18], [1, 18, 20], [18, 20, 24], [18, 22, 23]]
    assert allowed(rows, sizes, 50) == [
        [*text, 18],
        [20, 22],
        [24],
        list(range(10, 18)),
        list(range(10, 18)),
    ]
    assert allowed([[18, 20, 24, 10, 11], [18, 22, 23, 10, 11]], sizes, 50) == [
        [19],
        list(range(10, 18)),
    ]
    assert allowed([[18, 20, 23, 10, 19]], [], 50) == [text]


def test_no_picture_is_begun_that_would_not_end() -> None:
    sizes, text = [(1, 2), (3, 1)], list(range(9))
    assert [18 in allowed([[1]], sizes, 1 + left)[0] for left in (5, 6, 7)] == [False, True, True]
    assert allowed([[18]], sizes, 1 + 5) == [[20]]
    assert allowed([[18]], sizes, 1 + 6) == [[20, 22]]
    assert allowed([[18, 20]], sizes, 2 + 4) == [[24]]
    assert allowed([[1]], [(3, 3)], 13) == [text] and allowed([[1]], [(3, 3)], 14) != [text]


def test_the_end_is_forced_whatever_the_model_says() -> None:
    scores = torch.full((1, WORDS.size), -torch.inf)
    out = ImageGrid(WORDS, [], 50)(torch.tensor([[18, 20, 23, 10]]), scores)
    assert int(out.argmax()) == WORDS.end and out.max() == 0


def test_both_levels_together_are_the_joint_distribution() -> None:
    rows = 4000
    scores = torch.randn(1, WORDS.size, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[18, 20, 24]]).expand(rows, -1)
    drawn = Draw(WORDS, Sampling(), 0, rows)(tokens, scores.expand(rows, -1)).argmax(dim=-1)
    found = torch.bincount(drawn, minlength=WORDS.size)[10:18] / rows
    assert torch.allclose(found, scores[0, 10:18].softmax(dim=-1), atol=0.03)
    assert drawn.min() >= 10 and drawn.max() < 18


def test_each_level_has_its_own_sampling() -> None:
    # Semantic 0 is likeliest (0.3 + 0.3), though the likeliest id is of semantic 1 (0.4 + 0).
    probs = torch.zeros(8).index_put((torch.tensor([0, 1, 2]),), torch.tensor([0.31, 0.29, 0.4]))
    scores = torch.zeros(400, WORDS.size)
    scores[:, 10:18] = (probs + 1e-9).log()
    tokens = torch.tensor([[18, 20, 24]]).expand(400, -1)
    cold = Level(temperature=0.0)
    for sampling, wanted in [
        (Sampling(semantic=cold, pixel=cold), {10}),
        (Sampling(semantic=cold), {10, 11}),
        (Sampling(pixel=cold), {10, 12}),
        (Sampling(text=cold), {10, 11, 12}),
    ]:
        drawn = Draw(WORDS, sampling, 0, 400)(tokens, scores).argmax(dim=-1)
        assert set(drawn.tolist()) == wanted


def test_guidance_mixes_the_halves_of_pictures_alone() -> None:
    tokens = torch.tensor([[18, 20, 24], [1, 2, 3], [18, 20, 24], [1, 2, 3]])
    scores = torch.randn(4, WORDS.size)
    mixed = Guidance(WORDS, 3.0)(tokens, scores)
    wanted = scores[2] + 3 * (scores[0] - scores[2])
    assert torch.allclose(mixed[0], wanted, atol=1e-5) and torch.equal(mixed[0], mixed[2])
    assert torch.equal(mixed[1], scores[1]) and torch.equal(mixed[3], scores[1])


# -- drawing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("image_head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_cached_and_uncached_draw_the_same(
    make_unified: Make, family: str, image_head: str, guidance: float
) -> None:
    model = make_unified(family, image_head=image_head)
    sampling = Sampling(guidance=guidance, semantic=Level(top_k=12), pixel=Level(top_p=0.9))
    cached = draw(model, PROMPTS, SIZES, sampling=sampling, seed=5)
    assert [tuple(grid.shape) for grid in cached] == SIZES
    fed = []
    model.language.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    model.generation_config.use_cache = False
    assert same(draw(model, PROMPTS, SIZES, sampling=sampling, seed=5), cached)
    assert fed == list(range(8, 8 + 6))


def test_the_cache_is_used(make_unified: Make) -> None:
    model = make_unified()
    fed = []
    model.language.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(tuple(kwargs["inputs_embeds"].shape[:2])),
        with_kwargs=True,
    )
    draw(model, PROMPTS, (2, 2), sampling=Sampling(guidance=2.0))
    assert fed == [(6, 8), (6, 1), (6, 1), (6, 1)]


def test_seeds_reproduce(make_unified: Make) -> None:
    model = make_unified()
    first = draw(model, PROMPTS, (3, 3), seed=7)
    assert same(draw(model, PROMPTS, (3, 3), seed=7), first)
    assert not same(draw(model, PROMPTS, (3, 3), seed=8), first)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(model, PROMPTS, (3, 3), seed=7)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_prompt_draws_the_same_by_itself(make_unified: Make, guidance: float) -> None:
    model, sampling = make_unified(), Sampling(guidance=guidance)
    together = draw(model, PROMPTS, SIZES, sampling=sampling, seed=7)
    for row, prompt in enumerate(PROMPTS):
        alone = draw(model, [prompt], SIZES[row], sampling=sampling, seed=7 + row)
        assert same(alone, together[row : row + 1])


def by_hand(model: UnifiedModel, prompt: Tensor, size: tuple[int, int], scale: float) -> list[int]:
    """Greedy and guided, both contexts apart, whole and without a cache."""
    words = model.vocabulary
    start, ids = words.opening(*size), torch.empty(0, dtype=torch.int64)
    for _ in range(size[0] * size[1]):
        says = []
        for context in (torch.cat([prompt, start, ids]), torch.cat([start, ids])):
            log_probs = model(context[None]).logits[0, -1]
            says.append(log_probs[words.image_offset : words.marker_offset].log_softmax(-1))
        mixed = (says[1] + scale * (says[0] - says[1])).view(16, 4)
        i = int(mixed.logsumexp(-1).argmax())
        token = words.image_offset + 4 * i + int(mixed[i].argmax())
        ids = torch.cat([ids, torch.tensor([token])])
    return [int(i) for i in words.to_ids(ids)]


@pytest.mark.parametrize("image_head", HEADS)
def test_guidance_is_the_formula_by_hand(make_unified: Make, image_head: str) -> None:
    model = make_unified(image_head=image_head)
    drawn = {}
    for scale in (1.0, 4.0):
        sampling = Sampling(GREEDY.text, GREEDY.semantic, GREEDY.pixel, scale)
        grids = draw(model, PROMPTS, (2, 3), sampling=sampling)
        drawn[scale] = [grid.flatten().tolist() for grid in grids]
        assert drawn[scale] == [by_hand(model, prompt, (2, 3), scale) for prompt in PROMPTS]
    assert drawn[1.0] != drawn[4.0]


def test_guidance_of_one_is_none(make_unified: Make) -> None:
    model = make_unified()
    sampling = Sampling(guidance=1.0)
    assert same(
        draw(model, PROMPTS, (2, 3), sampling=sampling, unconditional=torch.tensor([1])),
        draw(model, PROMPTS, (2, 3)),
    )


def test_a_prompt_with_a_picture_in_it(make_unified: Make) -> None:
    model = make_unified()
    seen = model.vocabulary.layout(torch.tensor([[1, 63], [7, 0]]))
    prompts = [torch.cat([seen, PROMPTS[0]]), PROMPTS[1], torch.empty(0, dtype=torch.int64)]
    assert [tuple(grid.shape) for grid in draw(model, prompts, (2, 4))] == [(2, 4)] * 3
    with pytest.raises(FormatError, match="says 2x2 = 4 ids and an end, but is cut off after 4"):
        draw(model, [seen[:-1]], (2, 2))
    with pytest.raises(IdError, match=r"token 122 at \(0,\) is outside the vocabulary"):
        draw(model, [torch.tensor([122])], (2, 2))


def test_sizes(make_unified: Make) -> None:
    model = make_unified()
    assert draw(model, [], (1, 1)) == []
    with pytest.raises(RangeError, match="2 sizes for 3 prompts; give one for all, or one each"):
        draw(model, PROMPTS, SIZES[:2])
    with pytest.raises(RangeError, match="picture of 9x1 patches; sides from 1 to 8"):
        draw(model, PROMPTS, (9, 1))
    with pytest.raises(RangeError, match="picture of 9x1 patches; sides from 1 to 8"):
        reply(model, PROMPTS, sizes=[(9, 1)], max_new_tokens=5, stop=[1])


@pytest.mark.parametrize("image_head", HEADS)
def test_what_was_learned_is_drawn(make_unified: Make, image_head: str) -> None:
    """A word, the picture that follows it, and the word after that."""
    model = make_unified(image_head=image_head).train()
    words, random = model.vocabulary, torch.Generator().manual_seed(0)
    grids = [torch.randint(64, (2, 3), generator=random) for _ in PROMPTS[:2]]
    taught = [
        words.join([torch.tensor([3 + row]), grid, torch.tensor([20 + row, 1])])
        for row, grid in enumerate(grids)
    ]
    tokens = torch.stack(taught)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
    model.eval()
    prompts = [torch.tensor([3]), torch.tensor([4])]
    assert same(draw(model, prompts, (2, 3), sampling=GREEDY), grids)
    replies = reply(
        model, prompts, sizes=[(2, 3), (3, 3)], max_new_tokens=20, stop=[1], sampling=GREEDY
    )
    for row, one in enumerate(replies):
        assert same(one, [grids[row], torch.tensor([20 + row])])


# -- replies -----------------------------------------------------------------------------------


def likes_pictures(model: UnifiedModel) -> None:
    """Lifts the begin marker: a random model would seldom open a picture."""
    lift = torch.zeros(model.vocabulary.num_markers + 1)
    lift[0] = 3
    model.marker_head.register_forward_hook(lambda _, inputs, logits: logits + lift)


@pytest.mark.parametrize("image_head", HEADS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_reply_has_text_and_whole_pictures(
    make_unified: Make, image_head: str, guidance: float
) -> None:
    model = make_unified(image_head=image_head)
    likes_pictures(model)
    options = dict(sizes=[(1, 2), (2, 2)], stop=[1], sampling=Sampling(guidance=guidance))
    unconditional = torch.tensor([0])
    pieces = []
    for tokens in (12, 13, 40):
        for seed in range(3):
            replies = reply(
                model,
                PROMPTS,
                max_new_tokens=tokens,
                seed=seed,
                unconditional=unconditional,
                **options,
            )
            pieces += [piece for one in replies for piece in one]
            for one in replies:
                assert len(model.vocabulary.join(one)) <= tokens
    texts = torch.cat([piece for piece in pieces if piece.ndim == 1])
    assert texts.max() < 37 and not (texts == 1).any()
    assert {tuple(p.shape) for p in pieces if p.ndim == 2} == {(1, 2), (2, 2)}
    assert len(texts) > 100


def test_replies_without_pictures_stop_and_reproduce(make_unified: Make) -> None:
    model = make_unified()
    options = dict(sizes=[], max_new_tokens=30, stop=list(range(10)), seed=3)
    replies = reply(model, PROMPTS, **options)
    assert all(len(one) <= 1 and all((p >= 10).all() for p in one) for one in replies)
    again = reply(model, PROMPTS, **options)
    assert all(same(a, b) for a, b in zip(replies, again, strict=True))
    assert any(0 < len(p) < 30 for one in replies for p in one)


def test_cached_and_uncached_reply_the_same(make_unified: Make) -> None:
    model = make_unified()
    likes_pictures(model)
    options = dict(sizes=[(1, 2), (2, 2)], max_new_tokens=30, stop=[1], seed=3)
    cached = reply(model, PROMPTS, **options)
    model.generation_config.use_cache = False
    assert all(same(a, b) for a, b in zip(reply(model, PROMPTS, **options), cached, strict=True))
    assert any(piece.ndim == 2 for one in cached for piece in one)


def test_impossible_replies(make_unified: Make) -> None:
    model = make_unified()
    options = dict(sizes=[], max_new_tokens=3, stop=[1])
    with pytest.raises(RangeError, match="a prompt is empty; a reply needs at least one token"):
        reply(model, [torch.empty(0, dtype=torch.int64)], **options)
    with pytest.raises(RangeError, match="guidance is 2.0; a reply needs the unconditional prompt"):
        reply(model, PROMPTS, sampling=Sampling(guidance=2.0), **options)


def test_beams_write_whole_pictures(make_unified: Make) -> None:
    model = make_unified()
    words = model.vocabulary
    start = torch.cat([PROMPTS[0], words.opening(2, 2)])[None]
    grid = LogitsProcessorList([ImageGrid(words, [(2, 2)], 10)])
    options = dict(num_beams=3, do_sample=False, eos_token_id=words.end, pad_token_id=0)
    found = model.generate(
        start,
        attention_mask=torch.ones_like(start),
        logits_processor=grid,
        max_new_tokens=5,
        **options,
    )
    assert words.parse(found[0])[-1].shape == (2, 2)
