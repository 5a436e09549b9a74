"""Questions about labelled pictures, put to a model several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from semhitok.data.tokens import Failure
from semhitok.errors import DataError, SemHiTokError
from semhitok.lm.assistant import Assistant
from semhitok.lm.conversations import Conversation, failure
from semhitok.lm.evaluation.section import Advance, silent
from semhitok.lm.messages import Message
from semhitok.lm.records import Record, Records

Answered = tuple[Record, list[tuple[str, str]]]
"""A picture, and each question about it with what the model said."""


@dataclass(frozen=True)
class Exam:
    """Who is asked, and about what."""

    assistant: Assistant
    records: Records
    max_pictures: int | None = None
    """So many of the labelled ones, evenly spaced: data are often sorted by class. None for all."""
    batch_size: int = 16
    """Pictures at once."""
    seed: int = 0
    """Of the words of questions, with each picture's key."""
    advance: Advance = silent

    def classes(self) -> list[str]:
        """The class of each labelled picture.

        Raises:
            DataError: no picture has one.
        """
        found = list(self.records.classes())
        if not found:
            raise DataError(
                f"{self.records.name}: no picture has a class_name; give labelled pictures"
            )
        return found

    def numbers(self) -> list[int]:
        """The pictures that are asked about."""
        labelled = [n for n, name in enumerate(self.records.labels()) if name is not None]
        limit = min(len(labelled), self.max_pictures or len(labelled))
        return [labelled[n * len(labelled) // limit] for n in range(limit)]

    def answers(
        self,
        ask: Callable[[Record], Sequence[Conversation]],
        failed: dict[str, str],
        *,
        max_new_tokens: int,
    ) -> Iterator[Answered]:
        """The likeliest words after each question.

        Args:
            ask: conversations about a picture, each with its right answer as the last message.
            failed: gets the pictures that cannot be read.

        Raises:
            DataError: no picture could be read.
        """
        numbers = self.numbers()
        for start in range(0, len(numbers), self.batch_size):
            batch = [self.records[n] for n in numbers[start : start + self.batch_size]]
            asked = [(record, list(ask(record))) for record in self._read(batch, failed)]
            prompts = [(_before_answer(c), c.pictures) for _, each in asked for c in each]
            said = iter(self.assistant.answer(prompts, max_new_tokens=max_new_tokens))
            for record, each in asked:
                yield record, [(_before_answer(c)[-1]["content"], next(said)) for c in each]
            self.advance(start + len(batch))
        if numbers and len(failed) == len(numbers):
            raise DataError(
                f"{self.records.name}: no picture could be read ({next(iter(failed.values()))})"
            )

    def describe(self, asked: int) -> dict[str, Any]:
        """For protocols."""
        return {
            "data": {
                "name": self.records.name,
                "pictures": len(self.records),
                "selection": f"{asked}, evenly spaced over the labelled ones",
                "fingerprint": self.records.fingerprint,
            },
            "pixels": self.assistant.processor.pictures.describe() + "; grids as they are",
            "answers": "the likeliest token each time",
            "seed": self.seed,
        }

    def _read(self, batch: Sequence[Record | Failure], failed: dict[str, str]) -> Iterator[Record]:
        """Those that can be read, as grids: encoded once, whatever is asked."""
        failed |= {record.key: record.reason for record in batch if isinstance(record, Failure)}
        records = [record for record in batch if isinstance(record, Record)]
        grids = self.assistant.processor.pictures.try_grids([r.picture for r in records])
        for record, grid in zip(records, grids, strict=True):
            if isinstance(grid, SemHiTokError):
                failed[record.key] = failure(record.key, grid).reason
            else:
                yield Record(record.key, grid, record.about)


def _before_answer(conversation: Conversation) -> Sequence[Message]:
    return cast(Sequence[Message], conversation.messages[:-1])
