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
