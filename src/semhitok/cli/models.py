"""Models by the name that a user gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from semhitok import hub
from semhitok.errors import FormatError, RangeError
from semhitok.model import SemHiTok
from semhitok.model.config import ALL_PARTS, Part
from semhitok.model.tokenizer import tensors_hash


def pick_device(name: str | None) -> torch.device:
    """The named device, or a GPU where there is one.

    Raises:
        RangeError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RangeError(
            f"device {name!r} is not there; allowed: cpu, and cuda, cuda:N or mps where torch "
            "finds them"
        ) from error
    if device.type == "meta":
        raise RangeError("device 'meta' computes nothing; allowed: cpu, cuda, cuda:N, mps")
    return device


def load_model(name: str, device: torch.device, parts: Sequence[Part] = ALL_PARTS) -> SemHiTok:
    """The model on its device."""
    return hub.load(name, parts=parts).to(device)


def file_hash(folder: Path) -> str:
    """A model's hash from its files alone: no network is built for it.

    Raises:
        FormatError: files that are missing or damaged.
    """
    config, path = hub.read_config(folder), folder / hub.WEIGHTS
    if not path.is_file():
        raise FormatError(f"{folder} has no {hub.WEIGHTS}; get a whole copy of the model")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            stored = (file.metadata() or {}).get("hash")
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{path} is damaged ({error}); get a whole copy of it") from error
    digest = tensors_hash(tensors, json.dumps(config.to_dict(), sort_keys=True).encode())
    if stored not in (None, digest):
        raise FormatError(
            f"{path} does not have the hash that it was saved with: config or weights were "
            "changed; get a whole copy of both"
        )
    return digest
