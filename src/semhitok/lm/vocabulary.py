"""One vocabulary of text and pictures (contract C11): integers, never tokenizer strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from semhitok.errors import FormatError, IdError, RangeError, ShapeError

Piece = Int64[Tensor, "..."]
"""A run of text ids (one dimension), or a picture's grid of the tokenizer's ids (two)."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Text ids, then the K * m image ids in order, then the markers.

    Markers are: begin of image, end of image, heights 1 to `max_side`, widths 1 to `max_side`. A
    picture stands as begin, height, width, its h * w ids row by row, end.
    """

    text_size: int
    """Rows of the language model's embedding: the text ids, and where the image ids begin."""
    text_length: int
    """Ids that the text tokenizer knows. Models pad their rows up to a round number; those ids are
    read, but never written."""
    num_semantic: int
    """K."""
    num_pixel: int
    """m."""
    max_side: int = 64
    """The most patches of a side."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise RangeError(f"vocabulary: {name} is {value}; it must be at least 1")
        if self.text_length > self.text_size:
            raise RangeError(
                f"vocabulary: the text tokenizer has {self.text_length} ids, but the language "
                f"model has {self.text_size} rows; resize its embedding first"
            )

    # -- where things are ----------------------------------------------------------------------

    @property
    def num_images(self) -> int:
        """K * m: ids of the image block."""
        return self.num_semantic * self.num_pixel

    @property
    def num_markers(self) -> int:
        return 2 + 2 * self.max_side

    @property
    def image_offset(self) -> int:
        """The token of the tokenizer's id 0."""
        return self.text_size

    @property
    def marker_offset(self) -> int:
        return self.image_offset + self.num_images

    @property
    def begin(self) -> int:
        return self.marker_offset

    @property
    def end(self) -> int:
        return self.marker_offset + 1

    @property
    def height_offset(self) -> int:
        """The token of height 1."""
        return self.marker_offset + 2

    @property
    def width_offset(self) -> int:
        """The token of width 1."""
        return self.height_offset + self.max_side

    @property
    def size(self) -> int:
        """Tokens in all."""
        return self.marker_offset + self.num_markers

    # -- ids and tokens ------------------------------------------------------------------------

    def to_tokens(self, ids: Int64[Tensor, "*grid"]) -> Int64[Tensor, "*grid"]:
        """Tokens of the tokenizer's ids.

        Raises:
            IdError: an id outside [0, K * m).
        """
        _check_range(ids, 0, self.num_images, "id", "the image block")
        return ids + self.image_offset

    def to_ids(self, tokens: Int64[Tensor, "*grid"]) -> Int64[Tensor, "*grid"]:
        """The tokenizer's ids of tokens: the inverse of `to_tokens`.

        Raises:
            IdError: a token outside the image block.
        """
        _check_range(tokens, self.image_offset, self.marker_offset, "token", "the image block")
        return tokens - self.image_offset

    def is_image(self, tokens: Int64[Tensor, "*any"]) -> Bool[Tensor, "*any"]:
        """Which tokens are of the image block."""
        return (tokens >= self.image_offset) & (tokens < self.marker_offset)

    def check(self, tokens: Int64[Tensor, "*any"]) -> None:
        """Raises:
        IdError: a token outside [0, size).
        """
        _check_range(tokens, 0, self.size, "token", "the vocabulary")

    def check_side(self, height: int, width: int) -> None:
        """Raises:
        RangeError: a side that no marker names.
        """
        if not (1 <= height <= self.max_side and 1 <= width <= self.max_side):
            raise RangeError(
                f"picture of {height}x{width} patches; sides from 1 to {self.max_side} have markers"
            )

    # -- sequences -----------------------------------------------------------------------------

    def opening(self, height: int, width: int) -> Int64[Tensor, "3"]:
        """What stands before a picture's ids: begin, height, width.

        Raises:
            RangeError: a side that no marker names.
        """
        self.check_side(height, width)
        markers = [self.begin, self.height_offset + height - 1, self.width_offset + width - 1]
        return torch.tensor(markers, dtype=torch.int64)

    def layout(self, ids: Int64[Tensor, "h w"]) -> Int64[Tensor, "length"]:
        """A picture as tokens: begin, height, width, its ids, end; h * w + 4 of them.

        Raises:
            IdError: an id outside [0, K * m).
            RangeError: a side that no marker names.
        """
        opening = self.opening(*ids.shape).to(ids.device)
        end = torch.tensor([self.end], device=ids.device)
        return torch.cat([opening, self.to_tokens(ids).flatten(), end])

    def join(self, pieces: Sequence[Piece]) -> Int64[Tensor, "length"]:
        """Text and pictures as one sequence; `parse` is its inverse.

        Raises:
            IdError: an id outside the text ids, or outside [0, K * m).
            RangeError: a side that no marker names.
            ShapeError: a piece that is neither a run nor a grid.
        """
        parts = [torch.empty(0, dtype=torch.int64)]
        for piece in pieces:
            if piece.ndim == 1:
                _check_range(piece, 0, self.text_size, "token", "the text ids")
                parts.append(piece)
            elif piece.ndim == 2:
                parts.append(self.layout(piece))
            else:
                raise ShapeError(
                    f"piece has shape {tuple(piece.shape)}; text is (length,), a picture (h, w)"
                )
        return torch.cat([part.to(parts[-1].device) for part in parts])

    def parse(self, tokens: Int64[Tensor, "length"]) -> list[Piece]:
        """Text runs and grids in their order; no run is empty.

        Raises:
            IdError: a token outside the vocabulary.
            FormatError: a picture is cut off, its count is not what its markers say, or a part of
                a picture stands alone.
        """
        self.check(tokens)
        pieces: list[Piece] = []
        done = 0
        while done < len(tokens):
            rest = tokens[done:]
            outside = (rest >= self.image_offset).nonzero()
            text = int(outside[0]) if len(outside) else len(rest)
            if text:
                pieces.append(rest[:text])
                done += text
                continue
            if int(rest[0]) != self.begin:
                raise FormatError(
                    f"token {int(rest[0])} at {done} is {self._name(int(rest[0]))} outside a "
                    f"picture; a picture starts with {self.begin}"
                )
            grid = self._grid(rest, done)
            pieces.append(grid)
            done += 4 + grid.numel()
        return pieces

    def _grid(self, rest: Int64[Tensor, "length"], start: int) -> Int64[Tensor, "h w"]:
        """The picture that `rest` starts with, at `start` of the whole."""
        height = self._side(rest, 1, self.height_offset, "height", start)
        width = self._side(rest, 2, self.width_offset, "width", start)
        says = f"picture at {start} says {height}x{width} = {height * width} ids"
        body = rest[3 : 3 + height * width]
        strange = ((body < self.image_offset) | (body >= self.marker_offset)).nonzero()
        if len(strange):
            count = int(strange[0])
            raise FormatError(
                f"{says}, but after {count} comes {int(body[count])}, "
                f"{self._name(int(body[count]))}"
            )
        if len(rest) < 4 + height * width:
            raise FormatError(f"{says} and an end, but is cut off after {len(body)} of them")
        last = int(rest[3 + height * width])
        if last != self.end:
            raise FormatError(
                f"{says}, but {self._name(last)} ({last}) stands where its end ({self.end}) must"
            )
        return self.to_ids(body).view(height, width)

    def _side(
        self, rest: Int64[Tensor, "length"], place: int, offset: int, what: str, start: int
    ) -> int:
        if len(rest) <= place:
            raise FormatError(f"picture at {start} is cut off before its {what}")
        side = int(rest[place]) - offset + 1
        if not 1 <= side <= self.max_side:
            raise FormatError(
                f"picture at {start} has {self._name(int(rest[place]))} ({int(rest[place])}) where "
                f"its {what} must be, {offset} to {offset + self.max_side - 1}"
            )
        return side

    def _name(self, token: int) -> str:
        """What kind of token it is, for messages."""
        if token < self.image_offset:
            return "a text id"
        if token < self.marker_offset:
            return "an image id"
        if token < self.height_offset:
            return "the begin marker" if token == self.begin else "the end marker"
        return "a height marker" if token < self.width_offset else "a width marker"

    # -- saving --------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, int]:
        """Plain numbers for a config, the offset among them."""
        return {**asdict(self), "image_offset": self.image_offset}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Vocabulary:
        """What `to_dict` gave.

        Raises:
            FormatError: a key is missing or unknown, or the offset is another than ours.
        """
        numbers = dict(data)
        offset = numbers.pop("image_offset", None)
        try:
            vocabulary = cls(**numbers)
        except TypeError as error:
            raise FormatError(f"vocabulary {data}: {error}") from error
        if offset != vocabulary.image_offset:
            raise FormatError(
                f"vocabulary has image_offset {offset}; after {vocabulary.text_size} text ids it "
                f"must be {vocabulary.image_offset}: another program wrote it"
            )
        return vocabulary


def _check_range(values: Tensor, low: int, high: int, what: str, where: str) -> None:
    if values.numel() == 0:
        return
    least, most = (int(v) for v in values.aminmax())
    if least < low or most >= high:
        bad = least if least < low else most
        place = tuple(int(v) for v in (values == bad).nonzero()[0])
        raise IdError(f"{what} {bad} at {place} is outside {where}, [{low}, {high})")
