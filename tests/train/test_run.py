"""Whole runs: they go on exactly, refuse what is not theirs, and leave the semantics alone."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import semhitok.files
from semhitok.data.sources import FolderSource
from semhitok.errors import FormatError, RecipeError, StorageError, TrainingError
from semhitok.model import SemHiTok
from semhitok.model.tokenizer import tensors_hash
from semhitok.train import checkpoint, critic, run
from semhitok.train.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from semhitok.train.enhance import EnhanceTrainer
from semhitok.train.pixel import PixelTrainer
from semhitok.train.recipe import Recipe
from semhitok.train.run import Run
from semhitok.train.semantic import SemanticTrainer
from semhitok.train.updater import Updater

StartRun = Callable[..., Run]
Same = Callable[[Path, Path], None]


class Crash(BaseException):
    """A kill, as far as one process can play it."""


@contextlib.contextmanager
def crash_in(owner: Any, name: str, *, at: int | None = None, late: bool = False) -> Iterator[None]:
    """Crash in a function of `owner`: before its work or, `late`, after it; `at` names the step."""
    work = getattr(owner, name)

    def crashing(*args: Any, **kwargs: Any) -> Any:
        hit = at is None or args[-1] == at
        if hit and not late:
            raise Crash
        result = work(*args, **kwargs)
        if hit:
            raise Crash
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, crashing)
        with pytest.raises(Crash):
            yield


def step(trainer: Any, at: int, late: bool = False) -> Any:
    return crash_in(trainer, "step", at=at, late=late)


def newest(folder: Path) -> Path:
    path = newest_checkpoint(folder / "checkpoints")
    assert path is not None
    return path


# -- going on ----------------------------------------------------------------------------------

EMA = ("pixel.learning=ema", "model.pixel.offset_rank=null")
STUDENT = (
    "model.semantic.trunk=student",
    "model.semantic.student={transformer: {width: 16, depth: 1, heads: 2}}",
    "model.semantic.projection=mlp",
    "model.semantic.code_dim=8",
    "pixel.phases=[{steps: 1, crop: 32, batch_size: 4}]",
    "enhance=null",
    "model.pixel.enhance=null",
)
FINETUNED = (
    "model.semantic.trunk=finetuned",
    "model.semantic.projection=pca",
    "model.semantic.code_dim=8",
    *STUDENT[-3:],
)
FREE = ("model.pixel.offset_rank=null", "enhance=null", "model.pixel.enhance=null")


def test_crashes_anywhere_change_no_bit(
    start_run: StartRun, straight: Callable[..., Path], tmp_path: Path, assert_same_run: Same
) -> None:
    folder = tmp_path / "run"
    crashes: list[Callable[[], Any]] = [
        # Checkpoints are those of steps 0, 2 and 4 of five; `late` is after the step's work.
        lambda: crash_in(SemanticTrainer, "begin", late=True),
        lambda: step(SemanticTrainer, 0, late=True),
        lambda: step(SemanticTrainer, 2),
        lambda: step(SemanticTrainer, 3, late=True),
        lambda: crash_in(SemanticTrainer, "finish", late=True),
        lambda: crash_in(PixelTrainer, "begin", late=True),
        lambda: step(PixelTrainer, 1),
        lambda: step(PixelTrainer, 3),
        lambda: step(PixelTrainer, 4),
        lambda: crash_in(PixelTrainer, "finish", late=True),
        lambda: crash_in(EnhanceTrainer, "begin", late=True),
        lambda: step(EnhanceTrainer, 1, late=True),
        lambda: step(EnhanceTrainer, 4),
        lambda: crash_in(EnhanceTrainer, "finish", late=True),
        lambda: crash_in(run, "save"),
        lambda: crash_in(run, "save", late=True),
    ]
    for crash in crashes:
        with crash():
            start_run(folder).train()
    start_run(folder).train()
    assert_same_run(folder, straight())
    # Started once more, a run that has ended changes nothing.
    start_run(folder).train()
    assert_same_run(folder, straight())


@pytest.mark.parametrize(
    "more, crashes",
    [
        pytest.param(
            ("dtype=bfloat16",),
            [(SemanticTrainer, 3), (PixelTrainer, 3), (EnhanceTrainer, 3)],
            id="bfloat16",
        ),
        pytest.param(EMA, [(PixelTrainer, 1), (PixelTrainer, 4)], id="ema"),
        pytest.param(FREE, [(PixelTrainer, 3)], id="free offsets"),
        pytest.param(STUDENT, [(SemanticTrainer, 1), (SemanticTrainer, 3)], id="student"),
        pytest.param(FINETUNED, [(SemanticTrainer, 1), (SemanticTrainer, 3)], id="finetuned"),
    ],
)
def test_other_recipes_go_on_exactly_too(
    start_run: StartRun,
    straight: Callable[..., Path],
    tmp_path: Path,
    assert_same_run: Same,
    more: tuple[str, ...],
    crashes: list[tuple[Any, int]],
) -> None:
    for trainer, at in crashes:
        with step(trainer, at, late=True):
            start_run(tmp_path / "run", *more).train()
    start_run(tmp_path / "run", *more).train()
    assert_same_run(tmp_path / "run", straight(*more))


def test_ctrl_c_ends_the_step_writes_a_checkpoint_and_goes_on_exactly(
    start_run: StartRun,
    straight: Callable[..., Path],
    tmp_path: Path,
    assert_same_run: Same,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, update, handler = tmp_path / "run", Updater.update, signal.getsignal(signal.SIGINT)

    def interrupted(self: Updater, step: int) -> Tensor:
        norm = update(self, step)
        if step == 2:  # weights have moved, averages and codebook have not
            os.kill(os.getpid(), signal.SIGINT)
        return norm

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            start_run(folder).train()
    assert newest(folder).name == "0-1-00000003.safetensors"
    assert signal.getsignal(signal.SIGINT) is handler
    start_run(folder).train()
    assert_same_run(folder, straight())


def test_a_second_ctrl_c_is_not_held_back(
    start_run: StartRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(self: Updater, step: int) -> Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second was held back")

    monkeypatch.setattr(Updater, "update", twice)
    with pytest.raises(KeyboardInterrupt):
        start_run(tmp_path / "run").train()
    assert newest(tmp_path / "run").name == "0-1-00000000.safetensors"


def test_metrics_that_a_kill_cut_short_are_mended(
    start_run: StartRun, straight: Callable[..., Path], tmp_path: Path, assert_same_run: Same
) -> None:
    folder = tmp_path / "run"
    with step(SemanticTrainer, 3, late=True):
        start_run(folder).train()
    path = folder / "metrics.jsonl"
    whole = path.read_text()
    # Once the line lacks its end, once only its newline: the next line must not be glued to it.
    path.write_text(whole + '{"stage": "semantic", "step": 4, "loss/tot')
    with step(SemanticTrainer, 2):
        start_run(folder).train()
    assert len(path.read_text().splitlines()) == 2
    path.write_text(path.read_text().rstrip("\n"))
    start_run(folder).train()
    assert_same_run(folder, straight())


def test_what_a_killed_writer_left_is_removed_and_never_read(
    start_run: StartRun, straight: Callable[..., Path], tmp_path: Path, assert_same_run: Same
) -> None:
    folder = tmp_path / "run"
    with step(SemanticTrainer, 3):
        start_run(folder).train()
    (folder / "model").mkdir()
    for name in ("checkpoints/.9-1-00000009.safetensors.7.tmp", "model/.model.safetensors.7.tmp"):
        (folder / name).write_bytes(b"half")
    start_run(folder)
    assert not list(folder.rglob("*.tmp"))
    start_run(folder).train()
    assert_same_run(folder, straight())


# -- what is refused ---------------------------------------------------------------------------


def test_a_damaged_newest_checkpoint_is_named(start_run: StartRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with step(SemanticTrainer, 4):
        start_run(folder).train()
    path = newest(folder)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match=f"{path.name} is not a whole checkpoint.*delete it"):
        start_run(folder).train()
    path.unlink()  # as it says
    start_run(folder).train()


def test_a_checkpoint_of_another_model_is_refused(start_run: StartRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with step(SemanticTrainer, 1):
        start_run(folder).train()
    state = load_checkpoint(newest(folder))
    state["model"]["extra"] = torch.zeros(1)
    save_checkpoint(newest(folder), state)
    with pytest.raises(FormatError, match="0-1-00000000.safetensors holds another model"):
        start_run(folder).train()


def test_another_recipe_or_other_data_in_the_folder_are_named(
    start_run: StartRun, make_recipe: Callable[..., Recipe], photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    start_run(folder)
    start_run(folder)
    with pytest.raises(RecipeError, match="holds a run with another recipe.seed; use the same"):
        start_run(folder, "seed=1")
    with pytest.raises(RecipeError, match="another recipe.pixel.optimizer.lr, recipe.pixel.phases"):
        start_run(folder, "pixel.phases.1.steps=9", "pixel.optimizer.lr=0.5")
    more = tmp_path / photos.name
    shutil.copytree(photos, more)
    Run(make_recipe(), FolderSource(more), folder)  # the same pictures elsewhere
    Image.new("RGB", (64, 64)).save(more / "new.png")
    with pytest.raises(RecipeError, match="another data.fingerprint"):
        Run(make_recipe(), FolderSource(more), folder)


@pytest.mark.parametrize(
    "more, error, message",
    [
        (("enhance.phases.0.crop=64",), RecipeError, "crop 64 and scale"),
        (("enhance.phases.0.batch_size=0",), RecipeError, "batch_size"),
        (("pixel.learning=ema",), RecipeError, "pixel.learning is 'ema' and .*offset_rank 2"),
        (("enhance=null",), RecipeError, "stage 3 needs both, or neither"),
        (("model.pixel.num_code=3",), FormatError, "'num_code'; did you mean 'num_codes'"),
        (("model.semantic.decoder.heads=3",), RecipeError, "semantic.decoder: width 32"),
    ],
)
def test_what_any_stage_would_refuse_is_refused_before_the_first(
    start_run: StartRun,
    tmp_path: Path,
    more: tuple[str, ...],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        start_run(tmp_path / "run", *more)
    # So the same folder will do for the corrected recipe.
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_before_a_checkpoint(
    start_run: StartRun,
    straight: Callable[..., Path],
    weights: Callable[[Path], dict[str, Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nothing is logged at the step that fails, nor before the next checkpoint would be.
    folder, calls = tmp_path / "run", 0
    rarely = "log_every=5"
    distances = critic.pixel_distances

    def poisoned(fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        return distances(fake if calls != 4 else fake * torch.nan, real)

    with monkeypatch.context() as patch:
        patch.setattr(critic, "pixel_distances", poisoned)
        with pytest.raises(
            TrainingError,
            match=r"stage pixel, step 4: .*loss/l1.*not finite, pictures (\d\d.png(, |;)){4}",
        ) as caught:
            start_run(folder, rarely).train()
    assert "the last checkpoint is whole" in str(caught.value)
    assert newest(folder).name == "1-1-00000002.safetensors"
    state = load_checkpoint(newest(folder))
    assert all(bool(t.isfinite().all()) for t in state["model"].values())
    start_run(folder, rarely).train()
    ours, expected = weights(folder), weights(straight())
    assert [n for n in ours if not torch.equal(ours[n], expected[n])] == []


# -- disks -------------------------------------------------------------------------------------


def test_too_little_space_is_said_before_the_first_step(
    start_run: StartRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(semhitok.files.shutil, "disk_usage", lambda path: usage(9, 8, 1000))
    with pytest.raises(StorageError, match=r"has 0.00 GB free; this run writes about 0\.\d\d GB"):
        start_run(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_a_folder_that_cannot_be_made_or_written_is_said_so(
    start_run: StartRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write .*file/run"):
        start_run(tmp_path / "file" / "run")

    def read_only(self: Path, data: bytes) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "write_bytes", read_only)
    with pytest.raises(StorageError, match="Read-only file system"):
        start_run(tmp_path / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_said_so(start_run: StartRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        start_run(folder)


def test_a_disk_that_fills_up_keeps_the_former_checkpoint(
    start_run: StartRun,
    straight: Callable[..., Path],
    tmp_path: Path,
    assert_same_run: Same,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, save_file = tmp_path / "run", checkpoint.save_file

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        if "0-1-00000004" in path.name:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(StorageError, match="0-1-00000004.safetensors: the disk is full"):
            start_run(folder).train()
    names = sorted(f.name for f in (folder / "checkpoints").iterdir())
    assert names == ["0-1-00000000.safetensors", "0-1-00000002.safetensors"]
    start_run(folder).train()
    assert_same_run(folder, straight())


# -- frozen semantics (contract C3) ------------------------------------------------------------


def test_stages_two_and_three_leave_the_semantic_branch_alone(
    make_recipe: Callable[..., Recipe], source: FolderSource, tmp_path: Path, images: Tensor
) -> None:
    seen: dict[str, Any] = {}

    def evaluation(model: SemHiTok, extras: dict[str, Tensor]) -> dict[str, Any]:
        assert extras["kmeans_codes"].shape == model.semantic.codebook.codes.shape
        seen["state"] = {n: t.clone() for n, t in model.semantic.state_dict().items()}
        seen["ids"] = model.semantic.encode(images, (4, 4))
        seen["hash"] = model.semantic_hash
        return {"probe": 0.5}

    trained = Run(make_recipe(), source, tmp_path / "run", evaluation=evaluation)
    model = trained.train()
    for name, tensor in model.semantic.state_dict().items():
        assert torch.equal(tensor, seen["state"][name]), name
    assert model.semantic_hash == seen["hash"] == trained.semantic_hash
    assert torch.equal(model.split(model.encode(images))[0], seen["ids"])
    loaded = SemHiTok.from_pretrained(tmp_path / "run" / "model")
    assert loaded.semantic_hash == seen["hash"] and loaded.hash == model.hash
    assert torch.equal(loaded.encode(images), model.encode(images))
    metrics = json.loads((tmp_path / "run" / "model" / "metrics.json").read_text())
    assert metrics == {"training": {"probe": 0.5}}


def test_stage_three_changes_no_id(
    start_run: StartRun, tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    begin = EnhanceTrainer.begin

    def noting(self: EnhanceTrainer, batches: Iterator[Tensor]) -> None:
        state = self.model.state_dict()
        kept = {n: t for n, t in state.items() if not n.startswith("pixel.enhance")}
        seen["hash"], seen["ids"] = tensors_hash(kept), self.model.encode(images)
        begin(self, batches)

    monkeypatch.setattr(EnhanceTrainer, "begin", noting)
    model = start_run(tmp_path / "run").train()
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("pixel.enhance")}
    assert tensors_hash(state) == seen["hash"]
    assert torch.equal(model.encode(images), seen["ids"])


@pytest.mark.parametrize("trainer, name", [(PixelTrainer, "pixel"), (EnhanceTrainer, "enhance")])
def test_tampered_semantics_are_found_as_a_stage_starts(
    start_run: StartRun, tmp_path: Path, trainer: Any, name: str
) -> None:
    folder = tmp_path / "run"
    with crash_in(trainer, "begin"):
        start_run(folder).train()
    state = load_checkpoint(newest(folder))
    state["model"]["semantic.codebook.codes"][0, 0] += 1e-3
    save_checkpoint(newest(folder), state)
    before = newest(folder)
    with pytest.raises(TrainingError, match=f"stage {name}: the semantic branch is not the one"):
        start_run(folder).train()
    assert newest(folder) == before  # not a step was made


def test_semantics_that_a_stage_changes_are_found_as_it_ends(
    start_run: StartRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = PixelTrainer.finish

    def tampering(self: PixelTrainer) -> None:
        finish(self)
        self.model.semantic.codebook.codes[3] *= -1

    monkeypatch.setattr(PixelTrainer, "finish", tampering)
    with pytest.raises(TrainingError, match="stage pixel: the semantic branch"):
        start_run(tmp_path / "run").train()
    assert newest(tmp_path / "run").name.startswith("1-1-")


def test_another_teacher_in_the_same_place_is_found(
    start_run: StartRun, teacher_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder, place = tmp_path / "run", tmp_path / "teacher"
    shutil.copytree(teacher_folder, place)
    with crash_in(PixelTrainer, "begin"):
        start_run(folder, f"teacher.source={place}").train()
    state = load_file(place / "model.safetensors")
    key = next(n for n, t in state.items() if "conv_stem" in n and t.ndim == 4)
    state[key] = 1.01 * state[key]
    save_file(state, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainingError, match="stage pixel: the semantic branch"):
        start_run(folder, f"teacher.source={place}").train()
    assert newest(folder).name == "1-0-00000000.safetensors"


# -- what a run leaves -------------------------------------------------------------------------


def test_a_run_leaves_what_it_promises(
    straight: Callable[..., Path],
    records: Callable[[Path], list[dict[str, Any]]],
    weights: Callable[[Path], dict[str, Tensor]],
) -> None:
    folder = straight()
    present = {f.name for f in folder.iterdir()}
    assert present == {
        "recipe.yaml", "metrics.jsonl", "tensorboard", "samples", "checkpoints", "model",
    }  # fmt: skip
    steps = [(r["stage"], r["step"]) for r in records(folder)]
    stages = ("semantic", "pixel", "enhance")
    assert steps == [(stage, n) for stage in stages for n in range(1, 6)]
    assert len(list((folder / "checkpoints").iterdir())) == 2
    stored = {n: t.dtype for n, t in weights(folder).items() if "semantic.trunk" not in n}
    assert set(stored.values()) == {torch.float16}  # what was trained is rounded, and loses nothing
    painted = sorted(f.name for f in (folder / "samples").iterdir())
    assert painted == [f"{s}-{n:08d}.png" for s in ("enhance", "pixel") for n in (3, 5)]
    assert {f.name for f in (folder / "tensorboard").iterdir()} == set(stages)
