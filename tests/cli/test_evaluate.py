from __future__ import annotations

import json
from pathlib import Path

import pytest

from semhitok import cli


def evaluate(*arguments: object) -> int:
    return cli.main(["evaluate", *map(str, arguments)])


def test_reports_of_two_models(
    model: Path, other_model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "9.png").write_bytes(b"broken")
    out = tmp_path / "reports.json"
    assert evaluate(model, other_model, "--data", photos, "--out", out, "--json") == 3
    stdout, stderr = capsys.readouterr()
    reports = json.loads(stdout)
    assert reports == json.loads(out.read_text())
    assert [r["protocol"]["model"]["name"] for r in reports] == ["tiny-random", "other"]
    for report in reports:
        assert report["figures"]["pictures"] == 5
        assert report["figures"]["failed"].keys() == {"9.png"}
        assert "short side to 32" in report["protocol"]["pixels"]
    assert stderr.startswith("failed: 9.png: ") and stderr.count("\n") == 1


def test_table(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--data", photos, "--resolution", "native", "--crop", "grid", "--max-images", 2)
    assert evaluate(model, *arguments) == 0
    out = capsys.readouterr().out
    assert "psnr_db" in out and "own size, centre crop to whole patches" in out
    assert "2, evenly spaced" in out


def test_refusals(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", photos)
    for expected, arguments in {
        "has no decoder 'enhance'": (model, *data, "--decoder", "enhance"),
        "multiple of 8": (model, *data, "--resolution", 30),
        "there is no model": (model, "nothing", *data),
        "no such file": (model, "--data", tmp_path / "none"),
        "is a folder": (model, *data, "--out", tmp_path),
    }.items():
        assert evaluate(*arguments) == 2
        out, err = capsys.readouterr()
        assert out == "" and expected in err and err.count("\n") == 1


def test_a_codec_and_a_foreign_adapter_are_compared_with_the_first_model(
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "foreign.py").write_text(
        "from semhitok.evaluate.adapters import Adapter\n"
        "class Same(Adapter):\n"
        "    name, multiple = 'same', 16\n"
        "    def encode(self, images): return images\n"
        "    def decode(self, encoded): return encoded\n"
        "    def bits(self, encoded): return [1.0] * len(encoded)\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = (model, "webp", "foreign:Same", "--data", photos)
    assert evaluate(*arguments, "--json") == 0
    first, webp, same = json.loads(capsys.readouterr().out)
    assert first["pictures"]["key"] == webp["pictures"]["key"] == same["pictures"]["key"]
    assert same["figures"]["psnr_db"]["mean"] == 100
    bytes_of_both = [r["figures"]["rate"]["bytes_per_picture"] for r in (first, webp)]
    assert bytes_of_both[1] >= bytes_of_both[0]
    gained = same["minus_first"]["psnr_db"]["mean"]
    assert gained == pytest.approx(100 - first["figures"]["psnr_db"]["mean"], abs=1e-4)
    assert "multiples of 16" in first["protocol"]["pixels"]
    assert evaluate(*arguments) == 0
    table = capsys.readouterr().out
    assert "minus first (95%)" in table and "same" in table and "rate.bytes_per_picture" in table
    for expected, names in {
        "no adapter foreign:None_": (model, "foreign:None_"),
        "gives list": (model, "builtins:list"),
        "no model whose bytes": ("webp",),
    }.items():
        assert evaluate(*names, "--data", photos) == 2
        assert expected in capsys.readouterr().err


@pytest.mark.shared
def test_probe_and_similarity(
    model: Path, photos: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packs = [shared / "data" / f"imagenette-{part}.parquet" for part in ("val", "val")]
    data = ("--data", shared / "data" / "imagenette-val.parquet", "--max-images", 48)
    options = (*data, "--resolution", 32, "--probe", *packs, "--similarity")
    assert evaluate(model, *options, "--json") == 0
    (report,) = json.loads(capsys.readouterr().out)
    share = report["figures"]["similarity"]["pixels"]["random"]
    assert share["low"] < 1.05 and share["high"] > 0.95
    assert report["protocol"]["similarity"]["pictures"] == 48
    semantics = report["figures"]["semantics"]
    assert 0 < semantics["linear_probe"]["quantized"] <= 1
    assert 0 < semantics["knn"]["pixel"] <= 1
    assert report["protocol"]["semantics"]["val"]["name"] == "imagenette-val.parquet"
    assert evaluate(model, "--data", photos, "--probe", photos, photos) == 2
    assert "has no labels" in capsys.readouterr().err
