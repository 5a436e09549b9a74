from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semhitok import SemHiTok, cli
from semhitok.cli.decode import plan_names
from semhitok.data.tokens import TokenMetadata, TokenRecord, read_tokens, write_tokens
from semhitok.images import to_pil


@pytest.fixture
def tokens(model: Path, photos: Path, tmp_path: Path) -> Path:
    out = tmp_path / "tokens.parquet"
    arguments = ["--size", "native", "--crop", "grid", "--model", str(model), "--out", str(out)]
    assert cli.main(["encode", str(photos), *arguments]) == 0
    return out


def decode(*arguments: object) -> int:
    return cli.main(["decode", *map(str, arguments)])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert decode(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_round_trip_is_decode_of_encode(
    tokens: Path, model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    out = tmp_path / "back"
    assert decode(tokens, "--out", out, "--model", model, "--batch-size", 2, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    tok = SemHiTok.from_pretrained(model)
    assert record["pictures"] == 5 and record["hash"] == tok.hash
    for number in range(5):
        x = tok.preprocess(photos / f"{number}.png", size="native", crop="grid")
        expected = to_pil(tok.decode(tok.encode(x))[0])
        assert np.array_equal(Image.open(out / f"{number}.png"), expected)


def test_folders_of_shards_are_one_run_of_pictures(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    job = ["--model", str(model), "--size", "32", "--shard-size", "2", "--workers", "0"]
    assert cli.main(["tokenize", str(photos), "--out", str(shards), *job]) == 0
    capsys.readouterr()
    assert decode(shards, "--out", tmp_path / "all", "--model", model) == 0
    assert "5 pictures" in capsys.readouterr().out
    single = sorted(shards.glob("*.parquet"))
    assert decode(*single[1:], "--out", tmp_path / "some", "--model", model, "--limit", 2) == 0
    names = [sorted(p.name for p in (tmp_path / n).iterdir()) for n in ("all", "some")]
    assert names == [[f"{n}.png" for n in range(5)], ["2.png", "3.png"]]
    for name in names[1]:
        assert (tmp_path / "some" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()


def test_decode_needs_no_transformers(tokens: Path, model: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from semhitok.cli import main\n"
        f"assert main(['decode', {str(tokens)!r}, '--out', {str(tmp_path / 'x')!r}, "
        f"'--model', {str(model)!r}]) == 0\n"
        "assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_another_model_is_refused_by_both_hashes(
    tokens: Path, other_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, tokens, "--out", tmp_path / "back", "--model", other_model)
    assert SemHiTok.from_pretrained(other_model).hash in line
    assert read_tokens(tokens).metadata.hash in line
    assert not (tmp_path / "back").exists()


def test_a_model_that_is_not_bundled_must_be_named(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, tokens, "--out", tmp_path / "back")
    assert "was written by 'tiny-random'" in line and "--model" in line


def test_refusals(
    tokens: Path, model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    back = ("--out", tmp_path / "back", "--model", model)
    cases = {
        "no such token file": (tmp_path / "none.parquet", *back),
        "not a whole token file": (photos / "0.png", *back),
        "has no decoder 'enhance'": (tokens, *back, "--decoder", "enhance"),
        "is a file; give a folder": (tokens, "--out", tokens, "--model", model),
        "cannot write": (tokens, "--out", photos / "0.png" / "deep", "--model", model),
        "is there already": (tokens, "--out", photos, "--model", model),
    }
    for expected, arguments in cases.items():
        assert expected in refusal(capsys, *arguments)
    assert not (tmp_path / "back").exists()


def test_overwrite_and_formats(tokens: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "back"
    for format_, kind in (("jpg", "JPEG"), ("webp", "WEBP")):
        arguments = (tokens, "--out", out, "--model", model, "--format", format_)
        assert decode(*arguments) == 0
        assert decode(*arguments) == 2
        assert decode(*arguments, "--overwrite") == 0
        with Image.open(out / f"0.{format_}") as image:
            assert (image.format, image.size) == (kind, (40, 40))


HOSTILE = [
    "../../etc/passwd.png",
    "/etc/passwd.jpg",
    "..\\..\\windows\\win.ini",
    "C:\\x.png",
    "..",
    "",
    "a/./b/../c.png",
    "nul.png",
    "line\nfeed\0.png",
    "x" * 400,
    "a/b.png",
    "a/B.PNG",
    "a/b.jpg",
    "train.parquet:12",
    "d.png/e.png",
    "d.png",
]


def test_names_are_safe_and_different() -> None:
    names = plan_names(HOSTILE, "png")
    assert len({name.casefold() for name in names}) == len(HOSTILE)
    for name in names:
        parts = Path(name).parts
        assert not Path(name).is_absolute() and ".." not in parts
        assert name.endswith(".png") and all(len(part) < 140 for part in parts)
        assert not set(name) & set('\\:\0\n"<>|?*')
    assert names[:2] == ["etc/passwd.png", "etc/passwd-2.png"]
    assert names[10:13] == ["a/b.png", "a/B-2.png", "a/b-3.png"]
    assert names[13:] == ["train.parquet_12.png", "d.png_/e.png", "d.png"]


def write(path: Path, model: Path, keys: list[str]) -> Path:
    tok = SemHiTok.from_pretrained(model)
    metadata = TokenMetadata(
        model="tiny-random", hash=tok.hash, num_semantic=16, num_pixel=4, patch_size=8,
        policy="", dtype="float32", version="0",
    )  # fmt: skip
    codes = torch.zeros(1, 1, dtype=torch.int64)
    write_tokens(path, [TokenRecord(key, codes, codes) for key in keys], metadata)
    return path


def test_hostile_keys_stay_inside(model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "t.parquet", model, HOSTILE)
    out = tmp_path / "deep" / "out"
    assert decode(file, "--out", out, "--model", model) == 0
    assert sum(path.is_file() for path in out.rglob("*")) == len(HOSTILE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "t.parquet"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_links_out_of_the_folder_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "t.parquet", model, ["cats/1"])
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "cats").symlink_to(tmp_path / "elsewhere")
    assert "by a link" in refusal(capsys, file, "--out", tmp_path / "out", "--model", model)
    assert list((tmp_path / "elsewhere").iterdir()) == []
