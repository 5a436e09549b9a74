from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from semhitok.data.tokens import Failure
from semhitok.errors import DataError, FormatError, RangeError, StorageError
from semhitok.lm.conversations import Conversation
from semhitok.lm.prepare import Prepared, PrepareJob
from semhitok.lm.processor import UnifiedProcessor

Make = Callable[..., UnifiedProcessor]
GRID = torch.tensor([[0, 63, 5], [17, 30, 2]])


def talk(key: str, asked: str, answer: str, *pictures: Any) -> Conversation:
    messages = ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})
    return Conversation(key, messages, pictures)


def conversations(images: Tensor) -> Iterator[Conversation | Failure]:
    yield talk("read", "<image>\nWhat?", "A dog.", images[0])
    yield talk("drawn", "a photo of a dog", "<image>", GRID)
    yield Failure("lost", "is no object")
    yield talk("broken", "<image>", "Yes.", b"no picture")
    yield talk("two", "<image><image>", "Yes.", GRID)
    yield Conversation("text", "A black dog runs in the snow.")
    yield talk("long", "why " * 60, "Yes.")
    yield talk("grid", "<image>", "Yes.", torch.tensor([[64]]))


def prepare(
    make: Make, folder: Path, images: Tensor, **options: Any
) -> tuple[UnifiedProcessor, Prepared]:
    processor = make()
    job = PrepareJob(processor, folder, {"seed": 0}, **{"max_length": 60, **options})
    job.claim()
    return processor, job.run(conversations(images))


def test_rows_are_examples(make_processor: Make, images: Tensor, tmp_path: Path) -> None:
    processor, done = prepare(make_processor, tmp_path, images)
    table = pq.read_table(tmp_path / "sequences-000000.parquet")
    rows = {row["key"]: row for row in table.to_pylist()}
    kinds = {key: row["kind"] for key, row in rows.items()}
    assert kinds == {"read": "understand", "drawn": "generate", "text": "text"}
    ids = processor.tokenizer.encode(images[:1])[0]
    for conversation in conversations(images):
        if not isinstance(conversation, Conversation) or conversation.key not in rows:
            continue
        row = rows[conversation.key]
        if isinstance(conversation.messages, str):
            wanted = processor.plain(conversation.messages)
        else:
            grid = ids if conversation.key == "read" else GRID
            wanted = processor.example(conversation.messages, [grid])
        assert row["input_ids"] == wanted.input_ids.tolist()
        assert row["learned"] == [place for span in wanted.learned for place in span]
        assert row["dropped"] == list(wanted.dropped or ())
    assert rows["drawn"]["dropped"] and not rows["read"]["dropped"]
    assert done.tokens == sum(len(row["input_ids"]) for row in rows.values())
    assert done.longest == max(len(row["input_ids"]) for row in rows.values())


def test_what_cannot_be_used_is_named_and_costs_itself(
    make_processor: Make, images: Tensor, tmp_path: Path
) -> None:
    _, done = prepare(make_processor, tmp_path, images)
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["lost", "broken", "two", "grid"]
    reasons = [line["reason"] for line in lines]
    assert reasons[0] == "is no object" and "10 bytes" in reasons[1]
    assert "2 <image> places and 1 pictures" in reasons[2] and "id 64" in reasons[3]
    assert done.too_long == 1 and sum(done.sequences.values()) == 3


def test_the_manifest_says_what_is_there(
    make_processor: Make, images: Tensor, tmp_path: Path
) -> None:
    processor, done = prepare(make_processor, tmp_path, images, shard_size=2)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [(s["file"], s["rows"]) for s in manifest["shards"]] == [
        ("sequences-000000.parquet", 2),
        ("sequences-000001.parquet", 1),
    ]
    assert manifest["sequences"] == {"understand": 1, "generate": 1, "text": 1}
    assert manifest["failures"] == 4 and manifest["too_long"] == 1
    assert manifest["seed"] == 0 and manifest["max_length"] == 60
    metadata = pq.read_schema(tmp_path / "sequences-000001.parquet").metadata
    said = json.loads(metadata[b"semhitok.sequences"])
    assert {k: said[k] for k in processor.identity()} == processor.identity()
    assert said["format"] == 1 and said["version"]


def test_the_same_job_gives_the_same_bytes(
    make_processor: Make, images: Tensor, tmp_path: Path
) -> None:
    files = []
    for name in ("a", "b", "a"):  # the last one again in the first folder
        prepare(make_processor, tmp_path / name, images, shard_size=2)
        folder = tmp_path / name
        files.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert files[0] == files[1] == files[2]
    assert set(files[0]) == {
        "job.json", "manifest.json", "failures.jsonl",
        "sequences-000000.parquet", "sequences-000001.parquet",
    }  # fmt: skip


def test_a_folder_of_another_job(make_processor: Make, images: Tensor, tmp_path: Path) -> None:
    prepare(make_processor, tmp_path / "a", images)
    with pytest.raises(FormatError, match="holds the sequences of another job"):
        prepare(make_processor, tmp_path / "a", images, max_length=61)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "diary.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"that no preparing wrote \(diary.txt\)"):
        prepare(make_processor, tmp_path / "b", images)


def test_nothing_to_learn(make_processor: Make, images: Tensor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not one sequence: 4 conversations failed, 4 are longer"):
        prepare(make_processor, tmp_path, images, max_length=3)
    assert not (tmp_path / "manifest.json").exists()
    with pytest.raises(RangeError, match="max_length is 0"):
        prepare(make_processor, tmp_path, images, max_length=0)
