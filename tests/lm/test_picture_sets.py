from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semhitok.lm.assistant import Assistant
from semhitok.lm.picture_sets import Folder, Memory, Wanted, draw_missing, seed_of
from semhitok.lm.sampling import Sampling

SET = [Wanted(f"{n}", None if n == 3 else "dog " * (n + 1), f"a/{n}.png") for n in range(5)]
HOW = Sampling(guidance=2.0)


def pixels(store: Folder | Memory) -> list[np.ndarray]:
    return [np.asarray(store.get(one.file)) for one in SET]


@pytest.fixture
def whole(assistant: Assistant) -> list[np.ndarray]:
    store = Memory()
    assert draw_missing(assistant, SET, store, sampling=HOW, seed=1) == 5
    return pixels(store)


def test_the_same_pictures_however_it_is_cut_up(
    assistant: Assistant, whole: list[np.ndarray], tmp_path: Path
) -> None:
    store, told = Folder(tmp_path), list[int]()
    assert draw_missing(assistant, SET[3:4], store, sampling=HOW, seed=1) == 1
    kept = (tmp_path / "a/3.png").stat().st_mtime_ns
    options = dict(sampling=HOW, seed=1, batch_size=3, advance=told.append)
    assert draw_missing(assistant, SET, store, **options) == 4  # type: ignore[arg-type]
    assert (tmp_path / "a/3.png").stat().st_mtime_ns == kept and told == [4, 5]
    assert all(map(np.array_equal, pixels(store), whole))
    assert not np.array_equal(whole[0], whole[1])
    again = Memory()
    draw_missing(assistant, SET, again, sampling=HOW, seed=2)
    assert not all(map(np.array_equal, pixels(again), whole))


def test_what_is_not_whole_is_drawn_again(
    assistant: Assistant, whole: list[np.ndarray], tmp_path: Path
) -> None:
    store = Folder(tmp_path)
    draw_missing(assistant, SET, store, sampling=HOW, seed=1)
    cut = (tmp_path / "a/1.png").read_bytes()
    (tmp_path / "a/1.png").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "a/2.png").write_bytes(b"no picture")
    assert draw_missing(assistant, SET, store, sampling=HOW, seed=1) == 2
    assert all(map(np.array_equal, pixels(store), whole))
    with Image.open(tmp_path / "a/1.png") as image:
        assert image.size == (16, 16)


def test_seeds_are_of_keys_and_fit_a_generator() -> None:
    seeds = {seed_of(seed, key) for seed in range(3) for key in ("a", "b", "\ud800")}
    assert len(seeds) == 9 and all(0 <= seed < 2**63 for seed in seeds)
