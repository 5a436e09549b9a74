"""Pictures and replies by `transformers`' own `generate`: what may come next, and how it is drawn.

Three processors, in this order: `Guidance` mixes what the model says with and without the prompt,
`ImageGrid` lets only whole pictures through, `Draw` draws a token level by level. What comes next
they read off the tokens so far: batches need no bookkeeping, and `ImageGrid` serves beams as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from semhitok.errors import RangeError
from semhitok.lm.model import UnifiedModel
from semhitok.lm.vocabulary import Piece, Vocabulary

TEXT, HEIGHT, WIDTH, IMAGE, END = range(5)
"""What comes next: text or the begin of a picture, or the next part of an open picture."""
Size = tuple[int, int]
"""Height and width of a picture in patches."""


@dataclass(frozen=True)
class Level:
    """How one level is drawn."""

    temperature: float = 1.0
    """0 takes the likeliest."""
    top_k: int | None = None
    """Only the k likeliest."""
    top_p: float = 1.0
    """Only the likeliest that together reach this share, the one that reaches it included."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise RangeError(f"temperature is {self.temperature}; it must be at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise RangeError(f"top_k is {self.top_k}; it must be at least 1, or None for all")
        if not 0 < self.top_p <= 1:
            raise RangeError(f"top_p is {self.top_p}; it must be in (0, 1]")

    def pick(
        self, scores: Float[Tensor, "n choices"], uniform: Float[Tensor, " n"]
    ) -> Int64[Tensor, " n"]:
        """One choice a row, of log-probabilities (any constant added) and numbers in [0, 1)."""
        if self.temperature == 0:
            return scores.argmax(dim=-1)
        # In float64: a sum over 200,000 choices must not lose the rare ones.
        probs = torch.softmax(scores.double() / self.temperature, dim=-1)
        order = None
        if self.top_k is not None or self.top_p < 1:
            probs, order = probs.sort(dim=-1, descending=True, stable=True)
            before = probs.cumsum(dim=-1) - probs
            keep = before < self.top_p
            if self.top_k is not None:
                keep[:, self.top_k :] = False
            probs = probs * keep
        reached = probs.cumsum(dim=-1)
        target = uniform.to(reached)[:, None] * reached[:, -1:]
        picked = torch.searchsorted(reached, target, right=True)
        return (picked if order is None else order.gather(1, picked))[:, 0]


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn: each level for itself."""

    text: Level = field(default_factory=Level)
    """Text ids, and the markers where the model may choose them."""
    semantic: Level = field(default_factory=Level)
    """Semantic codes, by their marginal p(i)."""
    pixel: Level = field(default_factory=Level)
    """Pixel codes, by p(j | i) of the semantic code that was drawn."""
    guidance: float = 1.0
    """Classifier-free guidance of image ids; 1 is none."""


def next_kinds(
    tokens: Int64[Tensor, "b t"], words: Vocabulary
) -> tuple[Int64[Tensor, " b"], Int64[Tensor, " b"]]:
    """What comes next in each row (TEXT, HEIGHT, ...), and the last token if that was a height.

    Pictures in the rows are whole, but for the last, which may be open.
    """
    length = tokens.shape[1]
    places = torch.arange(length, device=tokens.device)
    begin = torch.where(tokens == words.begin, places, -1).amax(dim=1)
    since = length - 1 - begin

    def after(place: int, offset: int) -> Tensor:
        found = tokens.gather(1, (begin + place).clamp(max=length - 1)[:, None])[:, 0]
        return (found - offset + 1).clamp(1, words.max_side)

    height, width = after(1, words.height_offset), after(2, words.width_offset)
    written = since - 2 - height * width
    kinds = torch.full_like(begin, TEXT)
    kinds[written < 0] = IMAGE
    kinds[written == 0] = END
    kinds[since == 0] = HEIGHT
    kinds[since == 1] = WIDTH
    kinds[begin < 0] = TEXT
    return kinds, height


class Guidance(LogitsProcessor):
    """Classifier-free guidance of image ids, both halves in one batch with one cache.

    Of 2 n rows the first n are conditional, the last n unconditional; both get the n rows of
    u + scale (c - u), and `Draw` draws once for both. (The library's own guidance runs the model
    a second time each step, with a cache of its own.)
    """

    def __init__(self, words: Vocabulary, scale: float) -> None:
        self.words, self.scale = words, scale

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        conditional, unconditional = scores.chunk(2)
        kinds, _ = next_kinds(input_ids[: len(conditional)], self.words)
        mixed = torch.lerp(unconditional, conditional, self.scale)
        mixed = torch.where((kinds == IMAGE)[:, None], mixed, conditional)
        return torch.cat([mixed, mixed])


class ImageGrid(LogitsProcessor):
    """Lets only whole pictures through: begin, height, width, exactly h * w image ids, end.

    Between pictures, text ids that the text tokenizer knows, and the begin of a picture for which
    there is room.
    """

    def __init__(self, words: Vocabulary, sizes: Sequence[Size], max_length: int) -> None:
        """Args:
        sizes: what pictures the model may open by itself; none, and it writes text alone.
        max_length: tokens in all, those of the prompt included.
        """
        self.words, self.sizes, self.max_length = words, tuple(sizes), max_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        words = self.words
        kinds, heights = next_kinds(input_ids, words)
        # With height and width still to come, a picture takes two more, and one more with its end.
        room = self.max_length - input_ids.shape[1] - 3
        fitting = [(h, w) for h, w in self.sizes if h * w <= room]
        allowed = torch.full_like(scores, -torch.inf)

        def allow(rows: Tensor, start: int, stop: int) -> None:
            allowed[rows, start:stop] = scores[rows, start:stop]

        text = kinds == TEXT
        allow(text, 0, words.text_length)
        if any(h * w <= room - 1 for h, w in self.sizes):
            allow(text, words.begin, words.begin + 1)
        allow(kinds == IMAGE, words.image_offset, words.marker_offset)
        # Forced, and so likely whatever the model says of it.
        allowed[kinds == END, words.end] = 0
        for height in {h for h, _ in fitting}:
            token = words.height_offset + height - 1
            allow(kinds == HEIGHT, token, token + 1)
        for height, width in {(h, w) for h, w in self.sizes if h * w <= room + 1}:
            token = words.width_offset + width - 1
            allow((kinds == WIDTH) & (heights == height), token, token + 1)
        return allowed


class Draw(LogitsProcessor):
    """Draws each row's token and leaves only that: semantic code, then pixel code, or text.

    In a processor rather than in `generate`, so that pixel codes are drawn and filtered among the m
    of one parent, both halves of a guided batch get the same token, and each row has random numbers
    of its own: what row r draws with seed s, it draws alone with seed s + r.
    """

    def __init__(self, words: Vocabulary, sampling: Sampling, seed: int, rows: int) -> None:
        self.words, self.sampling = words, sampling
        self.random = [torch.Generator().manual_seed(seed + row) for row in range(rows)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = len(self.random)
        uniform = torch.stack([torch.rand(2, generator=random) for random in self.random])
        tokens = self._tokens(input_ids[:rows], scores[:rows], uniform.to(scores.device))
        tokens = tokens.repeat(len(scores) // rows)
        drawn = torch.full_like(scores, -torch.inf)
        return drawn.scatter(1, tokens[:, None], 0.0)

    def _tokens(self, input_ids: Tensor, scores: Tensor, uniform: Tensor) -> Tensor:
        words, sampling = self.words, self.sampling
        image = next_kinds(input_ids, words)[0] == IMAGE
        tokens = torch.empty_like(input_ids[:, 0])
        tokens[~image] = sampling.text.pick(scores[~image], uniform[~image, 0])
        block = scores[image, words.image_offset : words.marker_offset]
        block = block.unflatten(-1, (words.num_semantic, words.num_pixel))
        first, second = uniform[image].unbind(-1)
        semantic = sampling.semantic.pick(block.logsumexp(dim=-1), first)
        siblings = block[torch.arange(len(block), device=block.device), semantic]
        pixel = sampling.pixel.pick(siblings, second)
        tokens[image] = words.image_offset + semantic * words.num_pixel + pixel
        return tokens


@torch.inference_mode()
def draw(
    model: UnifiedModel,
    prompts: Sequence[Int64[Tensor, "..."]],
    sizes: Size | Sequence[Size],
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    unconditional: Int64[Tensor, " u"] | None = None,
) -> list[Int64[Tensor, "..."]]:
    """A picture for each prompt, as a grid of the tokenizer's ids.

    Args:
        prompts: tokens of text, and of whole pictures if there are any; may be empty.
        sizes: one for all, or one a prompt.
        seed: prompt r draws with seed + r, and so draws the same by itself.
        unconditional: the prompt of guidance's other half, as in training; None for an empty one.

    Raises:
        RangeError: a side that no marker names, or not as many sizes as prompts.
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
    written = _generate(model, starts, len(prompts), (), sampling, seed, longest, [words.end])
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
) -> list[list[Piece]]:
    """Text and pictures after each prompt, as the model likes; every picture is whole.

    Args:
        prompts: tokens of text and whole pictures; none is empty.
        sizes: what pictures may have; none, and there is only text.
        max_new_tokens: a picture that would not end within them is not begun.
        stop: text ids that end a reply; they are not part of it.
        seed: prompt r draws with seed + r, and so draws the same by itself.
        unconditional: the prompt of guidance's other half, which then reads the same reply.

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
    written = _generate(model, starts, len(prompts), sizes, sampling, seed, max_new_tokens, stop)
    return [words.parse(_until(row, stop)) for row in written]


def _generate(
    model: UnifiedModel,
    starts: Sequence[Tensor],
    rows: int,
    sizes: Sequence[Size],
    sampling: Sampling,
    seed: int,
    max_new_tokens: int,
    stop: Sequence[int],
) -> list[Tensor]:
    """The new tokens of the first `rows`; all starts are a batch, twice as many where guided."""
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
    processors = LogitsProcessorList()
    if len(starts) > rows:
        processors.append(Guidance(words, sampling.guidance))
    processors.append(ImageGrid(words, sizes, length + max_new_tokens))
    processors.append(Draw(words, sampling, seed, rows))
    written = model.generate(
        tokens.to(model.device),
        attention_mask=mask.to(model.device),
        logits_processor=processors,
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


def _until(tokens: Tensor, stop: Sequence[int]) -> Tensor:
    """The tokens before the first that stops."""
    stops = torch.isin(tokens, torch.tensor(list(stop), device=tokens.device)).nonzero()
    return tokens[: int(stops[0])] if len(stops) else tokens
