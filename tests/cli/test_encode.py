from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from semhitok import SemHiTok, cli
from semhitok.data.tokens import read_tokens


def encode(*arguments: object) -> int:
    return cli.main(["encode", *map(str, arguments)])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert encode(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_encode_is_tok_encode_in_the_order_given(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokens.parquet"
    paths = [photos / "3.png", photos]
    code = encode(*paths, "--model", model, "--out", out, "--batch-size", 2, "--json")
    record = json.loads(capsys.readouterr().out)
    tok = SemHiTok.from_pretrained(model)
    tokens = read_tokens(out)
    assert code == 0 and record["pictures"] == 6 and record["ids"] == 6 * 16
    assert [r.key for r in tokens] == ["3.png", "0.png", "1.png", "2.png", "3.png", "4.png"]
    for r in tokens:
        expected = tok.encode(tok.preprocess(photos / r.key))[0]
        assert torch.equal(tok.join(r.semantic, r.pixel), expected)
    assert (tokens.metadata.model, tokens.metadata.hash) == ("tiny-random", tok.hash)
    assert "short side to 32" in tokens.metadata.policy


def test_native_sizes_keep_their_order(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens.parquet"
    arguments = ("--model", model, "--out", out, "--size", "native", "--crop", "grid")
    assert encode(photos, *arguments, "--batch-size", 1) == 0
    shapes = [tuple(record.semantic.shape) for record in read_tokens(out)]
    assert shapes == [(5, 5), (5, 8), (5, 5), (7, 5), (5, 5)]


@pytest.fixture(scope="module")
def many(picture: Callable[..., Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand files, every 25th of them broken."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(1000):
        path = folder / f"{number:04d}.png"
        picture(number, 8, 8).save(path)
        if number % 25 == 24:
            path.write_bytes(path.read_bytes()[:50] if number % 50 == 24 else b"no picture")
    return folder


def test_broken_pictures_are_left_out_and_named(
    model: Path, many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokens.parquet"
    assert encode(many, "--model", model, "--out", out, "--size", 8, "--batch-size", 64) == 3
    stdout, stderr = capsys.readouterr()
    broken = [f"{n:04d}.png" for n in range(24, 1000, 25)]
    lines = stderr.splitlines()
    assert [line.split(": ")[1] for line in lines[:-1]] == broken and len(broken) == 40
    assert all(line.startswith("failed: ") for line in lines[:-1])
    assert lines[-1] == "40 of 1000 pictures failed"
    assert "960 pictures" in stdout
    keys = [record.key for record in read_tokens(out)]
    assert keys == [f"{n:04d}.png" for n in range(1000) if n % 25 != 24]


def test_strict_stops_at_the_first_and_writes_nothing(
    model: Path, many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokens.parquet"
    line = refusal(
        capsys, many, "--model", model, "--out", out, "--size", 8, "--batch-size", 64, "--strict"
    )
    assert "0024.png" in line
    assert list(tmp_path.iterdir()) == []


def test_only_broken_pictures_write_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    out = tmp_path / "tokens.parquet"
    line = refusal(capsys, tmp_path / "bad.png", "--model", model, "--out", out)
    assert "not one of 1 pictures" in line and "bad.png" in line
    assert not out.exists()


def test_outputs_that_cannot_be_written(
    model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = {
        photos: "is a folder",
        photos / "missing" / "t.parquet": "is no folder",
        photos / "0.png" / "t.parquet": "is no folder",
        photos / "0.png": "is one of the inputs",
        Path("/dev/full"): "is not a regular file",
    }
    for out, expected in outputs.items():
        assert expected in refusal(capsys, photos / "0.png", "--model", model, "--out", out)
    assert len(list(photos.iterdir())) == 5


def test_unusable_inputs(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", tmp_path / "t.parquet")
    cases = {
        "no such file": (tmp_path / "nothing.png", "--model", model, *out),
        "there is no model 'tini'": (photos, "--model", "tini", *out),
        "multiple of 8": (photos, "--model", model, *out, "--size", 30),
        "--size is 'big'": (photos, "--model", model, *out, "--size", "big"),
        "device 'tpu'": (photos, "--model", model, *out, "--device", "tpu"),
        "device 'meta'": (photos, "--model", model, *out, "--device", "meta"),
    }
    for expected, arguments in cases.items():
        assert expected in refusal(capsys, *arguments)


def test_columns_of_the_data_set_come_along(
    model: Path, picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for number in range(3):
        buffer = io.BytesIO()
        picture(number).save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": None}
        rows.append({"image": image, "label": number, "height": 40})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    out = tmp_path / "tokens.parquet"
    assert encode(tmp_path / "data.parquet", "--model", model, "--out", out) == 0
    extras = [record.extra for record in read_tokens(out)]
    assert extras == [{"label": n, "source_height": 40} for n in range(3)]
