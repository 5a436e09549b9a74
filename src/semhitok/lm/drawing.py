"""What may come next in a reply, and how it is drawn: inside `transformers`' own `generate`.

What comes next is read off the tokens so far, so that batches need no bookkeeping.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers import LogitsProcessor

from semhitok.lm.model import UnifiedModel
from semhitok.lm.sampling import Sampling
from semhitok.lm.vocabulary import Vocabulary

TEXT, HEIGHT, WIDTH, IMAGE, END = range(5)
"""What comes next: text or the begin of a picture, or the next part of an open picture."""
Size = tuple[int, int]
"""Height and width of a picture in patches."""


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


class ImageGrid:
    """Only whole pictures: begin, height, width, exactly h * w image ids, end.

    Between pictures, text ids that the text tokenizer knows, and the begin of a picture for which
    there is room.
    """

    def __init__(self, words: Vocabulary, sizes: Sequence[Size], max_length: int) -> None:
        """Args:
        sizes: what pictures the model may open by itself; none, and it writes text alone.
        max_length: tokens in all, those of the prompt included.
        """
        self.words, self.sizes, self.max_length = words, tuple(sizes), max_length

    def allowed(
        self, kinds: Int64[Tensor, " n"], heights: Int64[Tensor, " n"], length: int
    ) -> Bool[Tensor, "n text_and_markers"]:
        """Which text ids and markers may follow `length` tokens, for rows outside a picture's ids.

        Args:
            kinds: TEXT, HEIGHT or WIDTH, as `next_kinds` gives them, with `heights`.
        """
        words = self.words
        markers = words.text_size  # where they begin, with no image ids before them
        # With height and width still to come, a picture takes two more, and one more with its end.
        room = self.max_length - length - 3
        allowed = kinds.new_zeros(len(kinds), words.text_size + words.num_markers, dtype=torch.bool)
        allowed[kinds == TEXT, : words.text_length] = True
        if any(h * w <= room - 1 for h, w in self.sizes):
            allowed[kinds == TEXT, markers] = True
        for height in {h for h, w in self.sizes if h * w <= room}:
            allowed[kinds == HEIGHT, markers + 2 + height - 1] = True
        for height, width in {(h, w) for h, w in self.sizes if h * w <= room + 1}:
            rows = (kinds == WIDTH) & (heights == height)
            allowed[rows, markers + 2 + words.max_side + width - 1] = True
        return allowed


class OwnPicture:
    """What guidance's other half reads: its prompt, and of the reply the latest picture alone.

    The reply's text is of the prompt that this half must not know ("A goldfish:"), and so are
    earlier pictures. In training it had nothing between its prompt and the picture.
    """

    def __init__(self, words: Vocabulary, rows: int, prompt_length: int) -> None:
        """Of the batch the first `rows` read everything; all prompts have `prompt_length`."""
        self.words, self.rows, self.prompt_length = words, rows, prompt_length

    def __call__(self, tokens: Int64[Tensor, "b t"], mask: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        begin = torch.where(tokens == self.words.begin, places, -1).amax(dim=1, keepdim=True)
        unread = (places >= self.prompt_length) & (places < begin)
        unread[: self.rows] = False
        return mask.masked_fill(unread, 0)


class Draw(LogitsProcessor):
    """Draws each row's token from its hidden state, which `generate` is to pass as its scores.

    In a picture: a semantic code by p(i), then a pixel code by p(j | i) among the m children of
    that one. So neither text nor the other children are ever scored there, and each level is
    sampled by itself. Elsewhere: text or a marker.

    Guided (classifier-free), of 2 n rows the first n are conditional, the last n unconditional, in
    one batch with one cache, and both get the same tokens. The two levels are guided one after the
    other: u + scale (c - u) of log p(i), then of log p(j | i) of the i that was drawn. Guiding the
    joint distribution and summing over j would, beyond this, favour a semantic code for how much
    its children's distributions differ between the halves; here it depends on its own p(i) alone.
    At a scale of 1 both are the model's distribution.

    Each row has random numbers of its own: what it draws in a batch, it draws alone.
    """

    def __init__(
        self, model: UnifiedModel, grid: ImageGrid, sampling: Sampling, seeds: Sequence[int]
    ) -> None:
        """Args:
        seeds: one a prompt; where the sampling is guided, `generate` has twice as many rows.
        """
        self.model, self.grid, self.sampling, self.rows = model, grid, sampling, len(seeds)
        self.random = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Of hidden states (b, d): 0 at the drawn token, -inf elsewhere, (b, vocabulary)."""
        words = self.model.vocabulary
        hidden = scores.to(self.model.dtype)  # `generate` has made them float32: nothing is lost
        uniform = torch.stack([torch.rand(2, generator=random) for random in self.random])
        uniform = uniform.to(hidden.device)
        kinds, heights = next_kinds(input_ids[: self.rows], words)
        tokens = torch.full_like(kinds, words.end)
        image = (kinds == IMAGE).nonzero()[:, 0]
        if len(image):
            tokens[image] = words.image_offset + self._image(hidden, image, uniform[image])
        other = ((kinds != IMAGE) & (kinds != END)).nonzero()[:, 0]
        if len(other):
            allowed = self.grid.allowed(kinds[other], heights[other], input_ids.shape[1])
            tokens[other] = self._other(hidden[other], allowed, uniform[other, 0])
        drawn = hidden.new_full((len(hidden), words.size), -torch.inf)
        return drawn.scatter_(1, tokens.repeat(len(hidden) // self.rows)[:, None], 0.0)

    def _image(
        self,
        hidden: Float[Tensor, "b d"],
        rows: Int64[Tensor, " n"],
        uniform: Float[Tensor, "n 2"],
    ) -> Int64[Tensor, " n"]:
        """The tokenizer's ids of these rows."""
        head, sampling = self.model.image_head, self.sampling
        guided = sampling.guidance != 1
        hidden = hidden[torch.cat([rows, rows + self.rows]) if guided else rows]
        semantic = sampling.semantic.pick(
            self._guide(head.semantic_log_probs(hidden)), uniform[:, 0]
        )
        parents = semantic.repeat(2) if guided else semantic
        siblings = self._guide(head.pixel_log_probs(hidden, parents))
        pixel = sampling.pixel.pick(siblings, uniform[:, 1])
        return semantic * self.model.vocabulary.num_pixel + pixel

    def _guide(self, says: Tensor) -> Tensor:
        """Log-probabilities of both halves as one, where there are two."""
        if self.sampling.guidance == 1:
            return says
        conditional, unconditional = says.chunk(2)
        return torch.lerp(unconditional, conditional, self.sampling.guidance)

    def _other(
        self,
        hidden: Float[Tensor, "n d"],
        allowed: Bool[Tensor, "n text_and_markers"],
        uniform: Float[Tensor, " n"],
    ) -> Int64[Tensor, " n"]:
        """Tokens of rows that are outside a picture's ids."""
        words = self.model.vocabulary
        scores = self.model.outer_log_probs(hidden)[:, :-1]  # no slot
        column = self.sampling.text.pick(scores.masked_fill(~allowed, -torch.inf), uniform)
        return column.where(column < words.text_size, column + words.num_images)
