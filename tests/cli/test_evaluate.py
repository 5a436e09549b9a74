from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import save_file

from semhitok import cli

if TYPE_CHECKING:
    from semhitok.model import SemHiTok
    from semhitok.model.config import TokenizerConfig


def evaluate(*arguments: object) -> int:
    return cli.main(["evaluate", *map(str, arguments)])


def test_reports_of_two_models(
    model: Path, other_model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "9.png").write_bytes(b"broken")
    out = tmp_path / "new" / "report"
    assert evaluate(model, other_model, "--data", photos, "--out", out, "--json") == 3
    stdout, stderr = capsys.readouterr()
    reports = json.loads(stdout)
    assert reports == json.loads((out / "report.json").read_text())
    names = ("tiny-random", "other")
    drawn = [f"{name}-{what}.png" for name in names for what in ("codes", "pictures")]
    files = {"report.json", "report.md", "compared.png", *drawn}
    assert {path.name for path in out.iterdir()} == files
    markdown = (out / "report.md").read_text()
    linked = set(re.findall(r"]\(([^#)]+)\)", markdown))
    assert linked == files - {"report.md"}
    assert "# Report: tiny-random, other" in markdown and "## Differences" in markdown
    assert reports[0]["protocol"]["data"]["fingerprint"] in markdown and "9.png" in markdown
    for name in files:
        if name.endswith(".png"):
            with Image.open(out / name) as picture:
                picture.load()
                assert picture.width > 256 and picture.height > 256
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
    }.items():
        assert evaluate(*arguments) == 2
        out, err = capsys.readouterr()
        assert out == "" and expected in err and err.count("\n") == 1


def test_where_no_report_can_be_written(
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, locked = photos / "0.png", tmp_path / "locked"
    locked.mkdir()
    access = os.access

    def deny(path: Path, mode: int) -> bool:
        return access(path, mode) and not (path == locked and mode & os.W_OK)

    monkeypatch.setattr(os, "access", deny)
    before = file.read_bytes()
    for expected, out in {
        f"{file} is a file; give a folder": file,
        f"{file} is a file; give": file / "deeper" / "report",
        f"{locked} cannot be written; choose": locked,
        f"{locked} cannot be written": locked / "report",
    }.items():
        assert evaluate("no-such-model", "--data", photos, "--out", out) == 2  # before all else
        out_text, err = capsys.readouterr()
        assert out_text == "" and expected in err and err.count("\n") == 1
    assert file.read_bytes() == before and not list(locked.iterdir())
    assert evaluate(model, "--data", tmp_path / "none", "--out", tmp_path / "report") == 2
    assert not (tmp_path / "report").exists()


def test_one_model_and_the_report_is_named(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    for _ in range(2):  # a folder that is there is filled again
        assert evaluate(model, "--data", photos, "--out", out) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(out / "report.md")
    assert not (out / "compared.png").exists()
    assert "Differences" not in (out / "report.md").read_text()


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


def test_lpips_on_a_trunk_of_its_own(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from semhitok.model.lpips import LPIPS, TRUNKS

    assert evaluate(model, "--data", photos, "--lpips", tmp_path) == 2
    assert "has no weights of LPIPS; give a folder with alexnet" in capsys.readouterr().err
    measure, kind = LPIPS("alex"), TRUNKS["alex"]
    heads = {f"lin{n}.model.1.weight": h.weight.abs() for n, h in enumerate(measure.heads)}
    save_file(measure.trunk.state_dict(), tmp_path / kind.file)
    save_file(heads, tmp_path / kind.heads_file)
    assert evaluate(model, "--data", photos, "--lpips", tmp_path, "--json") == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["figures"]["lpips_alex"]["mean"] > 0
    assert report["protocol"]["metrics"]["lpips_alex"].startswith("AlexNet")


def test_zero_shot(
    model: Path,
    photos: Path,
    tmp_path: Path,
    tiny_config: TokenizerConfig,
    make_tokenizer: Callable[..., SemHiTok],
    contrastive: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from semhitok import hub
    from semhitok.model import Teacher

    pictures = [{"bytes": path.read_bytes()} for path in sorted(photos.iterdir())]
    table = pa.table({"image": pictures, "label": [0, 1, 0, 1, 1]})
    info = {"info": {"features": {"label": {"names": ["fish", "house"]}}}}
    named = tmp_path / "named.parquet"
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), named)
    teacher = Teacher.from_pretrained(contrastive("siglip")).config
    semantic = dataclasses.replace(tiny_config.semantic, teacher=teacher, code_dim=teacher.dim)
    config = dataclasses.replace(tiny_config, semantic=semantic, patch_size=16, image_size=64)
    hub.save(make_tokenizer(config), tmp_path / "siglip")
    arguments = ("--data", photos, "--zero-shot", named)
    assert evaluate(tmp_path / "siglip", *arguments, "--max-images", 3, "--json") == 0
    (report,) = json.loads(capsys.readouterr().out)
    figures = report["figures"]["zero_shot"]
    assert figures.keys() == {"teacher", "semantic_features", "retention"}
    assert 0 <= figures["teacher"] <= 1
    assert report["protocol"]["zero_shot"]["data"] == "named.parquet"
    assert report["protocol"]["zero_shot"]["pictures"] == 3
    for expected, refused in {
        "teacher random is a mobilenet_v2, which has no text tower": (model, *arguments),
        "has no labels": (model, "--data", photos, "--zero-shot", photos),
    }.items():
        assert evaluate(*refused) == 2
        out, err = capsys.readouterr()
        assert out == "" and expected in err and err.count("\n") == 1
