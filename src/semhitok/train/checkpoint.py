"""Checkpoints: a nested state as one safetensors file, written so that a half one is never seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from semhitok.errors import FormatError
from semhitok.files import write_file

SEPARATOR = "/"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a nested mapping of tensors and JSON values."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    _flatten("", state, tensors, values)
    # Two names may share memory (a weight and its optimiser's view); files hold copies.
    copies = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    write_file(path, lambda temporary: save_file(copies, temporary, {"state": json.dumps(values)}))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        FormatError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            values = json.loads(file.metadata()["state"])
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is not a whole checkpoint ({error}); delete it") from error
    return _nest(flat | values)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; files are named by stage and step, in order."""
    return max(folder.glob("*.safetensors"), default=None, key=lambda path: path.name)


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep`, and what killed writers left behind."""
    for old in sorted(folder.glob("*.safetensors"))[:-keep]:
        old.unlink()
    remove_temporaries(folder)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in a folder and below."""
    for stale in folder.rglob(".*.tmp"):
        stale.unlink(missing_ok=True)


def _flatten(prefix: str, state: Any, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    if isinstance(state, torch.Tensor):
        tensors[prefix] = state
    elif isinstance(state, dict) and state:
        for key, value in state.items():
            name = f"i:{key}" if isinstance(key, int) else f"s:{key}"
            _flatten(f"{prefix}{SEPARATOR}{name}" if prefix else name, value, tensors, values)
    else:
        values[prefix] = state


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    root: dict[Any, Any] = {}
    for path, value in flat.items():
        node = root
        *parents, last = [_key(part) for part in path.split(SEPARATOR)]
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return root


def _key(part: str) -> str | int:
    return int(part[2:]) if part.startswith("i:") else part[2:]
