from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from semhitok.errors import FormatError, IdError, RangeError
from semhitok.lm.generation import draw, reply
from semhitok.lm.model import UnifiedModel
from semhitok.lm.sampling import Level, Sampling

Make = Callable[..., UnifiedModel]
FAMILIES = ["qwen3", "qwen2", "llama"]
HEADS = ["flat", "factorised"]
PROMPTS = [torch.tensor([3, 7]), torch.tensor([5]), torch.tensor([9, 4, 11, 2, 6])]
SIZES = [(2, 3), (1, 1), (3, 2)]
NOTHING = torch.empty(0, dtype=torch.int64)
COLD = Level(temperature=0.0)
GREEDY = Sampling(COLD, COLD, COLD)


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


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


def by_hand(
    model: UnifiedModel,
    prompt: Tensor,
    size: tuple[int, int],
    scale: float,
    unconditional: Tensor = NOTHING,
) -> list[int]:
    """Greedy and guided level by level, both contexts apart, whole and without a cache."""
    words = model.vocabulary
    start, ids = words.opening(*size), torch.empty(0, dtype=torch.int64)
    for _ in range(size[0] * size[1]):
        says = []
        for context in (prompt, unconditional):
            log_probs = model(torch.cat([context, start, ids])[None]).logits[0, -1]
            block = log_probs[words.image_offset : words.marker_offset].log_softmax(-1)
            says.append(block.view(16, 4))
        semantic = [one.logsumexp(-1) for one in says]
        i = int((semantic[1] + scale * (semantic[0] - semantic[1])).argmax())
        pixel = [one[i].log_softmax(-1) for one in says]
        j = int((pixel[1] + scale * (pixel[0] - pixel[1])).argmax())
        ids = torch.cat([ids, torch.tensor([words.image_offset + 4 * i + j])])
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


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_in_a_reply_is_the_formula_by_hand(make_unified: Make, family: str) -> None:
    """Of each picture: all before it against the unconditional prompt and nothing more."""
    model = make_unified(family)
    likes_pictures(model)
    words, unconditional = model.vocabulary, torch.tensor([2, 6, 2])
    options = dict(
        sizes=[(1, 3), (2, 2)],
        max_new_tokens=60,
        stop=[39],  # never: the text tokenizer has no such id
        sampling=Sampling(Level(), COLD, COLD, 3.0),
        seed=1,
        unconditional=unconditional,
    )
    replies = reply(model, PROMPTS, **options)
    after_text = later = 0
    for prompt, pieces in zip(PROMPTS, replies, strict=True):
        for n, grid in enumerate(pieces):
            if grid.ndim == 2:
                before = torch.cat([prompt, words.join(pieces[:n])])
                size = tuple(grid.shape)
                wanted = by_hand(model, before, size, 3.0, unconditional)
                assert grid.flatten().tolist() == wanted
                after_text += n > 0
                later += any(piece.ndim == 2 for piece in pieces[:n])
    assert after_text > 3 and later > 3
    model.generation_config.use_cache = False
    again = reply(model, PROMPTS, **options)
    assert all(same(a, b) for a, b in zip(again, replies, strict=True))


def test_impossible_replies(make_unified: Make) -> None:
    model = make_unified()
    options = dict(sizes=[], max_new_tokens=3, stop=[1])
    with pytest.raises(RangeError, match="a prompt is empty; a reply needs at least one token"):
        reply(model, [torch.empty(0, dtype=torch.int64)], **options)
    with pytest.raises(RangeError, match="guidance is 2.0; a reply needs the unconditional prompt"):
        reply(model, PROMPTS, sampling=Sampling(guidance=2.0), **options)


def test_by_itself_the_model_is_one_of_the_library(make_unified: Make) -> None:
    """Log-probabilities of the whole vocabulary: beams, and processors of one's own."""
    model = make_unified()
    start = PROMPTS[0][None]
    options = dict(
        attention_mask=torch.ones_like(start),
        do_sample=False,
        max_new_tokens=4,
        eos_token_id=None,
        pad_token_id=0,
    )
    greedy = model.generate(start, **options)[0]
    for n in range(2, 6):
        assert greedy[n] == model(greedy[None, :n]).logits[0, -1].argmax()
    no_text = list(range(37, model.vocabulary.size))
    found = model.generate(
        start,
        num_beams=37,
        suppress_tokens=no_text,
        **{**options, "max_new_tokens": 2},
    )
    pairs = torch.cartesian_prod(torch.arange(37), torch.arange(37))
    every = torch.cat([start.expand(len(pairs), -1), pairs], dim=1)
    says = model(every, logits_to_keep=0).logits
    joint = says[:, 1].gather(1, pairs[:, :1]) + says[:, 2].gather(1, pairs[:, 1:])
    assert found[0, 2:].tolist() == pairs[int(joint.argmax())].tolist()


def test_a_seed_a_prompt(make_unified: Make) -> None:
    model = make_unified()
    together = draw(model, PROMPTS, SIZES, seed=[40 + row for row in range(len(PROMPTS))])
    assert same(draw(model, PROMPTS, SIZES, seed=40), together)
    backwards = draw(
        model, PROMPTS[::-1], SIZES[::-1], seed=list(range(40, 40 + len(PROMPTS)))[::-1]
    )
    assert same(backwards[::-1], together)
    with pytest.raises(RangeError, match="1 seeds for .* prompts; give one for all, or one each"):
        draw(model, PROMPTS, SIZES, seed=[1])
