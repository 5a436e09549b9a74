"""Conversations and texts to learn from, and the files that hold them.

Conversations about labelled or captioned pictures are made by `tasks`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64
from torch import Tensor, from_numpy

from semhitok.data.token_dataset import TokenDataset
from semhitok.data.tokens import Failure, TokenMetadata
from semhitok.errors import (
    DataError,
    FormatError,
    NotFoundError,
    SemHiTokError,
    StorageError,
)
from semhitok.images import reason
from semhitok.lm.messages import IMAGE_PLACE, Message, parts_of
from semhitok.lm.pictures import Picture
from semhitok.storage import Place, is_file, locate, open_file, read_file

Kind = Literal["understand", "generate", "text"]
KINDS: tuple[Kind, ...] = ("understand", "generate", "text")
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Of LLaVA's format, and what they are in ours."""


@dataclass(frozen=True)
class Conversation:
    """One thing to learn from."""

    key: str
    messages: tuple[Message, ...] | str
    """A string is plain text, which gets no chat template."""
    pictures: tuple[Picture, ...] = ()
    """One for each `<image>` place, in order."""

    @property
    def kind(self) -> Kind:
        """Whether pictures are written, only read, or neither.

        Raises:
            FormatError: a message that is none.
        """
        if isinstance(self.messages, str):
            return "text"
        holds = {
            message.get("role")
            for number, message in enumerate(self.messages)
            if None in parts_of(message, number)
        }
        return "generate" if "assistant" in holds else "understand" if holds else "text"


def failure(key: str, error: SemHiTokError) -> Failure:
    """What is left out, and why in one line."""
    return Failure(key, " ".join(str(error).split()).removeprefix(f"{key}: "))


FindPicture = Callable[[str], Picture]
"""From what a conversation calls a picture to the picture."""


def in_folder(folder: str | Place) -> FindPicture:
    """Pictures are files below a folder."""
    root = locate(folder)

    def find(name: str) -> Picture:
        place = root / name
        if isinstance(place, Path):
            return place
        try:
            return read_file(place)
        except FileNotFoundError as error:
            raise NotFoundError(f"{name}: is not in {root}") from error

    return find


class TokenPictures:
    """Pictures are the ids in the token shards of `semhitok tokenize`, by key.

    All are held, four bytes an id: the order of conversations is not that of shards.
    """

    def __init__(self, data: str | Place | Sequence[str | Place], tokenizer_hash: str) -> None:
        """Raises:
        NotFoundError, FormatError: no token files, another tokenizer's, or a key that two
            pictures have.
        """
        dataset = TokenDataset(data)
        check_tokenizer(dataset.metadata, tokenizer_hash)
        self._rows: dict[str, int] = {}
        ids: list[np.ndarray] = []
        sizes: list[tuple[int, int]] = []
        for sample in (dataset[n] for n in range(len(dataset))):
            if sample.key in self._rows:
                raise FormatError(
                    f"two pictures of the token shards have the key {sample.key!r}; give shards in "
                    "which each has one of its own"
                )
            self._rows[sample.key] = len(ids)
            ids.append(sample.ids.numpy().astype(np.int32).ravel())
            sizes.append((sample.ids.shape[0], sample.ids.shape[1]))
        self._name, self._sizes = str(dataset.paths[0]), sizes
        self._starts = np.cumsum([0, *map(len, ids)])
        self._ids = np.concatenate(ids)

    def __call__(self, name: str) -> Int64[Tensor, "h w"]:
        """Raises:
        NotFoundError: no picture has that key.
        """
        row = self._rows.get(name)
        if row is None:
            raise NotFoundError(
                f"{name}: is no key of the token shards beside {self._name}, as "
                f"{next(iter(self._rows))!r} is; tokenize the folder that the names begin in"
            )
        ids = self._ids[self._starts[row] : self._starts[row + 1]].astype(np.int64)
        return from_numpy(ids).view(self._sizes[row])


def check_tokenizer(metadata: TokenMetadata, tokenizer_hash: str) -> None:
    """Raises:
    FormatError: the tokens are another tokenizer's.
    """
    if metadata.hash != tokenizer_hash:
        raise FormatError(
            f"the token shards were written by {metadata.model} ({metadata.hash[:12]}), not by the "
            f"tokenizer that is given ({tokenizer_hash[:12]}); give that one, or tokenize again"
        )


# ---------------------------------------------------------------------------------------- files


def read_chats(data: str | Place, find: FindPicture) -> Iterator[Conversation | Failure]:
    """The conversations of a file in LLaVA's format, .json or .jsonl.

    Each is `{"id": ..., "image": name or names, "conversations": [{"from": "human" or "gpt",
    "value": text}]}`; what is none costs itself.

    Raises:
        NotFoundError: no such file.
        FormatError: a .json that is no list.
        DataError: a file of another kind.
        StorageError: the store of the pictures fails.
    """
    place = _existing(data, (".json", ".jsonl"))
    for number, row in enumerate(_rows(place)):
        key = f"{place.name}:{number}"
        try:
            if not isinstance(row, Mapping):
                raise FormatError(f"is {row!r:.80}; an object is needed")
            yield _chat(str(row.get("id", key)), row, find)
        except StorageError:
            raise
        except SemHiTokError as error:
            yield failure(key, error)


def _chat(key: str, row: Mapping[str, Any], find: FindPicture) -> Conversation:
    said = row.get("conversations")
    if not isinstance(said, list) or not said:
        raise FormatError(f"has no list of 'conversations'; its keys: {', '.join(map(str, row))}")
    messages = []
    for number, turn in enumerate(said):
        who = turn.get("from") if isinstance(turn, Mapping) else None
        if who not in ROLES or not isinstance(turn.get("value"), str):
            raise FormatError(
                f"turn {number} is {turn!r:.80}; needed: 'from', one of {', '.join(ROLES)}, and "
                "'value', a text"
            )
        messages.append({"role": ROLES[who], "content": turn["value"].strip()})
    named = row.get("image") or []
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FormatError(f"'image' is {named!r:.80}; a name or a list of names is needed")
    places = sum(message["content"].count(IMAGE_PLACE) for message in messages)
    if places != len(names):
        raise FormatError(
            f"has {places} {IMAGE_PLACE} places and {len(names)} pictures; one for each is needed"
        )
    return Conversation(key, tuple(messages), tuple(find(name) for name in names))


def read_texts(data: str | Place) -> Iterator[Conversation | Failure]:
    """The texts of a file: of a .txt what blank lines part, of a .jsonl the `text` of each line.

    Raises:
        NotFoundError: no such file.
        FormatError: a .txt that is not UTF-8.
        DataError: a file of another kind.
    """
    place = _existing(data, (".txt", ".jsonl"))
    texts = _paragraphs(place) if place.suffix.lower() == ".txt" else _rows(place)
    for number, row in enumerate(texts):
        key = f"{place.name}:{number}"
        text = row.get("text") if isinstance(row, Mapping) else row
        if isinstance(text, str) and text.strip():
            yield Conversation(key, text)
        else:
            yield Failure(key, f"is {row!r:.80}; an object with a 'text' is needed")


def _paragraphs(place: Place) -> Iterator[str]:
    lines: list[str] = []
    with open_file(place) as file:
        try:
            for line in (raw.decode() for raw in file):
                if line.strip():
                    lines.append(line)
                elif lines:
                    yield "".join(lines).rstrip()
                    lines = []
        except UnicodeDecodeError as error:
            raise FormatError(f"{place}: is no UTF-8 ({reason(error)}); convert it") from error
    if lines:
        yield "".join(lines).rstrip()


def _rows(place: Place) -> Iterator[Any]:
    """What a .json lists, or the lines of a .jsonl; the text itself of a line that is no JSON."""
    if place.suffix.lower() == ".json":
        try:
            rows = json.loads(read_file(place))
        except ValueError as error:
            raise FormatError(f"{place}: is no JSON ({reason(error)}); get a whole copy") from error
        if not isinstance(rows, list):
            raise FormatError(f"{place}: holds {type(rows).__name__}; a list is needed")
        yield from rows
        return
    with open_file(place) as file:
        yield from (_parsed(line) for line in file if line.strip())


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line  # no mapping: the reader names it


def _existing(data: str | Place, suffixes: Iterable[str]) -> Place:
    place = locate(data)
    if not is_file(place):
        raise NotFoundError(f"{place}: no such file; check the path")
    if place.suffix.lower() not in suffixes:
        raise DataError(f"{place}: a {place.suffix or 'file'}; read here: {', '.join(suffixes)}")
    return place
