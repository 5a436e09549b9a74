from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from semhitok.errors import FormatError, NotFoundError
from semhitok.lm.prompt_sets import read_geneval, read_mjhq


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_mjhq(tmp_path: Path) -> None:
    entries = {"4c7": {"category": "animals", "prompt": "a dog"}, "0ab": {"category": "art",
               "prompt": "a cat"}}  # fmt: skip
    found = read_mjhq(write(tmp_path / "meta_data.json", entries))
    assert [(w.key, w.prompt, w.file) for w in found.wanted] == [
        ("4c7", "a dog", "animals/4c7.png"),
        ("0ab", "a cat", "art/0ab.png"),
    ]
    assert not found.beside and len(found.sha256) == 64


def test_geneval(tmp_path: Path) -> None:
    lines = [
        {"tag": "counting", "include": [{"class": "dog"}], "prompt": f"{n} dogs"} for n in "23"
    ]
    text = "\n".join(map(json.dumps, lines)) + "\n"
    found = read_geneval(write(tmp_path / "evaluation_metadata.jsonl", text), samples=2)
    assert [(w.prompt, w.file) for w in found.wanted] == [
        ("2 dogs", "00000/samples/00000.png"),
        ("2 dogs", "00000/samples/00001.png"),
        ("3 dogs", "00001/samples/00000.png"),
        ("3 dogs", "00001/samples/00001.png"),
    ]
    assert {k: json.loads(v) for k, v in found.beside.items()} == {
        "00000/metadata.jsonl": lines[0],
        "00001/metadata.jsonl": lines[1],
    }
    keys = {w.key for w in found.wanted}
    more = read_geneval(tmp_path / "evaluation_metadata.jsonl", samples=4)
    assert len(keys) == 4 and keys < {w.key for w in more.wanted}, "a sample keeps its seed"


@pytest.mark.parametrize(
    "entries",
    [
        [],
        {},
        "{",
        {"a": {"prompt": "x"}},
        {"a": {"category": "c", "prompt": " "}},
        {"a": {"category": "..", "prompt": "x"}},
        {"../a": {"category": "c", "prompt": "x"}},
        {"a": {"category": "c\\d", "prompt": "x"}},
        {"a": {"category": 3, "prompt": "x"}},
    ],
)
def test_what_is_not_mjhq(entries: Any, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="has not the layout .*; needed: "):
        read_mjhq(write(tmp_path / "m.json", entries))


@pytest.mark.parametrize("text", ["", "\n", "[1]\n", '{"tag": "x"}\n', '{"prompt": ""}', "{"])
def test_what_is_not_geneval(text: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="has not the layout"):
        read_geneval(write(tmp_path / "e.jsonl", text))


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="give the benchmark's file of prompts"):
        read_mjhq(tmp_path / "nowhere.json")
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    for read in (read_mjhq, read_geneval):
        with pytest.raises(FormatError, match="text in UTF-8"):
            read(tmp_path / "x")
