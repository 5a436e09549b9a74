"""Checkpoints: nested states there and back, and never half of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from semhitok.errors import FormatError, StorageError
from semhitok.train import checkpoint
from semhitok.train.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    remove_temporaries,
    save_checkpoint,
)


def state() -> dict[str, Any]:
    shared = torch.arange(6.0).view(2, 3)
    return {
        "step": 3,
        "semantic_hash": None,
        "model": {"a.b.weight": shared, "same": shared, "half": shared.bfloat16()},
        "trainer": {
            "optimizer": {
                "state": {0: {"step": torch.tensor(2.0)}, 11: {"step": torch.tensor(1.0)}},
                "param_groups": [{"lr": 0.1 + 0.2, "betas": [0.9, 0.95], "params": [0, 11]}],
            },
            "losses": {},
        },
    }


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    else:
        assert one == other and type(one) is type(other)


def test_nested_states_come_back(tmp_path: Path) -> None:
    path = tmp_path / "0-1-00000003.safetensors"
    save_checkpoint(path, state())
    assert_equal(load_checkpoint(path), state())
    assert [f.name for f in tmp_path.iterdir()] == [path.name]


def test_an_optimiser_goes_on_exactly(tmp_path: Path) -> None:
    def advance(layer: torch.nn.Linear, optimizer: torch.optim.AdamW, seeds: range) -> None:
        for seed in seeds:
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
            layer(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    def build() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, betas=(0.8, 0.9))

    one, first = build()
    advance(one, first, range(3))
    save_checkpoint(tmp_path / "x.safetensors", {"o": first.state_dict(), "m": one.state_dict()})
    other, second = build()
    loaded = load_checkpoint(tmp_path / "x.safetensors")
    other.load_state_dict(loaded["m"])
    second.load_state_dict(loaded["o"])
    advance(one, first, range(3, 6))
    advance(other, second, range(3, 6))
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


def test_the_newest_is_the_last_by_stage_then_begun_then_step(tmp_path: Path) -> None:
    order = ["0-1-00000000", "0-1-00000998", "0-1-00001000", "1-0-00000000", "1-1-00000000"]
    for name in reversed(order):
        (tmp_path / f"{name}.safetensors").touch()
    (tmp_path / ".9-1-00000000.safetensors.77.tmp").touch()
    for name in reversed(order):
        newest = newest_checkpoint(tmp_path)
        assert newest is not None and newest.stem == name
        newest.unlink()
    assert newest_checkpoint(tmp_path) is None


def test_pruning_keeps_the_newest_and_removes_what_killed_writers_left(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        (tmp_path / f"0-1-{step:08d}.safetensors").touch()
    (tmp_path / ".0-1-00000006.safetensors.77.tmp").touch()
    prune_checkpoints(tmp_path, 2)
    names = sorted(f.name for f in tmp_path.iterdir())
    assert names == ["0-1-00000004.safetensors", "0-1-00000006.safetensors"]


def test_temporaries_are_removed_below_the_folder_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    kept = [tmp_path / "notes.tmp", tmp_path / "model" / ".hidden", tmp_path / "a.safetensors"]
    stale = [tmp_path / ".metrics.jsonl.1.tmp", tmp_path / "model" / ".config.json.1.tmp"]
    for path in kept + stale:
        path.touch()
    remove_temporaries(tmp_path)
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in stale)


@pytest.mark.parametrize("damage", ["cut", "flipped header", "empty", "text", "no state"])
def test_damage_is_said_with_the_files_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "0-1-00000003.safetensors"
    save_checkpoint(path, state())
    whole = path.read_bytes()
    if damage == "no state":
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(1)}, path)
    else:
        contents = {
            "cut": whole[:-7],
            "flipped header": b"\xff" * 16 + whole[16:],
            "empty": b"",
            "text": b"not a checkpoint",
        }
        path.write_bytes(contents[damage])
    with pytest.raises(FormatError, match="0-1-00000003.safetensors is not a whole checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
    ],
)
def test_a_full_disk_leaves_the_former_one_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "0-1-00000003.safetensors"
    save_checkpoint(path, {"step": 1})

    def half(tensors: Any, temporary: Path, metadata: Any) -> None:
        assert temporary != path
        temporary.write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(StorageError, match="the disk is full; free space"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 1}
    assert [f.name for f in tmp_path.iterdir()] == [path.name]


def test_a_kill_while_writing_leaves_no_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "0-1-00000003.safetensors"

    def killed(tensors: Any, temporary: Path, metadata: Any) -> None:
        temporary.write_bytes(b"half")
        assert not path.exists()
        assert newest_checkpoint(tmp_path) is None
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"step": 2})
    assert list(tmp_path.iterdir()) == []
