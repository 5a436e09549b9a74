from __future__ import annotations

import pytest

from semhitok.errors import FormatError
from semhitok.lm.messages import Turn, to_turns


def test_pictures_are_numbered_through_all_messages() -> None:
    messages = [
        {"role": "user", "content": "<image><image> which?"},
        {"role": "assistant", "content": [{"type": "text", "text": "a <image> tag"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ""}]},
    ]
    assert to_turns(messages, 3) == [
        Turn("user", (0, 1, " which?")),
        Turn("assistant", ("a <image> tag",)),
        Turn("user", (2,)),
    ]


@pytest.mark.parametrize(
    ("message", "pictures", "said"),
    [
        ({"role": "user", "content": "<image>, <image>"}, 1, "has 2 <image> places and 1 pictures"),
        ({"role": "user", "content": "none"}, 1, "has 0 <image> places and 1 pictures"),
        ({"role": "user"}, 0, "message 0 is .*; it must have a role"),
        ({"content": "x"}, 0, "message 0 is .*; it must have a role"),
        ({"role": "user", "content": [{"type": "video"}]}, 0, "message 0 has .*; allowed"),
        ({"role": "user", "content": ["x"]}, 0, "message 0 has 'x' in it; allowed"),
    ],
)
def test_messages_that_are_none(message: dict[str, object], pictures: int, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        to_turns([message], pictures)
