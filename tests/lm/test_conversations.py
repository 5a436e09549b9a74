from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from semhitok.data.tokens import Failure, TokenMetadata, TokenRecord, write_tokens
from semhitok.errors import DataError, FormatError, NotFoundError, StorageError
from semhitok.lm.conversations import (
    Conversation,
    TokenPictures,
    in_folder,
    read_chats,
    read_texts,
)

GRID = torch.tensor([[0, 5, 63], [9, 1, 2]])


def metadata(digest: str = "abc") -> TokenMetadata:
    return TokenMetadata(
        model="toy", hash=digest, num_semantic=16, num_pixel=4, patch_size=8, policy="",
        dtype="float32", version="1",
    )  # fmt: skip


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two files with three pictures; coco/1.jpg is GRID."""
    folder = tmp_path / "tokens"
    folder.mkdir()
    named = {"coco/0.jpg": GRID + 0 * 1, "coco/1.jpg": GRID, "coco/2.jpg": GRID.T.contiguous()}
    named["coco/0.jpg"] = GRID[:1]
    records = [TokenRecord(key, ids // 4, ids % 4) for key, ids in named.items()]
    write_tokens(folder / "tokens-0.parquet", records[:1], metadata())
    write_tokens(folder / "tokens-1.parquet", records[1:], metadata())
    return folder


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": what} for who, what in turns]


ROWS = [
    {
        "id": 7,
        "image": "coco/1.jpg",
        "conversations": said(("human", "<image>\nWhat is it? "), ("gpt", "A dog.")),
    },
    {
        "id": "two",
        "image": ["coco/0.jpg", "coco/2.jpg"],
        "conversations": said(
            ("system", "Be kind."), ("human", "<image> or <image>?"), ("gpt", "The first.")
        ),
    },
    {"conversations": said(("human", "Hello"), ("gpt", "Hi."))},
    {
        "id": "drawn",
        "image": "coco/1.jpg",
        "conversations": said(("human", "a dog"), ("gpt", "<image>")),
    },
]


def write(path: Path, rows: list[object]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(f"{json.dumps(row)}\n\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_llava(shards: Path, tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"llava{suffix}", list(ROWS))
    found = list(read_chats(path, TokenPictures(shards, "abc")))
    assert all(isinstance(c, Conversation) for c in found)
    assert [c.key for c in found] == ["7", "two", f"llava{suffix}:2", "drawn"]
    assert [c.kind for c in found] == ["understand", "understand", "text", "generate"]  # type: ignore[union-attr]
    first, second = found[:2]
    assert isinstance(first, Conversation) and isinstance(second, Conversation)
    assert first.messages == (
        {"role": "user", "content": "<image>\nWhat is it?"},
        {"role": "assistant", "content": "A dog."},
    )
    assert torch.equal(first.pictures[0], GRID)
    assert [m["role"] for m in second.messages] == ["system", "user", "assistant"]  # type: ignore[index]
    assert [tuple(p.shape) for p in second.pictures] == [(1, 3), (3, 2)]


def test_pictures_from_a_folder_are_paths(tmp_path: Path) -> None:
    path = write(tmp_path / "llava.json", list(ROWS[:1]))
    (found,) = read_chats(path, in_folder(tmp_path / "photos"))
    assert found.pictures == (tmp_path / "photos" / "coco" / "1.jpg",)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("no object", "is 'no object'; an object is needed"),
        ({"id": 1, "image": "x"}, "has no list of 'conversations'; its keys: id, image"),
        (
            {"conversations": [{"from": "bard", "value": ""}]},
            "turn 0 is .*; needed: 'from', one of",
        ),
        ({"conversations": [{"from": "gpt", "value": 3}]}, "turn 0 is .*'value', a text"),
        ({**ROWS[0], "image": 3}, "'image' is 3; a name or a list of names is needed"),
        ({**ROWS[0], "image": ["coco/1.jpg"] * 2}, "has 1 <image> places and 2 pictures"),
        ({"conversations": ROWS[0]["conversations"]}, "has 1 <image> places and 0 pictures"),
        ({**ROWS[0], "image": "coco/9.jpg"}, "coco/9.jpg: is no key of the token shards"),
    ],
)
def test_what_is_no_conversation_costs_itself(
    shards: Path, tmp_path: Path, row: object, why: str
) -> None:
    path = write(tmp_path / "llava.jsonl", [ROWS[2], row, ROWS[2]])
    found = list(read_chats(path, TokenPictures(shards, "abc")))
    assert [type(item) for item in found] == [Conversation, Failure, Conversation]
    assert isinstance(found[1], Failure) and found[1].key == "llava.jsonl:1"
    pytest.raises(FormatError, lambda: (_ for _ in ()).throw(FormatError(found[1].reason))).match(
        why
    )


def test_a_line_that_is_no_json_costs_itself(tmp_path: Path) -> None:
    path = tmp_path / "llava.jsonl"
    path.write_text(f"{json.dumps(ROWS[2])}\n{{half\n")
    found = list(read_chats(path, in_folder(tmp_path)))
    assert isinstance(found[1], Failure) and "half" in found[1].reason


def test_a_store_that_fails_stops_the_work(tmp_path: Path) -> None:
    def find(name: str) -> Path:
        raise StorageError("the store failed 5 times")

    path = write(tmp_path / "llava.json", list(ROWS))
    with pytest.raises(StorageError, match="failed 5 times"):
        list(read_chats(path, find))


def test_texts(tmp_path: Path) -> None:
    path = tmp_path / "books.txt"
    path.write_text("One\nstory.\n\n\nAnother.\n \nLast", encoding="utf-8")
    found = list(read_texts(path))
    assert [(c.key, c.messages) for c in found] == [  # type: ignore[union-attr]
        ("books.txt:0", "One\nstory."),
        ("books.txt:1", "Another."),
        ("books.txt:2", "Last"),
    ]
    assert {c.kind for c in found} == {"text"}  # type: ignore[union-attr]
    lines = write(tmp_path / "lines.jsonl", [{"text": "a"}, {"body": "b"}, {"text": " "}])
    first, *others = read_texts(lines)
    assert isinstance(first, Conversation) and first.messages == "a"
    assert [type(item) for item in others] == [Failure, Failure]
    path.write_bytes(b"caf\xe9")
    with pytest.raises(FormatError, match="books.txt: is no UTF-8"):
        list(read_texts(path))


def test_files_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a")
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "half.json").write_text("[")
    find: Callable[[str], Path] = tmp_path.joinpath
    for name, kind, why in (
        ("nowhere.json", NotFoundError, "no such file"),
        ("x.csv", DataError, r"a .csv; read here: .json, .jsonl"),
        ("object.json", FormatError, "holds dict; a list is needed"),
        ("half.json", FormatError, "is no JSON"),
    ):
        with pytest.raises(kind, match=why):
            list(read_chats(tmp_path / name, find))
    with pytest.raises(DataError, match=r"read here: .txt, .jsonl"):
        list(read_texts(tmp_path / "x.csv"))


def test_tokens_of_another_tokenizer(shards: Path) -> None:
    with pytest.raises(
        FormatError, match=r"written by toy \(abc\), not by the tokenizer .*\(def\)"
    ):
        TokenPictures(shards, "def")


def test_a_key_that_two_pictures_have(shards: Path) -> None:
    with pytest.raises(FormatError, match="two pictures .* have the key 'coco/0.jpg'"):
        TokenPictures([shards / "tokens-0.parquet"] * 2, "abc")
