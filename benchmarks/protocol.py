"""What the benchmarks share: contestants timed in turn, and the protocol before a table."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch


def race(contestants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each: one round that does not count, then `repeats`, all in turn.

    In turn, so that a machine that slows down slows all of them.
    """
    took: dict[str, list[float]] = {name: [] for name in contestants}
    for lap in range(repeats + 1):
        for name, work in contestants.items():
            started = time.perf_counter()
            work()
            if lap:
                took[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def product(dtype: torch.dtype = torch.float32, side: int = 2048) -> Callable[[], object]:
    """A matrix product of `2 * side ** 3` operations: the machine's matrix peak."""
    matrix = torch.randn(side, side).to(dtype)
    return lambda: matrix @ matrix


def protocol(repeats: int, sizes: str) -> str:
    """Machine, threads, versions, sizes."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f} at the start\n"
        f"{sizes}\nmedian of {repeats}, contestants in turn"
    )


def show(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table in columns as wide as they need."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        first, *rest = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join([first, *(cell.strip().rjust(len(cell)) for cell in rest)]).rstrip())


def bar(name: str, value: float, limit: float, *, at_most: bool = False, unit: str = "x") -> str:
    """One line: what was asked, what was measured."""
    met = value <= limit if at_most else value >= limit
    sign = "at most" if at_most else "at least"
    return f"{name}: {value:.4g}{unit}, bar {sign} {limit:g}{unit}: {'met' if met else 'NOT met'}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    fields = dict(
        (part.strip() for part in line.split(":", 1))
        for line in info.read_text().splitlines()
        if ":" in line
    )
    extra = [f for f in ("avx512f", "avx512_bf16", "amx_bf16") if f in fields.get("flags", "")]
    return f"{fields.get('model name', platform.machine())} ({', '.join(extra) or 'no AVX-512'})"
