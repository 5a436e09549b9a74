from __future__ import annotations

from collections import Counter

import pytest
import torch

from semhitok.errors import RangeError
from semhitok.lm.sampling import Level

PROBS = torch.tensor([0.1, 0.4, 0.0, 0.3, 0.2])


def picks(level: Level) -> Counter[int]:
    """How often each choice is drawn, of 1,000 numbers spread over [0, 1)."""
    uniform = torch.arange(1000) / 1000
    return Counter(level.pick(PROBS.log().expand(1000, -1), uniform).tolist())


def test_choices_are_drawn_as_often_as_they_are_likely() -> None:
    assert picks(Level()) == pytest.approx({0: 100, 1: 400, 3: 300, 4: 200}, abs=2)


def test_temperature() -> None:
    wanted = (PROBS**2 / (PROBS**2).sum() * 1000).tolist()
    found = picks(Level(temperature=0.5))
    assert [found[n] for n in range(5)] == pytest.approx(wanted, abs=2)
    assert picks(Level(temperature=0.0)) == {1: 1000}


def test_top_k_and_top_p() -> None:
    assert picks(Level(top_k=2)) == pytest.approx({1: 571, 3: 429}, abs=2)
    assert picks(Level(top_k=9)) == pytest.approx({0: 100, 1: 400, 3: 300, 4: 200}, abs=2)
    assert picks(Level(top_p=0.5)) == pytest.approx({1: 571, 3: 429}, abs=2)
    assert picks(Level(top_p=0.39)) == {1: 1000}
    assert picks(Level(top_p=0.95, top_k=3)) == pytest.approx({1: 444, 3: 333, 4: 222}, abs=2)


def test_nothing_impossible_is_drawn() -> None:
    scores = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    ends = torch.tensor([0.0]), torch.tensor([1 - 2**-24])
    assert [int(Level().pick(scores, u)) for u in ends] == [1, 2]
    assert [int(Level(top_p=0.9).pick(scores, u)) for u in ends] == [1, 2]


def test_impossible_levels() -> None:
    with pytest.raises(RangeError, match=r"temperature is -1.0; it must be at least 0"):
        Level(temperature=-1.0)
    with pytest.raises(RangeError, match="top_k is 0; it must be at least 1"):
        Level(top_k=0)
    with pytest.raises(RangeError, match=r"top_p is 0.0; it must be in \(0, 1\]"):
        Level(top_p=0.0)
