"""Names packed into one block come out as they went in."""

from __future__ import annotations

import os
import pickle

import pytest

from semhitok.data.sources.names import Names


def test_names_are_a_sequence() -> None:
    given = ["a/b.png", "", "é.png", os.fsdecode(b"\xff.png"), "z"]
    names = Names(given)
    assert list(names) == given and len(names) == 5 and names[-1] == "z"
    assert names[1:4] == given[1:4] and "é.png" in names
    assert list(pickle.loads(pickle.dumps(names))) == given
    with pytest.raises(IndexError):
        names[5]
    assert not Names([])
