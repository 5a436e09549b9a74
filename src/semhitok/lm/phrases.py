"""What tasks say: `{a}` is a class name with its article, `{caption}` a caption."""

from __future__ import annotations

DESCRIBE = (
    "<image>\nDescribe this picture.",
    "<image>\nWhat does this picture show?",
    "<image>\nWrite a caption for this picture.",
    "Describe this picture.\n<image>",
    "Say in one sentence what is going on here.\n<image>",
)
"""Asks for a caption."""

DRAW = (
    "{caption}",
    "Draw a picture: {caption}",
    "Make a picture of this: {caption}",
    "A photo, please. {caption}",
)
"""Asks for the picture of a caption."""

NAME = (
    ("<image>\nWhat is in this picture?", "This is {a}."),
    ("<image>\nWhat do you see?", "I see {a}."),
    ("<image>\nName what this picture shows.", "It shows {a}."),
    ("What is in this picture?\n<image>", "This is {a}."),
)
"""Question and answer."""

IS_THERE = (
    "<image>\nIs there {a}?",
    "<image>\nIs there {a} in this picture?",
    "<image>\nDoes this picture show {a}?",
    "Is there {a} in this picture?\n<image>",
)
YES, NO = "Yes.", "No."

DRAW_CLASS = (
    "a photo of {a}",
    "a picture of {a}",
    "Draw {a}.",
    "Make a picture of {a}.",
)
"""Asks for a picture of a class; the first is what evaluations ask."""

_LIKE_CONSONANTS = ("uni", "use", "eu", "one", "ukulele")


def with_article(name: str) -> str:
    """`a dog`, `an apple`."""
    lower = name.lower()
    vowel = lower[:1] in tuple("aeiou") and not lower.startswith(_LIKE_CONSONANTS)
    return f"{'an' if vowel else 'a'} {name}"
