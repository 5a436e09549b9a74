"""What the command adds to `Run`: wiring, messages, exit codes. `Run` has tests of its own."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from semhitok import cli
from semhitok.train import run


class FakeRun:
    """Remembers what it got; `train` gives a model, or raises."""

    made: list[FakeRun] = []
    raises: type[BaseException] | None = None

    def __init__(self, recipe: Any, source: Any, folder: Path, *, evaluation: Any) -> None:
        self.recipe, self.source, self.folder, self.evaluation = recipe, source, folder, evaluation
        self.world = SimpleNamespace(leave=lambda: None)
        self.made.append(self)

    def train(self) -> Any:
        logging.getLogger("semhitok.train.loop").info("semantic 1/2")
        if self.raises is not None:
            raise self.raises
        return SimpleNamespace(config=SimpleNamespace(name="toy"), hash="abc")


@pytest.fixture(autouse=True)
def fake_run(monkeypatch: pytest.MonkeyPatch) -> type[FakeRun]:
    monkeypatch.setattr(run, "Run", FakeRun)
    monkeypatch.setattr(FakeRun, "made", [])
    monkeypatch.setattr(FakeRun, "raises", None)
    return FakeRun


def train(photos: Path, out: Path, *arguments: str) -> int:
    return cli.main(["train", "tiny", "--data", str(photos), "--out", str(out), *arguments])


def test_recipe_data_and_overrides_reach_the_run(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", str(photos), "--set", "seed=7", "--set", "name=mine", "--json")
    assert train(photos, tmp_path / "run", *arguments) == 0
    [made] = FakeRun.made
    assert (made.recipe.seed, made.recipe.name, len(made.source)) == (7, "mine", 10)
    assert made.folder == tmp_path / "run" and made.evaluation is None
    out, err = capsys.readouterr()
    assert json.loads(out) == {"model": str(tmp_path / "run/model"), "name": "toy", "hash": "abc"}
    assert err.endswith(" semantic 1/2\n")


def test_other_ranks_are_silent(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("RANK", "1")
    assert train(photos, tmp_path / "run") == 0
    assert capsys.readouterr() == ("", "")


def test_interrupted_run_says_how_to_go_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(FakeRun, "raises", KeyboardInterrupt)
    assert train(photos, tmp_path / "run") == 130
    assert capsys.readouterr().err.endswith("interrupted; the same command continues\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--set", "sed=7"), "did you mean 'seed'"),
        (("--set", "pixel.optimizer.lrr=7"), "did you mean 'lr'"),
        (("--set", "seed"), "has no '='"),
        (("--data", "no-such-folder"), "no such file or folder"),
        (("--probe", "PHOTOS", "PHOTOS"), "has no labels"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...],
    expected: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(photos) if a == "PHOTOS" else a for a in arguments]
    assert train(photos, tmp_path / "run", *given) == 2
    out, err = capsys.readouterr()
    assert out == "" and expected in err and err.count("\n") == 1
    assert FakeRun.made == [] and not (tmp_path / "run").exists()


def test_unknown_recipe_names_its_neighbours(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "tinny", "--data", str(photos), "--out", str(tmp_path)]) == 2
    assert "did you mean 'tiny'" in capsys.readouterr().err
