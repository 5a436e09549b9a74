"""Each benchmark runs at a tiny size, in a process of its own, and ends in its bars."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
BARS = {
    "search.py": ("SGHC faster than flat", "SGHC's memory of flat's"),
    "gpu.py --device cpu": ("encode's best share of the matrix peak",),
    "encode.py": ("quantization's share of encode", "encode over teacher"),
    "shard_size.py": ("codes over the ids' entropy", "codes over .npy"),
    "generate.py": ("factorised over text, batch 1", "guided over not, factorised, batch 2"),
    "read_tokens.py": ("shuffled stream, one process",),
}


@pytest.mark.parametrize("script", BARS)
def test_a_benchmark_runs(script: str) -> None:
    name, *options = script.split()
    command = [sys.executable, str(FOLDER / name), *options, "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert "threads, torch" in first
    for name in BARS[script]:
        line = next(line for line in lines if line.startswith(name))
        assert ", bar at " in line and line.split(": ")[-1].startswith(("met", "NOT met"))
