"""benchmarks/peers.py without the peers' code: our rows, what is left out, and clean imports."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = """
extends: semhitok-256
name: small
teacher:
  architecture: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1,
    num_attention_heads: 1, image_size: 32}
model:
  image_size: 32
  semantic: {num_codes: 16, code_dim: 8, decoder: {width: 32, depth: 1, heads: 1}}
  pixel: {num_codes: 4, encoder: {width: 32, depth: 1, heads: 1}}
"""


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """In this process, where torch and transformers are imported already."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("peers")


@pytest.fixture
def run(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    def lines(*options: str) -> list[str]:
        command = ["peers.py", "--batch-size", "2", "--repeats", "1", "--peak-side", "64"]
        monkeypatch.setattr(sys, "argv", [*command, *options])
        peers.main()
        return capsys.readouterr().out.splitlines()

    return lines


def test_our_rows_without_peers(run: Callable[..., list[str]], tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(SMALL)
    lines = run("--recipe", str(recipe), "--size", "32")
    assert "threads, torch" in lines[0]
    # 2 x 2 patches of log2(16 * 4) bits; 4 x 4 of log2(1024 * 1024).
    assert [line.split()[-2:] for line in lines if line.startswith("small")][0] == ["4", "24"]
    assert [line.split()[-2:] for line in lines if line.startswith("tiny")][0] == ["16", "320"]
    for dtype in ("fp32", "bf16"):
        table = lines.index(next(line for line in lines if line.startswith(f"{dtype}; a matrix")))
        names = {line.split()[0] for line in lines[table + 2 : table + 4]}
        assert names == {"small", "tiny"}


def test_another_size_than_the_peers_is_refused(
    run: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("--peers", str(tmp_path), "--size", "32")
    assert "--size is 32; the peers' published models are for 256" in capsys.readouterr().err


def test_a_peer_that_does_not_build_is_named(
    peers: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "llamagen").mkdir()
    assert list(peers.load_peers(tmp_path)) == []
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("llamagen left out: ModuleNotFoundError: No module named 'tokenizer")
    assert second == f"tokenflow left out: there is no {tmp_path / 'tokenflow'}"


def test_imports_of_a_checkout_leave_nothing_behind(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "UNUSED", ("no_such_package",))
    (tmp_path / "their_models").mkdir()  # without __init__.py
    (tmp_path / "their_models" / "net.py").write_text(
        "import no_such_package as p\nfrom no_such_package.deep import Thing\nprint('built')\n"
        "class Net(p.LightningModule):\n    mode = Thing.MODE\n"
    )
    before, path = set(sys.modules), list(sys.path)
    with peers.code_of(tmp_path):
        assert importlib.import_module("their_models.net").Net().training
    assert set(sys.modules) == before
    assert sys.path == path
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_package")


def test_the_bar_holds_only_for_peers_with_as_many_flops(peers: ModuleType) -> None:
    flops, took = {"ours": 10, "more": 12, "fewer": 5}, {"ours": 2.0, "more": 3.0, "fewer": 1.0}
    more, fewer = peers.verdicts(["ours", "more", "fewer"], flops, took, "fp32")
    assert more.endswith("more, fp32 (it needs 1.20 of our FLOPs): 1.5x, bar at least 1x: met")
    assert fewer.endswith("fewer, fp32 (it needs 0.50 of our FLOPs): 0.5x, no bar")
