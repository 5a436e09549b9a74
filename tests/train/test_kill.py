"""Runs that are killed, and started again until they end, end in the same bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from processes import fork_context, train

from semhitok.train.recipe import load_recipe

PAUSE_S = 0.04


def logged(folder: Path, stage: str) -> int:
    """Steps of a stage in `metrics.jsonl`."""
    path = folder / "metrics.jsonl"
    return path.read_text().count(f'"stage": "{stage}"') if path.exists() else 0


def kill_when(
    folder: Path,
    photos: Path,
    overrides: tuple[str, ...],
    ready: Callable[[], bool],
    delay_s: float,
) -> bool:
    """Start a run, kill it a moment after it is ready; whether it had not ended before."""
    process = fork_context().Process(target=train, args=(folder, photos, overrides, PAUSE_S))
    process.start()
    assert process.pid is not None
    while process.is_alive() and not ready():
        time.sleep(0.002)
    time.sleep(delay_s)
    hit = process.is_alive()
    os.kill(process.pid, signal.SIGKILL) if hit else None
    process.join(60)
    assert hit or process.exitcode == 0
    return hit


def finish(folder: Path, photos: Path, overrides: tuple[str, ...]) -> None:
    process = fork_context().Process(target=train, args=(folder, photos, overrides, 0.0))
    process.start()
    process.join(300)
    assert process.exitcode == 0


def test_a_kill_in_each_stage_changes_no_bit(
    tmp_path: Path,
    photos: Path,
    overrides: tuple[str, ...],
    straight: Callable[..., Path],
    assert_same_run: Callable[[Path, Path], None],
) -> None:
    folder = tmp_path / "run"
    moments = random.Random(0)
    hits = 0
    for stage in ("semantic", "pixel", "enhance"):
        line, delay_s = moments.randint(1, 3), moments.uniform(0, PAUSE_S)
        hits += kill_when(
            folder, photos, overrides, lambda s=stage, n=line: logged(folder, s) >= n, delay_s
        )
    assert hits == 3
    finish(folder, photos, overrides)
    assert_same_run(folder, straight())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_many_kills_at_any_moment_change_no_bit(
    tmp_path: Path,
    photos: Path,
    overrides: tuple[str, ...],
    straight: Callable[..., Path],
    assert_same_run: Callable[[Path, Path], None],
    seed: int,
) -> None:
    folder = tmp_path / "run"
    moments = random.Random(seed)
    hits = 0
    for attempt in range(25):
        # Not from a sign of life on: loading, fitting and saving are hit too. The first ones are
        # sooner than any machine is done, the pauses alone take 0.6 s.
        delay_s = moments.uniform(0.05, 0.3 + 0.06 * attempt)
        hits += kill_when(folder, photos, overrides, lambda: True, delay_s)
        if (folder / "model" / "metrics.json").exists():
            break
    assert hits >= 3
    finish(folder, photos, overrides)
    assert_same_run(folder, straight())


@pytest.mark.slow
def test_the_command_goes_on_after_kills(
    tmp_path: Path,
    photos: Path,
    overrides: tuple[str, ...],
    straight: Callable[..., Path],
    assert_same_run: Callable[[Path, Path], None],
) -> None:
    folder, recipe = tmp_path / "run", tmp_path / "minute.yaml"
    recipe.write_text(yaml.safe_dump(load_recipe("tiny", overrides).model_dump(mode="json")))
    command = [sys.executable, "-m", "semhitok", "train", str(recipe)]
    command += ["--data", str(photos), "--out", str(folder)]
    moments = random.Random(1)
    for stage in ("semantic", "pixel", "enhance"):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and logged(folder, stage) < 1:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert_same_run(folder, straight())
