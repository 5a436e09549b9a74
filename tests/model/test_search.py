"""Nearest codes against brute force in float64: sizes, ties, near-ties, tiles, batches (C4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from semhitok.model import search
from semhitok.model.search import nearest, nearest_in_parent


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def brute(x: Tensor, codes: Tensor) -> Tensor:
    """Smallest index at the smallest float64 distance, one row at a time."""
    found = []
    for row in x.double():
        distances = (codes.double() - row).square().sum(-1)
        found.append(int((distances == distances.min()).nonzero()[0]))
    return torch.tensor(found, dtype=torch.int64)


def brute_in_parent(x: Tensor, parents: Tensor, table: Tensor) -> Tensor:
    return torch.cat([brute(row[None], table[p]) for row, p in zip(x, parents, strict=True)])


@pytest.mark.parametrize(
    ("k", "d"),
    [(1, 8), (2, 8), (7, 32), (2048, 8), (2049, 32), (16384, 8), (16384, 32), (16384, 320)],
)
def test_nearest_is_brute_force(k: int, d: int) -> None:
    x, codes = normal(4 if d > 32 else 12, d), normal(k, d, seed=1)
    assert nearest(x, codes).equal(brute(x, codes))


@pytest.mark.parametrize(("m", "d"), [(1, 8), (4, 8), (64, 32), (64, 320), (1024, 32)])
def test_nearest_in_parent_is_brute_force(m: int, d: int) -> None:
    x, table = normal(30, d), normal(10, m, d, seed=1)
    parents = torch.arange(30) * 7 % 10
    assert nearest_in_parent(x, parents, table).equal(brute_in_parent(x, parents, table))


def test_only_the_own_parent_is_searched() -> None:
    table = normal(3, 4, 8)
    x = table[2, 3][None]  # a code of parent 2, asked within parents 0 and 2
    away = nearest_in_parent(x, torch.tensor([0]), table)
    assert away.equal(brute(x, table[0]))
    assert nearest_in_parent(x, torch.tensor([2]), table).tolist() == [3]


def test_duplicated_codes_give_the_smallest_index() -> None:
    once = normal(1500, 16)
    codes = torch.cat([once, once])  # the copies lie in another tile of codes
    x = normal(50, 16, seed=1)
    assert nearest(x, codes).equal(brute(x, once))
    table = torch.stack([codes[:8].repeat(2, 1), codes[8:16].repeat(2, 1)])
    parents = torch.arange(50) % 2
    found = nearest_in_parent(x, parents, table)
    assert int(found.max()) < 8 and found.equal(brute_in_parent(x, parents, table))


def test_codes_at_the_same_distance_give_the_smallest_index() -> None:
    axes = torch.eye(6)
    codes = torch.cat([-axes, axes])  # all twelve are as far from the origin
    assert nearest(torch.zeros(3, 6), codes).tolist() == [0, 0, 0]
    assert nearest(torch.zeros(3, 6), codes[[7, 7, 3, 1]]).tolist() == [0, 0, 0]
    parents = torch.zeros(3, dtype=torch.int64)
    assert nearest_in_parent(torch.zeros(3, 6), parents, codes[None]).tolist() == [0, 0, 0]
    # In the middle of codes 2 and 5, whatever comes before.
    far = torch.full((8, 2), 9.0)
    far[2], far[5] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert nearest(torch.full((1, 2), 0.5), far).tolist() == [2]


def test_equal_codes_give_index_zero() -> None:
    codes = normal(1, 8).expand(5000, 8)
    assert nearest(normal(9, 8, seed=1), codes).tolist() == [0] * 9
    table, parents = codes.unflatten(0, (5, 1000)), torch.arange(9) % 5
    assert nearest_in_parent(normal(9, 8, seed=1), parents, table).tolist() == [0] * 9


@pytest.mark.parametrize("offset", [0.0, 100.0, 3000.0])
def test_near_ties_are_decided_as_in_float64(offset: float) -> None:
    """Codes one rounding step apart, and far from the origin, where fp32 scores are all noise."""
    some = normal(40, 32) + offset
    above = torch.nextafter(some, torch.tensor(torch.inf))
    below = torch.nextafter(some, torch.tensor(-torch.inf))
    codes = torch.cat([above, some, below])[torch.randperm(120, generator=torch.Generator())]
    x = normal(60, 32, seed=1) + offset
    assert nearest(x, codes).equal(brute(x, codes))
    table, parents = codes.unflatten(0, (4, 30)), torch.arange(60) % 4
    assert nearest_in_parent(x, parents, table).equal(brute_in_parent(x, parents, table))


@pytest.mark.parametrize("scale", [1e-18, 1e15])
def test_very_small_and_very_large_values(scale: float) -> None:
    x, codes = normal(30, 8) * scale, normal(50, 8, seed=1) * scale
    assert nearest(x, codes).equal(brute(x, codes))
    parents = torch.zeros(30, dtype=torch.int64)
    assert nearest_in_parent(x, parents, codes[None]).equal(brute(x, codes))


@pytest.mark.parametrize(
    ("rows", "codes", "block"),
    [(1, 1, 1), (3, 8, 2), (64, 5, 5), (64, 10, 5), (9, 33, 11), (1000, 1000, 1000)],
)
def test_results_do_not_depend_on_tiles(
    monkeypatch: pytest.MonkeyPatch, rows: int, codes: int, block: int
) -> None:
    x, flat = normal(24, 8), normal(64, 8, seed=1)
    flat[33] = flat[4]
    x[:5] = flat[4]
    table, parents = flat.unflatten(0, (8, 8)), torch.arange(24) % 8
    monkeypatch.setattr(search, "ROW_TILE", rows)
    monkeypatch.setattr(search, "CODE_TILE", codes)
    monkeypatch.setattr(search, "CODE_BLOCK", block)
    monkeypatch.setattr(search, "EXACT_VALUES", rows)
    monkeypatch.setattr(search, "GATHER_VALUES", rows * codes)
    assert nearest(x, flat).equal(brute(x, flat))
    assert nearest_in_parent(x, parents, table).equal(brute_in_parent(x, parents, table))


class _Largest(TorchFunctionMode):
    """Remembers how many float32 the largest tensor that any operation gives would be."""

    numel = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel() * value.element_size() // 4)
        return out


@contextmanager
def largest_tensor() -> Iterator[_Largest]:
    with _Largest() as largest:
        yield largest


@pytest.mark.parametrize("ties", [False, True])
def test_memory_is_bounded_by_the_tiles(monkeypatch: pytest.MonkeyPatch, ties: bool) -> None:
    n, k, d = 700, 3000, 8
    x, codes = normal(n, d), normal(k, d, seed=1)
    if ties:
        codes[:] = codes[0]
    monkeypatch.setattr(search, "ROW_TILE", 64)
    monkeypatch.setattr(search, "CODE_TILE", 256)
    monkeypatch.setattr(search, "EXACT_VALUES", 1 << 15)
    monkeypatch.setattr(search, "GATHER_VALUES", 1 << 14)
    with largest_tensor() as largest:
        nearest(x, codes)
    assert largest.numel <= max(1 << 16, 2 * k * d) < n * k // 20
    table, parents = codes[:96].unflatten(0, (3, 32)), torch.arange(n) % 3
    with largest_tensor() as largest:
        nearest_in_parent(x, parents, table)
    assert largest.numel <= 1 << 16 < n * 32 * d // 2


def test_default_tiles_hold_tens_of_megabytes() -> None:
    assert search.ROW_TILE * search.CODE_TILE * 4 <= 32 << 20
    assert search.EXACT_VALUES * 8 <= 64 << 20
    assert search.GATHER_VALUES * 4 <= 64 << 20


def test_rows_find_the_same_codes_alone_and_in_any_batch() -> None:
    x, codes = normal(33, 320), normal(100, 320, seed=1)
    codes[50:] = torch.nextafter(codes[:50], torch.tensor(torch.inf))
    table, parents = codes.unflatten(0, (10, 10)), torch.arange(33) % 10
    whole, own = nearest(x, codes), nearest_in_parent(x, parents, table)
    for n in range(1, 34):
        assert nearest(x[:n], codes).equal(whole[:n])
        assert nearest(x[-n:], codes).equal(whole[-n:])
        assert nearest_in_parent(x[-n:], parents[-n:], table).equal(own[-n:])


def test_no_rows_give_no_indices() -> None:
    assert nearest(normal(0, 8), normal(5, 8)).shape == (0,)
    none = torch.empty(0, dtype=torch.int64)
    found = nearest_in_parent(normal(0, 8), none, normal(3, 5, 8))
    assert found.shape == (0,) and found.dtype == torch.int64


def test_half_precision_is_searched_in_float32() -> None:
    x, codes = normal(20, 16).bfloat16(), normal(30, 16, seed=1).bfloat16()
    assert nearest(x, codes).equal(brute(x.float(), codes.float()))


def test_search_takes_no_gradient() -> None:
    x, codes = normal(4, 8).requires_grad_(), normal(6, 8, seed=1).requires_grad_()
    assert not nearest(x, codes).requires_grad


@pytest.mark.parametrize("count", [300, 5000])
def test_autocast_changes_no_index(count: int) -> None:
    x, codes = normal(400, 16), normal(count, 16, seed=1)
    table, parents = codes[:300].unflatten(0, (30, 10)), torch.arange(400) % 30
    flat, own = nearest(x, codes), nearest_in_parent(x, parents, table)
    with torch.autocast("cpu", torch.bfloat16):
        assert nearest(x, codes).equal(flat)
        assert nearest_in_parent(x, parents, table).equal(own)
