"""Pictures and replies by `transformers`' own `generate`.

The model gives its hidden states in place of logits, and `Draw` makes of them what each row needs.
So processors of one's own and beams have nothing to work on in `draw` and `reply`; by itself
`model.generate` has log-probabilities of the whole vocabulary, for both, but nothing that holds a
picture together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from transformers import LogitsProcessorList

from semhitok.errors import RangeError
from semhitok.lm.drawing import Draw, ImageGrid, OwnPicture, Size
from semhitok.lm.listening import Listener, Telling
from semhitok.lm.model import UnifiedModel
from semhitok.lm.sampling import Sampling
from semhitok.lm.vocabulary import Piece, Vocabulary


@torch.inference_mode()
def draw(
    model: UnifiedModel,
    prompts: Sequence[Int64[Tensor, "..."]],
    sizes: Size | Sequence[Size],
    *,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    unconditional: Int64[Tensor, " u"] | None = None,
    listener: Listener | None = None,
) -> list[Int64[Tensor, "..."]]:
    """A picture for each prompt, as a grid of the tokenizer's ids.

    Args:
        prompts: tokens of text, and of whole pictures if there are any; may be empty.
        sizes: one for all, or one a prompt.
        seed: prompt r draws with seed + r, or with its own where there is one a prompt; with that
            it draws the same by itself.
        unconditional: the prompt of guidance's other half, as in training; None for an empty one.
        listener: is told of each row of patches as it is drawn.

    Raises:
        RangeError: a side that no marker names, or not as many sizes or seeds as prompts.
        FormatError: a prompt with a broken picture.
        IdError: a prompt with a token outside the vocabulary.
    """
    words, sampling = model.vocabulary, sampling or Sampling()
    each = _one_a_prompt(sizes, len(prompts))
    starts = [_prompt(words, p, words.opening(*s)) for p, s in zip(prompts, each, strict=True)]
    if sampling.guidance != 1:
        empty = torch.empty(0, dtype=torch.int64)
        bare = unconditional if unconditional is not None else empty
        starts += [_prompt(words, bare, words.opening(*s)) for s in each]
    longest = max((h * w for h, w in each), default=0)
    # A smaller picture than the largest is done at its end marker.
    seeds = _seeds(seed, len(prompts))
    written = _generate(model, starts, seeds, (), sampling, longest, [words.end], listener)
    grids = [row[: h * w].view(h, w) for row, (h, w) in zip(written, each, strict=True)]
    return [words.to_ids(grid) for grid in grids]


@torch.inference_mode()
def reply(
    model: UnifiedModel,
    prompts: Sequence[Int64[Tensor, "..."]],
    *,
    sizes: Sequence[Size],
    max_new_tokens: int,
    stop: Sequence[int],
    sampling: Sampling | None = None,
    seed: int = 0,
    unconditional: Int64[Tensor, " u"] | None = None,
    listener: Listener | None = None,
) -> list[list[Piece]]:
    """Text and pictures after each prompt, as the model likes; every picture is whole.

    Args:
        prompts: tokens of text and whole pictures; none is empty.
        sizes: what pictures may have; none, and there is only text.
        max_new_tokens: a picture that would not end within them is not begun.
        stop: text ids that end a reply; they are not part of it.
        seed: prompt r draws with seed + r, and so draws the same by itself.
        unconditional: the prompt of guidance's other half, which reads nothing else but the ids
            of the picture that is being drawn: neither the prompt nor the reply's text.
        listener: is told of text and of rows of patches as they are written.

    Raises:
        RangeError: an empty prompt, a side that no marker names, or guidance without
            `unconditional`.
        FormatError: a prompt with a broken picture.
        IdError: a prompt with a token outside the vocabulary.
    """
    words, sampling = model.vocabulary, sampling or Sampling()
    for size in sizes:
        words.check_side(*size)
    starts = [_prompt(words, prompt) for prompt in prompts]
    if sampling.guidance != 1:
        if unconditional is None:
            raise RangeError(
                f"guidance is {sampling.guidance}; a reply needs the unconditional prompt for it"
            )
        starts += [_prompt(words, unconditional)] * len(prompts)
    if any(len(start) == 0 for start in starts):
        raise RangeError("a prompt is empty; a reply needs at least one token to follow")
    seeds = _seeds(seed, len(prompts))
    written = _generate(model, starts, seeds, sizes, sampling, max_new_tokens, stop, listener)
    return [words.parse(_until(row, stop)) for row in written]


def _generate(
    model: UnifiedModel,
    starts: Sequence[Tensor],
    seeds: Sequence[int],
    sizes: Sequence[Size],
    sampling: Sampling,
    max_new_tokens: int,
    stop: Sequence[int],
    listener: Listener | None,
) -> list[Tensor]:
    """The new tokens of each seed's row; all starts are a batch, twice as many where guided."""
    rows = len(seeds)
    if rows == 0:
        return []
    words = model.vocabulary
    length = max(len(start) for start in starts)
    # Padded on the left with any text id: the mask hides it.
    tokens = torch.zeros(len(starts), length, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, start in enumerate(starts):
        tokens[row, length - len(start) :] = start
        mask[row, length - len(start) :] = 1
    grid = ImageGrid(words, sizes, length + max_new_tokens)
    written = model.generate(
        tokens.to(model.device),
        attention_mask=mask.to(model.device),
        read_out=nn.Identity(),
        context=OwnPicture(words, rows, length) if len(starts) > rows else None,
        logits_processor=LogitsProcessorList([Draw(model, grid, sampling, seeds)]),
        streamer=Telling(words, listener, rows, stop) if listener else None,
        do_sample=False,  # `Draw` has drawn
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop),
        pad_token_id=0,
    )
    return list(cast(Tensor, written)[:rows, length:])


def _prompt(words: Vocabulary, prompt: Tensor, *more: Tensor) -> Tensor:
    """A prompt that is sure to be text and whole pictures, and what is to stand after it."""
    prompt = prompt.cpu()
    words.parse(prompt)
    return torch.cat([prompt, *more])


def _one_a_prompt(sizes: Size | Sequence[Size], prompts: int) -> list[Size]:
    if sizes and isinstance(sizes[0], int):
        return [cast(Size, sizes)] * prompts
    if len(sizes) != prompts:
        raise RangeError(f"{len(sizes)} sizes for {prompts} prompts; give one for all, or one each")
    return list(cast(Sequence[Size], sizes))


def _seeds(seed: int | Sequence[int], prompts: int) -> list[int]:
    if isinstance(seed, int):
        return list(range(seed, seed + prompts))
    if len(seed) != prompts:
        raise RangeError(f"{len(seed)} seeds for {prompts} prompts; give one for all, or one each")
    return list(seed)


def _until(tokens: Tensor, stop: Sequence[int]) -> Tensor:
    """The tokens before the first that stops."""
    stops = torch.isin(tokens, torch.tensor(list(stop), device=tokens.device)).nonzero()
    return tokens[: int(stops[0])] if len(stops) else tokens
