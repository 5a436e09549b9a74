"""A multimodal model from pictures to answers, by its commands: train, ask, draw, chat."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from semhitok import cli
from semhitok.data.tokens import read_tokens

STAGE = {
    "name": "joint", "trains": "all", "data": {"pictures": 1.0}, "steps": 3, "batch_size": 2,
    "micro_batch": 2, "length": 128, "optimizer": {"lr": 1e-3, "warmup": 1},
}  # fmt: skip


@pytest.fixture(scope="session")
def small_language(language: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text tokenizer with the config of a model that trains in seconds."""
    from transformers import AutoConfig, AutoTokenizer

    folder = tmp_path_factory.mktemp("small-language")
    AutoTokenizer.from_pretrained(language).save_pretrained(folder)
    AutoConfig.for_model(
        "llama", vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, eos_token_id=0, bos_token_id=None,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture
def sequences(captioned: Path, model: Path, small_language: Path, tmp_path: Path) -> Path:
    out = tmp_path / "sequences"
    line = ["lm", "prepare", str(captioned), "--task", "name", "--task", "draw-class"]
    line += ["--language", str(small_language), "--tokenizer", str(model), "--out", str(out)]
    assert cli.main([*line, "--max-side", "8"]) == 0
    return out


@pytest.fixture
def recipe(model: Path, small_language: Path, tmp_path: Path) -> Path:
    path = tmp_path / "test.yaml"
    language = {"source": str(small_language), "weights": "random"}
    text = {"name": "test", "tokenizer": str(model), "language": language, "stages": [STAGE]}
    path.write_text(yaml.safe_dump(text))
    return path


@pytest.fixture
def trained(
    recipe: Path, sequences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    out = tmp_path / "run"
    line = ["lm", "train", str(recipe), "--data", f"pictures={sequences}", "--out", str(out)]
    capsys.readouterr()
    assert cli.main(line) == 0
    assert capsys.readouterr().out == f"{out / 'model'}: test\n"
    assert cli.main([*line, "--json"]) == 0  # done already
    assert json.loads(capsys.readouterr().out) == {"model": str(out / "model"), "name": "test"}
    return out / "model"


def test_ask_draw_and_chat(
    trained: Path,
    model: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_tokenizer = ["--tokenizer", str(model)]
    line = ["ask", str(trained), str(photos / "0.png"), "What?", "--max-new-tokens", "8"]
    assert cli.main([*line, *of_tokenizer, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["question"] == "What?" and isinstance(answer["answer"], str)

    line = ["draw", str(trained), "a dog", "a cat", "--count", "2", "--size", "2x3", *of_tokenizer]
    assert cli.main([*line, "--out", str(tmp_path / "a"), "--batch-size", "3"]) == 0
    told = capsys.readouterr().out.split()
    assert told == [str(tmp_path / "a" / f"000{n}.png") for n in range(4)]
    for path in told:
        with Image.open(path) as image:
            assert image.size == (24, 16)
    assert cli.main([*line, "--out", str(tmp_path / "b"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [p["prompt"] for p in record["pictures"]] == ["a dog", "a dog", "a cat", "a cat"]
    a, b = (list(read_tokens(tmp_path / name / "tokens.parquet")) for name in "ab")
    assert all(one.pixel.equal(other.pixel) for one, other in zip(a, b, strict=True))
    assert not a[0].pixel.equal(a[1].pixel) or not a[0].semantic.equal(a[1].semantic)

    said = f"/image {photos / '1.png'}\n/image nowhere.png\nWhat is it?\n/new\nHello\n/quit\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    line = ["chat", str(trained), "--out", str(tmp_path / "chat"), "--max-new-tokens", "30"]
    assert cli.main([*line, "--size", "2x2", *of_tokenizer]) == 0
    err = capsys.readouterr().err
    assert "/image PATH adds a picture" in err and err.count("error: ") == 1
    assert "nowhere.png" in err


@pytest.mark.parametrize(
    "line, words",
    [
        (["ask", "nowhere", "x.png", "What?"], "no multimodal model 'nowhere'; give the model"),
        (["ask", "{model}", "x.png", "What?"], "has no processor.json: it is no multimodal model"),
        (
            ["draw", "nowhere", "dog", "--out", "{tmp}", "--size", "8"],
            "--size is '8'; allowed: h",
        ),
        (
            ["lm", "train", "x.yaml", "--data", "a", "--out", "{tmp}"],
            "--data is 'a'; needed: NA",
        ),
        (["lm", "train", "nothing", "--data", "a=b", "--out", "{tmp}"], "there is no recipe 'noth"),
    ],
)
def test_wrong_use_is_one_line(
    line: list[str], words: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [part.format(model=model, tmp=tmp_path) for part in line]
    assert cli.main(filled) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and words in err and err.count("\n") == 1


def test_another_tokenizer_is_refused(
    trained: Path, other_model: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["ask", str(trained), str(photos / "0.png"), "What?", "--tokenizer", str(other_model)]
    assert cli.main(line) == 2
    assert "is not the tokenizer of this model" in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(
    recipe: Path, sequences: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["lm", "train", str(recipe), "--data", f"pictures={sequences}", "--set", "dtype=float32"]
    assert cli.main([*line, "--out", str(tmp_path / "one")]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ranks = ["--nproc-per-node", "2", "-m", "semhitok", *line, "--set", "stages.0.micro_batch=1"]
    done = subprocess.run([*launcher, *ranks, "--out", str(tmp_path / "two")], timeout=300)
    assert done.returncode == 0
    assert capfd.readouterr().out.count("test\n") == 2  # of the first rank alone
    one, two = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-5, msg=name)
