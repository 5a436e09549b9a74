"""The twenty pictures of these tests, and how two folders are compared."""

from __future__ import annotations

from pathlib import Path

BROKEN = (3, 17)
COUNT = 20


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that a user sees."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}
