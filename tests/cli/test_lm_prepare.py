"""What the command adds to `PrepareJob`: wiring of data and tasks, refusals, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from semhitok import cli
from semhitok.lm.sequences import Sequences


def call(
    data: Path, out: Path, model: Path, language: Path, *tasks: str, more: tuple[str, ...] = ()
) -> list[str]:
    options = [part for task in tasks for part in ("--task", task)]
    return [
        "lm", "prepare", str(data), *options, "--language", str(language), "--tokenizer",
        str(model), "--out", str(out), "--max-side", "8", *more,
    ]  # fmt: skip


def test_pictures_and_their_tokens_give_the_same_sequences(
    captioned: Path, model: Path, language: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tasks = ("describe", "draw", "name", "is-there", "draw-class")
    assert cli.main(call(captioned, tmp_path / "a", model, language, *tasks, more=("--json",))) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["sequences"] == {"understand": 10 + 5 + 10, "generate": 10 + 5, "text": 0}
    assert record["failures"] == 0 and record["out"] == str(tmp_path / "a")
    tokens = tmp_path / "tokens"
    tokenize = ["tokenize", str(captioned), "--model", str(model), "--out", str(tokens)]
    assert cli.main([*tokenize, "--workers", "0", "--shard-size", "2"]) == 0
    assert cli.main(call(tokens, tmp_path / "b", model, language, *tasks)) == 0
    assert "40 (25 understand, 15 generate, 0 text)" in capsys.readouterr().out
    a, b = (Sequences(tmp_path / name) for name in "ab")
    assert a.keys.to_pylist() == b.keys.to_pylist()
    assert all(a[n].input_ids.equal(b[n].input_ids) for n in range(len(a)))


def test_chats_with_pictures_from_a_folder_or_tokens(
    photos: Path, model: Path, language: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    rows = [{"id": str(n), "image": f"{n}.png", "conversations": said} for n in range(5)]
    rows.append({"id": "lost", "image": "9.png", "conversations": said})
    path = tmp_path / "llava.json"
    path.write_text(json.dumps(rows))
    more = ("--pictures", str(photos))
    assert cli.main(call(path, tmp_path / "a", model, language, "chat", more=more)) == 3
    out, err = capsys.readouterr()
    assert "5 (5 understand" in out and "failed: lost: " in err and "no such file" in err
    tokens = tmp_path / "tokens"
    assert cli.main(
        ["tokenize", str(photos), "--model", str(model), "--out", str(tokens), "--workers", "0"]
    ) == 0  # fmt: skip
    more = ("--pictures", str(tokens))
    assert cli.main(call(path, tmp_path / "b", model, language, "chat", more=more)) == 3
    assert "9.png: is no key of the token shards" in capsys.readouterr().err
    a, b = (Sequences(tmp_path / name) for name in "ab")
    assert all(a[n].input_ids.equal(b[n].input_ids) for n in range(5))


def test_texts(
    model: Path, language: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "book.txt"
    path.write_text("One.\n\nTwo.\n\n" + "long " * 50)
    more = ("--max-length", "100")
    assert cli.main(call(path, tmp_path / "a", model, language, "text", more=more)) == 0
    out = capsys.readouterr().out
    assert "2 (0 understand, 0 generate, 2 text)" in out and "1 longer ones left out" in out


def test_sizes(captioned: Path, model: Path, language: Path, tmp_path: Path) -> None:
    for size, shape in (("16", 4), ("3x5", 15)):
        out = tmp_path / size
        assert cli.main(call(captioned, out, model, language, "name", more=("--size", size))) == 0
        tokens = Sequences(out)[0].input_ids
        assert int(((tokens >= 300) & (tokens < 364)).sum()) == shape


@pytest.mark.parametrize(
    ("tasks", "more", "said"),
    [
        (("chat",), (), "--pictures goes with --task chat"),
        (("name",), ("--pictures", "x"), "--pictures goes with --task chat"),
        (("text", "name"), (), "--task text reads files of its own"),
        (("paint",), (), "'paint' is not one of"),
        (("name",), ("--size", "8x8x8"), "--size is '8x8x8'; allowed"),
        (("name",), ("--size", "9x8"), "picture of 9x8 patches; sides from 1 to 8"),
        (("name",), ("--language", "nowhere/at-all/x"), "no language model 'nowhere/at-all/x'"),
        (("text",), (), "photos.parquet: a .parquet; read here: .txt, .jsonl"),
    ],
)
def test_refusals(
    captioned: Path, model: Path, language: Path, tmp_path: Path, tasks: tuple[str, ...],
    more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert cli.main(call(captioned, tmp_path / "a", model, language, *tasks, more=more)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert not list(tmp_path.glob("a/sequences-*"))


def test_columns_and_tokenizers_that_are_not_there(
    captioned: Path, photos: Path, model: Path, other_model: Path, language: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert cli.main(call(photos, tmp_path / "a", model, language, "describe")) == 2
    assert "has no column captions or caption; it has: none" in capsys.readouterr().err
    tokens = tmp_path / "tokens"
    assert cli.main(
        ["tokenize", str(captioned), "--model", str(model), "--out", str(tokens), "--workers", "0"]
    ) == 0  # fmt: skip
    assert cli.main(call(tokens, tmp_path / "b", other_model, language, "name")) == 2
    assert "written by tiny-random" in capsys.readouterr().err
