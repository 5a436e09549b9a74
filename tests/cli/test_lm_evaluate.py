"""semhitok lm evaluate and draw-set, with a model of random weights."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from semhitok import cli

NAMES = ["cat", "dog", "fish"]


@pytest.fixture(scope="session")
def unified(language: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of pictures of 2 x 2 patches."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from semhitok import hub
    from semhitok.lm.model import UnifiedModel
    from semhitok.lm.processor import UnifiedProcessor

    tok = hub.load(str(model))
    processor = UnifiedProcessor.for_language(language, tok, max_side=4, size=16)
    config = AutoConfig.for_model(
        "llama", vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_length = processor.vocabulary.text_length
        made = UnifiedModel.unite(
            AutoModelForCausalLM.from_config(config), tok, text_length=text_length, max_side=4
        )
    folder = tmp_path_factory.mktemp("unified") / "toy"
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def labelled(picture: Callable[..., Image.Image], tmp_path: Path) -> Path:
    """Twelve pictures of three classes, in the layout of the Hub."""
    pictures = []
    for seed in range(12):
        png = io.BytesIO()
        picture(seed).save(png, "PNG")
        pictures.append({"bytes": png.getvalue(), "path": None})
    labels = [n // 4 for n in range(12)]
    features = {"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}}
    table = pa.table(
        {"image": pictures, "label": labels, "class_name": [NAMES[label] for label in labels]}
    )
    path = tmp_path / "labelled.parquet"
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    return path


@pytest.fixture
def evaluate(unified: Path, model: Path) -> Callable[..., int]:
    def run(*arguments: object) -> int:
        line = ["lm", "evaluate", str(unified), "--tokenizer", str(model), "--device", "cpu"]
        return cli.main([*line, *map(str, arguments)])

    return run


def test_all_parts(
    evaluate: Callable[..., int],
    unified: Path,
    model: Path,
    labelled: Path,
    language: Path,
    shared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["lm", "prepare", str(labelled), "--task", "name", "--task", "draw-class", "--max-side"]
    line += ["4", "--language", str(language), "--tokenizer", str(model), "--size", "16"]
    assert cli.main([*line, "--out", str(tmp_path / "sequences")]) == 0
    out = tmp_path / "out"
    options = ["--naming", labelled, "--yes-no", labelled, "--max-pictures", 5, "--out", out]
    options += ["--loss", tmp_path / "sequences", "--pack", 200, "--drawing", labelled, labelled]
    options += ["--judge", shared / "judges", "--count", 6, "--unguided", "--unconditional"]
    capsys.readouterr()
    assert evaluate(*options, "--keep", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    figures, protocol = record["figures"], record["protocol"]
    assert figures["naming"]["pictures"] == 5 and figures["yes_no"]["questions"] == 15
    assert figures["loss"]["all"]["sequences"] == 24 and figures["loss"]["all"]["image"]["mean"] > 0
    assert set(figures["drawing"]) == {"photos", "guided", "unguided", "unconditional"}
    assert figures["drawing"]["photos"]["top1"]["mean"] == 1, "they are what it was fitted to"
    assert figures["drawing"]["photos"]["fd_judge"] == pytest.approx(0, abs=1e-3)
    assert "top1" not in figures["drawing"]["unconditional"]
    assert protocol["drawing"]["sets"]["guided"]["guidance"] == 3
    assert protocol["drawing"]["sets"]["unguided"]["guidance"] == 1
    assert len(protocol["model"]["hash"]) == 64 and protocol["model"]["name"] == "toy"
    assert json.loads((out / "report.json").read_text())["figures"] == figures
    names = {path.name for path in out.iterdir()}
    assert names == {
        "asked.json", "report.json", "report.md", "naming.jsonl", "yes_no.jsonl", "drawing.jsonl",
        "drawn-guided.png", "drawn-unguided.png", "drawings",
    }  # fmt: skip
    prompts = [
        json.loads(row)["prompt"] for row in (out / "drawing.jsonl").read_text().splitlines()
    ][:6]
    assert (
        prompts == ["a photo of a cat"] * 2 + ["a photo of a dog"] * 2 + ["a photo of a fish"] * 2
    )

    kept = out / "drawings/guided/00003.png"
    before, stamp = kept.read_bytes(), (out / "drawings/guided/00002.png").stat().st_mtime_ns
    kept.unlink()
    assert evaluate(*options, "--keep", "--batch-size", 2) == 0
    assert kept.read_bytes() == before, "the same picture in another batch"
    assert (out / "drawings/guided/00002.png").stat().st_mtime_ns == stamp, "drawn once"
    assert "naming.top1" in capsys.readouterr().out
    assert evaluate(*options, "--keep", "--seed", 1) == 2
    err = capsys.readouterr().err
    assert (
        "was made with drawing.seed 0, not 1" in err
        and "choose another --out" in err
        and err.count("\n") == 1
    )


def test_broken_pictures_are_named(
    evaluate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png = io.BytesIO()
    Image.new("RGB", (16, 16)).save(png, "PNG")
    pictures = [{"bytes": data, "path": None} for data in (png.getvalue(), b"no picture")]
    pq.write_table(
        pa.table({"image": pictures, "class_name": NAMES[:2]}), tmp_path / "some.parquet"
    )
    assert evaluate("--naming", tmp_path / "some.parquet") == 3
    out, err = capsys.readouterr()
    assert "naming.top1" in out and "failed: some.parquet:1: " in err


@pytest.mark.parametrize(
    "options, words",
    [
        ([], "nothing to evaluate; give --naming, --yes-no, --drawing or --loss"),
        (["--naming", "{photos}"], "has no column class_name; it has: none"),
        (["--yes-no", "{captions}"], "has no column class_name; it has: caption"),
        (["--naming", "{labelled}", "--keep"], "--keep is for drawings, and keeps them in --out"),
        (["--drawing", "{photos}", "{photos}"], "has no labels"),
        (["--drawing", "{labelled}", "{labelled}"], "give --judge FOLDER, or set SEMHITOK_JUDGES"),
        (
            ["--drawing", "{labelled}", "{labelled}", "--judge", "{tmp}"],
            "squeezenet1_1.safetensors",
        ),
        (["--naming", "{labelled}", "--out", "{photos}"], "files of another origin (0.png)"),
        (["--loss", "{tmp}"], "has no manifest.json; prepare it with semhitok lm prepare"),
    ],
)
def test_wrong_use_is_one_line_of_its_own(
    evaluate: Callable[..., int],
    options: list[str],
    words: str,
    photos: Path,
    labelled: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SEMHITOK_JUDGES", raising=False)
    captions = pa.table({"image": [{"bytes": b"", "path": None}], "caption": ["a cat"]})
    pq.write_table(captions, tmp_path / "captions.parquet")
    places = {"photos": photos, "labelled": labelled, "tmp": tmp_path}
    places["captions"] = tmp_path / "captions.parquet"
    assert evaluate(*(option.format(**places) for option in options)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and words in err and err.count("\n") == 1


def test_draw_set(
    unified: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mjhq, geneval = tmp_path / "meta_data.json", tmp_path / "evaluation_metadata.jsonl"
    entries = {key: {"category": "animals", "prompt": f"a {key}"} for key in ("dog", "cat")}
    mjhq.write_text(json.dumps(entries))
    geneval.write_text("".join(json.dumps({"tag": "x", "prompt": p}) + "\n" for p in entries))
    start = ["lm", "draw-set", str(unified), "--tokenizer", str(model), "--guidance", "2"]
    out = tmp_path / "mjhq"
    line = [*start, str(mjhq), "--layout", "mjhq", "--out", str(out)]
    assert cli.main(line) == 0
    assert capsys.readouterr().out == f"{out}: 2 pictures, 2 of them drawn now\n"
    assert {p.name for p in (out / "animals").iterdir()} == {"dog.png", "cat.png"}
    assert cli.main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "pictures": 2, "drawn": 0}
    assert cli.main([*line, "--temperature", "0.5"]) == 2
    assert "was made with sampling.pixel.temperature 1.0, not 0.5" in capsys.readouterr().err

    out = tmp_path / "geneval"
    line = [*start, str(geneval), "--layout", "geneval", "--size", "1x3", "--samples", "2"]
    assert cli.main([*line, "--out", str(out)]) == 0
    for number, prompt in enumerate(entries):
        folder = out / f"{number:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text())["prompt"] == prompt
        assert {p.name for p in (folder / "samples").iterdir()} == {"00000.png", "00001.png"}
        with Image.open(folder / "samples/00001.png") as image:
            assert image.size == (24, 8)
    assert (
        cli.main([*line, "--samples", "1", "--layout", "mjhq", "--out", str(tmp_path / "x")]) == 2
    )
    assert "MJHQ-30K has one picture a prompt" in capsys.readouterr().err
    assert cli.main([*start, str(mjhq), "--layout", "geneval", "--out", str(tmp_path / "x")]) == 2
    assert "has not the layout (line 1)" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
