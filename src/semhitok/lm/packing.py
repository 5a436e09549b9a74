"""Which examples an epoch has, in what order, and how they fill items of one length.

Only lengths are looked at; everything follows from (seed, epoch).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

OPEN_ITEMS = 64
"""Items that are filled side by side: the more, the less padding, and the farther examples move."""
_ORDER, _PASS, _DROP = range(3)  # keep the uses of one seed apart

SourceLengths = tuple[np.ndarray, np.ndarray, float]
"""Of a source: tokens of each example, tokens of each that may be dropped, and its weight."""


@dataclass(frozen=True)
class Plan:
    """The items of an epoch."""

    starts: Int64[np.ndarray, " items_and_one"]
    """Where each item begins among the members of all."""
    sources: Int64[np.ndarray, " n"]
    numbers: Int64[np.ndarray, " n"]
    """Examples, item by item: their source, and their number in it."""
    dropped: Bool[np.ndarray, " n"]
    """Whether their text is."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def item(self, number: int) -> list[tuple[int, int, bool]]:
        """Source, number and whether the text is dropped, of each example in an item."""
        part = slice(int(self.starts[number]), int(self.starts[number + 1]))
        columns = (self.sources[part], self.numbers[part], self.dropped[part])
        return list(zip(*(column.tolist() for column in columns), strict=True))


def lay_out(
    sources: Sequence[SourceLengths], *, length: int, seed: int, epoch: int, drop: float
) -> Plan:
    """The plan of an epoch.

    Args:
        length: tokens of an item; no example is longer.
        drop: share of the examples that lose what may be dropped of them.
    """
    which, numbers = _drawn(sources, seed, epoch)
    order = _random(seed, _ORDER, epoch).permutation(len(which))
    which, numbers = which[order], numbers[order]
    lengths, droppable = np.empty_like(which), np.empty_like(which)
    for source, (tokens, without, _) in enumerate(sources):
        own = which == source
        lengths[own], droppable[own] = tokens[numbers[own]], without[numbers[own]]
    dropped = (_random(seed, _DROP, epoch).random(len(which)) < drop) & (droppable > 0)
    items = fill(lengths - droppable * dropped, length)
    by_item = np.argsort(items, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(items))])
    return Plan(starts, which[by_item], numbers[by_item], dropped[by_item])


def _drawn(
    sources: Sequence[SourceLengths], seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Source and number of each example of an epoch.

    A source is an endless row of its permutations, of which each epoch takes the next part.
    """
    which, numbers = [], []
    for source, (tokens, _, weight) in enumerate(sources):
        size = len(tokens)
        count = round(weight * size)
        start, stop = epoch * count, (epoch + 1) * count
        passes = range(start // size, -(-stop // size))
        row = np.concatenate(
            [_random(seed, _PASS, source, number).permutation(size) for number in passes]
        )
        first = start - passes.start * size
        numbers.append(row[first : first + count])
        which.append(np.full(count, source, dtype=np.int64))
    return np.concatenate(which), np.concatenate(numbers)


def fill(lengths: np.ndarray, length: int) -> np.ndarray:
    """The item of each example: of the open ones the fullest that has room for it.

    Where none has, a new item is opened, and beyond OPEN_ITEMS the fullest is closed.
    """
    items = np.empty(len(lengths), dtype=np.int64)
    rooms: list[tuple[int, int]] = []  # of the open items, in rising order, and their numbers
    opened = 0
    for number, tokens in enumerate(lengths.tolist()):
        place = bisect_left(rooms, (tokens, 0))
        if place < len(rooms):
            room, item = rooms.pop(place)
        else:
            room, item = length, opened
            opened += 1
            if len(rooms) == OPEN_ITEMS:
                rooms.pop(0)
        items[number] = item
        if room > tokens:
            insort(rooms, (room - tokens, item))
    return items


def _random(seed: int, *use: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox([seed, *use]))
