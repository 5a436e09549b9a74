"""What the command adds to `TokenizeJob`: wiring, refusals before any work, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from s3 import BUCKET, Store

from semhitok import cli
from semhitok.data.tokens import read_tokens
from semhitok.storage import locate, read_file, write_bytes


def call(photos: Path | str, out: Path | str, model: Path, *more: str) -> list[str]:
    return [
        "tokenize", str(photos), "--out", str(out), "--model", str(model), "--crop", "grid",
        "--shard-size", "2", "--workers", "0", *more,
    ]  # fmt: skip


def shards(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.startswith(".")}


def test_a_folder_becomes_shards_and_they_verify(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokens"
    assert cli.main(call(photos, out, model)) == 0
    assert "5 pictures in 3 shards" in capsys.readouterr().out
    keys = [record.key for p in sorted(out.glob("tokens-*.parquet")) for record in read_tokens(p)]
    assert keys == [f"{n}.png" for n in range(5)]
    again = [str(photos), "--model", str(model), "--crop", "grid"]
    assert cli.main(["tokenize", *again, "--verify", str(out)]) == 0
    assert "ids of 5 came out again" in capsys.readouterr().out
    assert cli.main(["tokenize", "--verify", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["wrong"] == []


def test_crops_are_recorded_and_go_on_only_as_they_began(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, recorded in (
        (["--crop", "buckets"], "nearest in ratio"),
        (["--crop", "random"], "random crop square by key and seed 0"),
        (["--crop", "random", "--seed", "3"], "random crop square by key and seed 3"),
        (["--crop", "square", "--reduced-decode"], "JPEG reduced to at least twice the size"),
    ):
        out = tmp_path / "-".join(options)
        assert cli.main(call(photos, out, model, *options, "--json")) == 0
        assert recorded in json.loads(capsys.readouterr().out)["tokens"]["policy"]
        again = ["tokenize", str(photos), "--model", str(model), "--verify", str(out)]
        assert cli.main([*again, *options]) == 0
        assert "ids of 5 came out again" in capsys.readouterr().out
    assert cli.main([*again, "--crop", "random", "--seed", "4"]) == 2
    assert "with another image policy" in capsys.readouterr().err
    random = tmp_path / "--crop-random"
    assert cli.main(call(photos, random, model, "--crop", "random", "--seed", "3")) == 2
    assert "another job, with another policy" in capsys.readouterr().err


def test_a_seed_without_a_random_crop_is_refused(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(call(photos, tmp_path / "tokens", model, "--seed", "0")) == 2
    assert "seed is 0, but crop 'grid' draws nothing" in capsys.readouterr().err
    assert not (tmp_path / "tokens").exists()


def test_a_broken_picture_is_named_and_the_code_says_so(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "2.png").write_bytes(b"no picture")
    assert cli.main(call(photos, tmp_path / "tokens", model, "--json")) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["failed"] == 1 and '"key": "2.png"' in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["x"], "give one of --out, to write shards, --dry-run"),
        (["x", "--out", "here", "--verify", "there"], "give one of --out"),
        (["x", "--dry-run", "--verify", "there"], "give one of --out"),
        (["--out", "here"], "no DATA is given"),
        (["nowhere", "--out", "here"], "nowhere: no such file or folder"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tokenize", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    assert not (tmp_path / "here").exists()


def test_without_the_extra_nothing_is_begun(
    photos: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(call(photos, tmp_path / "tokens", model, "--engine", "ray")) == 2
    out, err = capsys.readouterr()
    assert out == "" and "ray is not installed; run: pip install 'semhitok[ray]'" in err
    assert err.count("\n") == 1 and not (tmp_path / "tokens").exists()


def test_a_device_that_ray_does_not_deal_is_refused(
    photos: Path,
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", sys)
    ray = ["--engine", "ray", "--device", "cuda:1"]
    assert cli.main(call(photos, tmp_path / "tokens", model, *ray)) == 2
    assert "--device is 'cuda:1'; with --engine ray: cpu, or cuda" in capsys.readouterr().err


def test_a_folder_of_another_model_is_refused(
    photos: Path, model: Path, other_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(call(photos, tmp_path / "tokens", model)) == 0
    capsys.readouterr()
    assert cli.main(call(photos, tmp_path / "tokens", other_model)) == 2
    assert "another job, with another model, hash" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    photos: Path, model: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli.main(call(photos, whole, model)) == 0
    command = [sys.executable, "-m", "semhitok", *call(photos, killed, model)]
    for attempt in range(8):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(1.5 + 0.4 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert shards(killed) == shards(whole)


@pytest.mark.slow
def test_two_ranks_give_the_shards_of_one(photos: Path, model: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli.main(call(photos, one, model)) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", "-m", "semhitok", *call(photos, two, model)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ})
    assert shards(two) == shards(one)


@pytest.mark.slow
def test_ray_gives_the_shards_of_one_process_and_goes_on_after_an_interrupt(
    photos: Path, model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    (photos / "2.png").write_bytes(b"no picture")
    one, ray = tmp_path / "one", tmp_path / "ray"
    assert cli.main(call(photos, one, model)) == 3
    run = "import sys; from semhitok.cli import main; sys.exit(main())"
    arguments = call(Path("photos"), Path("ray"), model, "--engine", "ray", "--json")
    command = [sys.executable, "-c", run, *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)
    while process.poll() is None and not list(ray.glob("tokens-*.parquet")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode in (130, 3)  # 3: it was done before the signal came
    for path in ray.glob("tokens-*.parquet"):
        assert path.read_bytes() == (one / path.name).read_bytes()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3
    assert json.loads(done.stdout)["failed"] == 1 and '"key": "2.png"' in done.stderr
    assert shards(ray) == shards(one)


def test_a_dry_run_tells_and_writes_nothing(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokens"
    assert cli.main(call(photos, out, model, "--dry-run", "--workers", "0", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pictures"], found["shards"], found["sampled"]) == (5, 3, 5)
    assert found["bytes"] > 1000 and found["hours"] > 0
    arguments = ["tokenize", str(photos), "--model", str(model), "--dry-run", "--workers", "0"]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["pictures", "shards", "bytes", "time", "sample"]
    assert not out.exists()


def test_bfloat16_and_tar_files_on_request(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokens"
    assert cli.main(call(photos, out, model, "--dtype", "bfloat16", "--webdataset")) == 0
    assert "bfloat16 changes" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["tokens"]["dtype"] == "bfloat16" and manifest["flips"]["pictures"] == 5
    assert len(list(out.glob("*.tar"))) == 3
    assert cli.main(["tokenize", "--verify", str(out)]) == 0
    assert cli.main(call(photos, out, model)) == 2
    assert "another batch_size, webdataset, dtype" in capsys.readouterr().err


def test_from_a_store_into_a_store_and_back_to_pictures(
    store: Store, photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = f"s3://{BUCKET}/{tmp_path.name}"
    for path in photos.iterdir():
        write_bytes(locate(f"{root}/photos/{path.name}"), path.read_bytes())
    there = call(f"{root}/photos", f"{root}/tokens", model, "--workers", "1")
    here = call(photos, tmp_path / "tokens", model)
    assert cli.main(there) == 0 and cli.main(here) == 0
    for path in (tmp_path / "tokens").glob("*.parquet"):
        assert read_file(locate(f"{root}/tokens/{path.name}")) == path.read_bytes()
    assert cli.main(there) == 0, "a finished job is whole"
    assert cli.main(["tokenize", "--verify", f"{root}/tokens"]) == 0
    back = ["--model", str(model), "--out", str(tmp_path / "back"), "--limit", "3"]
    capsys.readouterr()
    assert cli.main(["decode", f"{root}/tokens", *back]) == 0
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["0.png", "1.png", "2.png"]
    store.share = 1.0
    assert cli.main(["tokenize", "--verify", f"{root}/tokens"]) == 2
    err = capsys.readouterr().err
    assert "the store failed 5 times" in err and err.strip().count("\n") == 0
