"""Conversations about pictures with captions or class names.

What a task says of a picture follows from (seed, key) alone; its words stand in `phrases`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from semhitok.data.tokens import Failure
from semhitok.errors import DataError
from semhitok.lm import phrases
from semhitok.lm.conversations import Conversation
from semhitok.lm.messages import IMAGE_PLACE
from semhitok.lm.records import CAPTIONS, CLASS, Record, captions_of, class_of

_T = TypeVar("_T")


class Task(ABC):
    """Makes conversations of a record."""

    needs: ClassVar[tuple[str, ...]]
    """Columns, one of which must be there."""

    @abstractmethod
    def __call__(self, record: Record) -> Iterator[Conversation]:
        """None where the data set says nothing of the picture that the task is about."""


@dataclass(frozen=True)
class Describe(Task):
    """A picture, and each of its captions in reply."""

    needs: ClassVar[tuple[str, ...]] = CAPTIONS
    seed: int = 0

    def __call__(self, record: Record) -> Iterator[Conversation]:
        for number, caption in enumerate(captions_of(record.about)):
            key = f"{record.key}#describe-{number}"
            yield _dialogue(key, pick(phrases.DESCRIBE, self.seed, key), caption, record)


@dataclass(frozen=True)
class Draw(Task):
    """A caption, and its picture in reply; for each caption."""

    needs: ClassVar[tuple[str, ...]] = CAPTIONS
    seed: int = 0

    def __call__(self, record: Record) -> Iterator[Conversation]:
        for number, caption in enumerate(captions_of(record.about)):
            key = f"{record.key}#draw-{number}"
            asked = pick(phrases.DRAW, self.seed, key).format(caption=caption)
            yield _dialogue(key, asked, IMAGE_PLACE, record)


@dataclass(frozen=True)
class Name(Task):
    """What is in the picture: its class."""

    needs: ClassVar[tuple[str, ...]] = CLASS
    seed: int = 0

    def __call__(self, record: Record) -> Iterator[Conversation]:
        for name in class_of(record.about):
            key = f"{record.key}#name"
            asked, answer = pick(phrases.NAME, self.seed, key)
            yield _dialogue(key, asked, answer.format(a=phrases.with_article(name)), record)


@dataclass(frozen=True)
class DrawClass(Task):
    """The name of a class, and a picture of it in reply."""

    needs: ClassVar[tuple[str, ...]] = CLASS
    seed: int = 0

    def __call__(self, record: Record) -> Iterator[Conversation]:
        for name in class_of(record.about):
            key = f"{record.key}#draw-class"
            asked = pick(phrases.DRAW_CLASS, self.seed, key)
            yield _dialogue(key, asked.format(a=phrases.with_article(name)), IMAGE_PLACE, record)


class IsThere(Task):
    """Two questions a picture: for its own class, and for another.

    The other is any class half of the time, else one of the most frequent, which a model that does
    not look takes for likely: the random and the popular negatives of POPE (arXiv:2305.10355).
    """

    needs: ClassVar[tuple[str, ...]] = CLASS
    FREQUENT = 0.1
    """Share of the classes that count as frequent, at least one."""

    def __init__(self, names: Iterable[str], seed: int = 0) -> None:
        """Args:
            names: the class of each picture.

        Raises:
            DataError: fewer than two classes.
        """
        counts = Counter(names)
        if len(counts) < 2:
            raise DataError(
                f"{len(counts)} classes; asking for one that is not there needs at least two"
            )
        self.seed = seed
        self.classes = sorted(counts, key=lambda name: (-counts[name], name))
        """The most frequent first."""

    def __call__(self, record: Record) -> Iterator[Conversation]:
        for present, random, frequent in self.every(record):
            yield present
            key = f"{record.key}#is-there"
            yield frequent if pick((False, True), self.seed, f"{key}-frequent") else random

    def every(self, record: Record) -> Iterator[tuple[Conversation, Conversation, Conversation]]:
        """Of its own class, of any other, and of a frequent other; training has one of the two."""
        for name in class_of(record.about):
            key = f"{record.key}#is-there"
            random, frequent = (self._absent(key, name, often) for often in (False, True))
            yield (
                self._question(f"{key}-present", name, phrases.YES, record),
                self._question(f"{key}-random", random, phrases.NO, record),
                self._question(f"{key}-frequent", frequent, phrases.NO, record),
            )

    def _absent(self, key: str, name: str, frequent: bool) -> str:
        """A class other than `name`."""
        pool = self.classes
        if frequent:
            pool = pool[: max(2, round(self.FREQUENT * len(pool)))]
        return pick([other for other in pool if other != name], self.seed, f"{key}-absent")

    def _question(self, key: str, name: str, answer: str, record: Record) -> Conversation:
        asked = pick(phrases.IS_THERE, self.seed, key)
        return _dialogue(key, asked.format(a=phrases.with_article(name)), answer, record)


def _dialogue(key: str, asked: str, answer: str, record: Record) -> Conversation:
    messages = ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})
    return Conversation(key, messages, (record.picture,))


def pick(options: Sequence[_T], seed: int, key: str) -> _T:
    """One of the options, by (seed, key) alone."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return options[int.from_bytes(digest[:8], "big") * len(options) >> 64]


def converse(
    records: Iterable[Record | Failure], tasks: Sequence[Task]
) -> Iterator[Conversation | Failure]:
    """What the tasks make of each record, one after the other."""
    for record in records:
        if isinstance(record, Failure):
            yield record
        else:
            for task in tasks:
                yield from task(record)
