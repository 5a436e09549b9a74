"""One kind of error for each thing that a user can get wrong."""

from __future__ import annotations

import re

import pytest

from semhitok import errors
from semhitok.errors import MissingExtraError, SemHiTokError, near_matches
from semhitok.extras import require

KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, Exception)
}


def test_every_kind_is_one_of_ours_and_stands_in_the_tree() -> None:
    tree = re.findall(r"── (\w+)", errors.__doc__ or "")
    assert sorted([*tree, "SemHiTokError"]) == sorted(KINDS)
    for name, kind in KINDS.items():
        assert issubclass(kind, SemHiTokError), name
        assert kind.__doc__
    assert not issubclass(SemHiTokError, (ValueError, OSError))  # nobody else's handler catches it


@pytest.mark.parametrize(
    ("name", "allowed", "expected"),
    [
        ("patchsize", ["patch_size", "name"], "; did you mean 'patch_size'?"),
        ("tinny", ["tiny", "tiny-2", "base"], "; did you mean 'tiny' or 'tiny-2'?"),
        ("zzz", ["b", "a"], "; allowed: a, b"),
    ],
)
def test_near_matches(name: str, allowed: list[str], expected: str) -> None:
    assert near_matches(name, allowed) == expected
    assert near_matches(name, dict.fromkeys(allowed)) == expected


def test_at_most_three_near_matches() -> None:
    assert near_matches("tiny", [f"tiny-{n}" for n in range(9)]).count("tiny") == 3


def test_a_missing_extra_names_the_line_that_installs_it() -> None:
    assert require("json", extra="lm").loads("1") == 1
    message = r"^no_such_thing is not installed; run: pip install 'semhitok\[lm\]'$"
    with pytest.raises(MissingExtraError, match=message):
        require("no_such_thing", extra="lm")
