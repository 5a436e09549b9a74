"""A folder for one piece of work: what is asked for is written down, and nothing else goes in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from semhitok.errors import FormatError, StorageError
from semhitok.files import check_writable, write_file

ASKED = "asked.json"


def claim_folder(folder: Path, asked: Mapping[str, Any]) -> None:
    """Write down what is asked for, or see that it is the same as before.

    Raises:
        FormatError: the folder was made for something else.
        StorageError: it cannot be written, or has files of other origin.
    """
    check_writable(folder, needed_bytes=0)
    path = folder / ASKED
    text = json.dumps(asked, indent=2, sort_keys=True) + "\n"
    if path.is_file():
        before, now = dict(_leaves(_read(path))), dict(_leaves(json.loads(text)))
        for name in sorted({*now, *before}):
            if before.get(name) != now.get(name):
                raise FormatError(
                    f"{folder} was made with {name} {_short(before.get(name))}, not "
                    f"{_short(now.get(name))}; ask for the same, or choose another --out"
                )
        return
    strangers = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if strangers:
        raise StorageError(
            f"{folder} has files of another origin ({strangers[0]}); choose an empty or new folder "
            "as --out"
        )
    write_file(path, lambda temporary: temporary.write_text(text, "utf-8"))


def _read(path: Path) -> dict[str, Any]:
    try:
        before = json.loads(path.read_text("utf-8"))
        if not isinstance(before, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} is damaged; choose another --out") from error
    return before


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
