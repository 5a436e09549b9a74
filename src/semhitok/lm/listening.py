"""Replies as they are written: text id by id, pictures row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TextStreamer
from transformers.generation.streamers import BaseStreamer

from semhitok.lm.drawing import IMAGE, next_kinds
from semhitok.lm.vocabulary import Vocabulary


class Listener:
    """What `draw` and `reply` tell while they write; override what is of interest.

    `row` is the prompt's place among the prompts. What a listener raises ends the generation.
    """

    def text(self, row: int, token: int) -> None:
        """A text id; one that stops the reply is not told."""

    def picture(self, row: int, ids: Int64[Tensor, "done w"], height: int) -> None:
        """One more row of patches is whole: all `done` rows of the picture, of `height` to come."""

    def end(self, row: int) -> None:
        """Nothing more comes for this prompt."""


class StreamerListener(Listener):
    """One prompt's text to a streamer of `transformers`, its pictures to a function.

    `TextStreamer` prints it as it comes; what it holds back (half of a letter, in some versions
    half of a word) is let out before a picture, by its `end`. For a `TextIteratorStreamer` that is
    the end indeed: give it replies without pictures.
    """

    def __init__(
        self,
        streamer: BaseStreamer,
        picture: Callable[[Int64[Tensor, "done w"], int], None] = lambda ids, height: None,
    ) -> None:
        """Args:
        streamer: without `skip_prompt`: it never gets the prompt.
        picture: gets `ids` and `height` of `Listener.picture`.
        """
        self.streamer, self.show = streamer, picture

    @classmethod
    def printing(
        cls,
        text: PreTrainedTokenizerBase,
        picture: Callable[[Int64[Tensor, "done w"], int], None],
    ) -> StreamerListener:
        """Prints text to stdout as it comes, without its special tokens."""
        return cls(TextStreamer(text, skip_special_tokens=True), picture)

    def text(self, row: int, token: int) -> None:
        self.streamer.put(torch.tensor([token]))  # type: ignore[no-untyped-call]

    def picture(self, row: int, ids: Int64[Tensor, "done w"], height: int) -> None:
        if len(ids) == 1:
            self.streamer.end()  # type: ignore[no-untyped-call]
        self.show(ids, height)

    def end(self, row: int) -> None:
        self.streamer.end()  # type: ignore[no-untyped-call]


class Telling(BaseStreamer):
    """What `generate` streams, told to a listener; of a guided batch the first half alone."""

    def __init__(
        self, words: Vocabulary, listener: Listener, rows: int, stop: Sequence[int]
    ) -> None:
        self.words, self.listener, self.stop = words, listener, set(stop)
        self.writing = set(range(rows))
        self.open: list[list[int]] = [[] for _ in range(rows)]
        """Of each row, the tokens of its open picture."""

    def put(self, value: Tensor) -> None:
        """The prompts (b, t), then a token for each row (b,)."""
        if value.ndim == 2:
            kinds, _ = next_kinds(value, self.words)
            for row in self.writing:
                # A prompt is whole, but for the opening that `draw` has put after it.
                if kinds[row] == IMAGE:
                    self.open[row] = value[row, -3:].tolist()
            return
        for row in sorted(self.writing):
            self._tell(row, int(value[row]))

    def end(self) -> None:
        for row in sorted(self.writing):
            self._end(row)

    def _tell(self, row: int, token: int) -> None:
        if token in self.stop:
            self._end(row)
        elif token == self.words.end:
            self.open[row] = []
        elif self.open[row] or token == self.words.begin:
            self.open[row].append(token)
            self._tell_rows(row)
        else:
            self.listener.text(row, token)

    def _tell_rows(self, row: int) -> None:
        if len(self.open[row]) <= 3:
            return
        _, height, width, *ids = self.open[row]
        width -= self.words.width_offset - 1
        if len(ids) % width == 0:
            grid = self.words.to_ids(torch.tensor(ids)).view(-1, width)
            self.listener.picture(row, grid, height - self.words.height_offset + 1)

    def _end(self, row: int) -> None:
        self.writing.remove(row)
        self.listener.end(row)
