from __future__ import annotations

import time

import numpy as np
import pytest

from semhitok.lm.packing import OPEN_ITEMS, Plan, fill, lay_out

RANDOM = np.random.default_rng(0)
LENGTHS = RANDOM.integers(5, 60, 500)
NONE = np.zeros(500, dtype=np.int64)
OTHER = RANDOM.integers(30, 41, 80)
WITHOUT = np.full(80, 20)
MIXTURE = [(LENGTHS, NONE, 1.0), (OTHER, WITHOUT, 0.35)]


def plan(epoch: int = 0, seed: int = 0, drop: float = 0.1) -> Plan:
    return lay_out(MIXTURE, length=100, seed=seed, epoch=epoch, drop=drop)


def members(made: Plan) -> list[tuple[int, int, bool]]:
    return [member for n in range(len(made)) for member in made.item(n)]


def test_items_are_full_but_not_overfull() -> None:
    for lengths in (LENGTHS, OTHER, np.array([100] * 9), np.array([1])):
        items = fill(lengths, 100)
        sums = np.bincount(items, weights=lengths)
        assert sums.max() <= 100 and sums.min() > 0
        assert len(sums) == items.max() + 1
    assert LENGTHS.sum() / (100 * (fill(LENGTHS, 100).max() + 1)) > 0.96


def test_of_items_only_some_are_open() -> None:
    """What does not fit anywhere closes the fullest: later examples cannot reach far back."""
    lengths = np.array([60] * (OPEN_ITEMS + 1) + [40] * (OPEN_ITEMS + 1))
    items = fill(lengths, 100)
    assert items.max() == OPEN_ITEMS + 1
    assert 0 not in items[OPEN_ITEMS + 1 :]


def test_an_epoch_has_every_example_as_often_as_its_weight_says() -> None:
    for epoch in range(3):
        found = members(plan(epoch))
        assert sorted(n for source, n, _ in found if source == 0) == list(range(500))
        assert sum(source == 1 for source, _, _ in found) == 28
    over = [n for epoch in range(20) for source, n, _ in members(plan(epoch)) if source == 1]
    assert np.bincount(over).tolist() == [7] * 80, "0.35 x 20 epochs, each as often"


def test_a_weight_above_one() -> None:
    made = lay_out([(OTHER, WITHOUT, 2.5)], length=100, seed=0, epoch=1, drop=0.0)
    counts = np.bincount([n for _, n, _ in members(made)])
    assert counts.min() >= 2 and counts.max() <= 3 and counts.sum() == 200


def test_the_plan_follows_from_seed_and_epoch() -> None:
    assert members(plan(3, 5)) == members(plan(3, 5))
    assert members(plan(3, 5)) != members(plan(4, 5))
    assert members(plan(3, 5)) != members(plan(3, 6))


def test_places_are_drawn_anew_in_each_epoch() -> None:
    """Not only which example comes where: also where its source does, and where text is dropped."""
    even = (np.full(50, 100), np.full(50, 10), 1.0)

    def places(epoch: int) -> tuple[list[int], list[bool]]:
        made = lay_out([even, even], length=100, seed=0, epoch=epoch, drop=0.5)
        return made.sources.tolist(), made.dropped.tolist()

    (sources, dropped), (others, more) = places(0), places(1)
    assert sources != others and dropped != more


def test_text_is_dropped_of_a_share_of_what_has_some() -> None:
    made = [members(lay_out(MIXTURE, length=100, seed=0, epoch=e, drop=0.3)) for e in range(40)]
    dropped = [[n for s, n, off in found if off and s == 1] for found in made]
    assert not any(off for found in made for source, _, off in found if source == 0)
    assert sum(map(len, dropped)) / (40 * 28) == pytest.approx(0.3, abs=0.05)
    assert len({tuple(sorted(d)) for d in dropped}) > 30, "others in each epoch"
    assert not any(off for _, _, off in members(plan(drop=0.0)))


def test_dropped_text_takes_no_room() -> None:
    all_dropped = lay_out([(OTHER, WITHOUT, 1.0)], length=42, seed=0, epoch=0, drop=1.0)
    none = lay_out([(OTHER, WITHOUT, 1.0)], length=42, seed=0, epoch=0, drop=0.0)
    assert len(none) == 80 and len(all_dropped) < 45


def test_a_million_examples_take_seconds() -> None:
    lengths = RANDOM.integers(10, 600, 1_000_000)
    begun = time.perf_counter()
    made = lay_out([(lengths, np.zeros_like(lengths), 1.0)], length=2048, seed=0, epoch=0, drop=0.1)
    assert time.perf_counter() - begun < 15, "about one, on a machine that has nothing else to do"
    assert lengths.sum() / (2048 * len(made)) > 0.99
