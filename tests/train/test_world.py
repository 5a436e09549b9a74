"""Two ranks do what one process does: the same statistics, the same steps up to float sums."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import fork_context, stages, train_rank
from torch import Tensor

from semhitok.train.world import World

STEPS = 3

# What cannot be equal is off: disturbed codes and revival draw by row, and rows lie on ranks.
ALIKE = (
    "enhance.noise=0",
    "semantic.restart_every=100",
    "pixel.restart_every=100",
    "pixel.phases=[{steps: 4, crop: 32, batch_size: 4}]",
    "semantic.phases=[{steps: 4, crop: 32, batch_size: 4}]",
    "enhance.phases=[{steps: 4, crop: 32, batch_size: 4}]",
)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, overrides: tuple[str, ...], photos: Path) -> Path:
    """Folder of what two ranks under gloo have left."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = fork_context()
    arguments = (port, out, photos, (*overrides, *ALIKE), STEPS)
    ranks = [context.Process(target=train_rank, args=(rank, *arguments)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(300)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert codes == [0, 0]
    return out


@pytest.fixture(scope="module")
def found(two: Path) -> list[dict[str, dict[str, Any]]]:
    """What each rank saw of each stage."""
    return [torch.load(two / f"stages-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(overrides: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    return stages((*overrides, *ALIKE), STEPS, World())


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]


@pytest.mark.parametrize("stage", ["semantic", "pixel", "enhance"])
def test_ranks_hold_the_same_bits(found: list[dict[str, dict[str, Any]]], stage: str) -> None:
    for part in ("begun", "ended", "trainer"):
        assert different(found[0][stage][part], found[1][stage][part]) == []
    assert found[0][stage]["logged"] == found[1][stage]["logged"]


def test_a_run_of_two_ranks_ends_in_one_model(two: Path) -> None:
    states = [torch.load(two / f"run-{rank}.pt", weights_only=True) for rank in range(2)]
    assert different(*states) == []
    assert (two / "run" / "model" / "model.safetensors").is_file()
    lines = (two / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 12


def test_what_is_fitted_to_data_is_what_one_process_fits(
    found: list[dict[str, dict[str, Any]]], alone: dict[str, dict[str, Any]]
) -> None:
    # Scale, mean and k-means codes; the same rows in the same order give the same bits.
    assert different(found[0]["semantic"]["begun"], alone["semantic"]["begun"]) == []


@pytest.mark.parametrize("stage", ["semantic", "pixel", "enhance"])
def test_steps_are_those_of_one_process(
    found: list[dict[str, dict[str, Any]]], alone: dict[str, dict[str, Any]], stage: str
) -> None:
    ours, expected = found[0][stage], alone[stage]
    for step, (values, those) in enumerate(zip(ours["logged"], expected["logged"], strict=True)):
        assert values.keys() == those.keys()
        for name, value in values.items():
            # Usage is of each rank's own patches, and PSNR a mean of logarithms.
            if not name.endswith(("usage", "perplexity", "psnr")):
                assert value == pytest.approx(those[name], rel=1e-3, abs=1e-5), (step, name)
    moved = 0.0
    for name, tensor in ours["ended"].items():
        torch.testing.assert_close(
            tensor, expected["ended"][name], rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
        moved = max(moved, float((tensor - ours["begun"][name]).abs().max()))
    assert moved > 1e-3  # else the comparison said nothing
    for name, tensor in ours["trainer"].items():
        if "/codebook/" in name or "/usage/" in name:
            torch.testing.assert_close(tensor, expected["trainer"][name], rtol=1e-4, atol=1e-5)


def test_one_process_is_a_world_of_its_own() -> None:
    world, rows = World(), torch.arange(4.0)
    world.sum_(rows)
    world.barrier()
    assert rows.tolist() == [0, 1, 2, 3]
    assert world.gather_rows(rows) is rows
    assert world.broadcast("x") == "x"
    assert world.mean({}) == {} and world.is_first
