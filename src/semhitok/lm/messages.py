"""Messages as users write them, in the chat format of `transformers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semhitok.errors import FormatError

IMAGE_PLACE = "<image>"
"""Where a picture stands in a message that is a string."""
Message = Mapping[str, Any]
"""`role`: system, user or assistant; `content`: a string with `<image>` places, or a list of
`{"type": "text", "text": ...}` and `{"type": "image"}`."""


@dataclass(frozen=True)
class Turn:
    """A message: text, with the numbers of its pictures where they stand."""

    role: str
    parts: tuple[str | int, ...]


def to_turns(messages: Sequence[Message], pictures: int) -> list[Turn]:
    """Messages with their pictures numbered.

    Raises:
        FormatError: a message that is none, or not as many places as pictures.
    """
    turns: list[Turn] = []
    places = 0
    for number, message in enumerate(messages):
        parts: list[str | int] = []
        for part in parts_of(message, number):
            if part is None:
                parts.append(places)
                places += 1
            elif part:
                parts.append(part)
        turns.append(Turn(str(message["role"]), tuple(parts)))
    if places != pictures:
        raise FormatError(
            f"the conversation has {places} {IMAGE_PLACE} places and {pictures} pictures; give one "
            "picture for each place"
        )
    return turns


def parts_of(message: Message, number: int) -> list[str | None]:
    """Texts, and None where a picture stands."""
    content = message.get("content")
    if "role" not in message or not isinstance(content, (str, list, tuple)):
        raise FormatError(
            f"message {number} is {message!r:.80}; it must have a role, and as content a string or "
            "a list of texts and images"
        )
    if isinstance(content, str):
        first, *rest = content.split(IMAGE_PLACE)
        return [first, *(part for text in rest for part in (None, text))]
    parts: list[str | None] = []
    for item in content:
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind == "image":
            parts.append(None)
        elif kind == "text" and isinstance(item.get("text"), str):
            parts.append(item["text"])
        else:
            raise FormatError(
                f'message {number} has {item!r:.80} in it; allowed: {{"type": "text", "text": '
                '...} and {"type": "image"}'
            )
    return parts
