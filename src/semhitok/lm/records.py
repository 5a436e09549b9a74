"""Pictures and what data sets say of them, to make conversations of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from semhitok.data.sources import open_source
from semhitok.data.token_dataset import TokenDataset
from semhitok.data.tokens import Failure, summarize_tokens, token_files
from semhitok.errors import DataError, FormatError, NotFoundError, SemHiTokError, StorageError
from semhitok.lm.conversations import check_tokenizer, failure
from semhitok.lm.pictures import Picture
from semhitok.storage import Place

CAPTIONS = ("captions", "caption")
"""Columns of captions, lists or strings: one of them is needed."""
CLASS = ("class_name",)


@dataclass(frozen=True)
class Record:
    """A picture, and what its data set says of it."""

    key: str
    picture: Picture
    about: Mapping[str, Any] = field(default_factory=dict)


def captions_of(about: Mapping[str, Any]) -> list[str]:
    """The captions of a picture; none where it has none."""
    found = next((about[name] for name in CAPTIONS if about.get(name)), None)
    listed = [found] if isinstance(found, str) else found or []
    return [text.strip() for text in listed if isinstance(text, str) and text.strip()]


def class_of(about: Mapping[str, Any]) -> list[str]:
    """The class of a picture; none where it has none."""
    name = about.get(CLASS[0])
    return [name] if isinstance(name, str) and name else []


class Records:
    """The pictures of a data set and what it says of them: token shards of `semhitok tokenize`, or
    anything that `open_source` opens."""

    def __init__(
        self, data: str | Place, needs: Sequence[tuple[str, ...]], tokenizer_hash: str
    ) -> None:
        """Args:
            needs: what tasks need: of each the columns, one of which must be there.

        Raises:
            NotFoundError, DataError: nothing there, or not the columns.
            FormatError: token shards of another tokenizer.
        """
        self.name = str(data)
        self._tokens = self._source = None
        have: Sequence[str]
        if is_tokens(data):
            have = summarize_tokens(token_files(data)[0]).columns
            wanted = [name for need in needs for name in need if name in have]
            self._tokens = TokenDataset(data, columns=list(dict.fromkeys(wanted)))
            check_tokenizer(self._tokens.metadata, tokenizer_hash)
        else:
            self._source = open_source(data)
            have = list(self._source.meta(0))
        for need in needs:
            if not set(need) & set(have):
                names = ", ".join(have) or "none"
                raise DataError(f"{data}: has no column {' or '.join(need)}; it has: {names}")

    def __len__(self) -> int:
        return len(self._tokens or self._source or ())

    def __iter__(self) -> Iterator[Record | Failure]:
        """Each picture; one that cannot be got at is named."""
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> Record | Failure:
        """The picture of that number, or why it cannot be got at."""
        if self._tokens is not None:
            sample = self._tokens[number]
            return Record(sample.key, sample.ids, sample.extra)
        return self._read(range(len(self))[number])

    def classes(self) -> Iterator[str]:
        """The class of each picture that has one; pictures are not read."""
        return (name for name in self.labels() if name is not None)

    def labels(self) -> list[str | None]:
        """The class of each picture, None where it has none; pictures are not read."""
        return [self._label(number) for number in range(len(self))]

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over keys and sizes, or the shards' keys and ids."""
        if self._source is not None:
            return self._source.fingerprint()
        assert self._tokens is not None
        digest = hashlib.sha256(self._tokens.metadata.hash.encode())
        for number in range(len(self)):
            sample = self._tokens[number]
            digest.update(b"\0" + sample.key.encode("utf-8", "surrogatepass"))
            digest.update(sample.ids.numpy().tobytes())
        return digest.hexdigest()

    def _label(self, number: int) -> str | None:
        try:
            return next(iter(class_of(self._about(number))), None)
        except StorageError:
            raise
        except SemHiTokError:
            return None  # named when that picture's turn comes

    def _about(self, number: int) -> Mapping[str, Any]:
        if self._tokens is not None:
            return self._tokens[number].extra
        assert self._source is not None
        return self._source.meta(number)

    def _read(self, number: int) -> Record | Failure:
        assert self._source is not None
        key = self._source.key(number)
        try:
            return Record(key, self._source.read_bytes(number), self._source.meta(number))
        except StorageError:
            raise
        except SemHiTokError as error:
            return failure(key, error)


def is_tokens(data: str | Place) -> bool:
    """Whether token files lie there."""
    try:
        summarize_tokens(token_files(data)[0])
    except (NotFoundError, FormatError):
        return False
    return True
