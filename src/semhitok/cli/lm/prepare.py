"""`semhitok lm prepare`: conversations, captions, labels and texts into ready sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semhitok.cli.console import (
    SOME_FAILED,
    DeviceOption,
    JsonOption,
    make_pairs,
    message,
    parse_patches,
    print_json,
    print_table,
    progress,
)

if TYPE_CHECKING:
    from semhitok.data.tokens import Failure
    from semhitok.lm.conversations import Conversation, FindPicture
    from semhitok.lm.pictures import Size
    from semhitok.lm.prepare import Prepared
    from semhitok.lm.records import Record, Records
    from semhitok.lm.tasks import Task


class TaskName(StrEnum):
    """What is made of data."""

    DESCRIBE = "describe"
    DRAW = "draw"
    NAME = "name"
    IS_THERE = "is-there"
    DRAW_CLASS = "draw-class"
    CHAT = "chat"
    TEXT = "text"


NAMED_FAILURES = 10


def prepare(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="Token shards of semhitok tokenize, or pictures with captions or class names, as "
            "tokenize reads them; for chat LLaVA's .json or .jsonl; for text .txt or .jsonl.",
            show_default=False,
        ),
    ],
    task: Annotated[
        list[TaskName],
        typer.Option(
            "--task",
            help="What to make of it; may be repeated for captions (describe, draw) and for class "
            "names (name, is-there, draw-class).",
        ),
    ],
    language: Annotated[
        str, typer.Option("--language", help="Language model: a folder, or a Hub id owner/name.")
    ],
    out: Annotated[str, typer.Option("--out", help="The folder of the sequences.")],
    tokenizer: Annotated[
        str,
        typer.Option("--tokenizer", help="Bundled name, model folder, or Hub id owner/name."),
    ] = "tiny",
    pictures: Annotated[
        str | None,
        typer.Option(
            "--pictures",
            help="For chat: the folder that the pictures' names begin in, or its token shards.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="PIXELS|HxW",
            help="Of pictures without tokens: the side of their middle square in pixels, or height "
            "x width in patches; by default the tokenizer's own.",
        ),
    ] = None,
    max_side: Annotated[
        int, typer.Option("--max-side", min=1, help="Most patches of a side; as in training.")
    ] = 64,
    max_length: Annotated[
        int, typer.Option("--max-length", min=1, help="Longer sequences are left out.")
    ] = 2048,
    shard_size: Annotated[
        int, typer.Option("--shard-size", min=1, help="Sequences of a file.")
    ] = 16_384,
    seed: Annotated[int, typer.Option("--seed", help="Of the words that tasks choose.")] = 0,
    device: DeviceOption = None,
    json_: JsonOption = False,
) -> None:
    """Conversations, captions, labels and texts into sequences to train on.

    Parquet, with manifest.json and failures.jsonl beside it. The same command gives the same
    bytes. What cannot be used is left out and named; the exit code is then 3.
    """
    tasks = [each.value for each in task]
    _check(tasks, pictures)
    from semhitok.cli.models import load_model, pick_device
    from semhitok.lm.prepare import PrepareJob, summary
    from semhitok.lm.processor import UnifiedProcessor
    from semhitok.storage import locate

    tok = load_model(tokenizer, pick_device(device))
    processor = UnifiedProcessor.for_language(language, tok, max_side=max_side, size=_size(size))
    conversations = _conversations(data, tasks, pictures, seed, processor.tokenizer_hash)
    told = {"data": data, "tasks": tasks, "pictures": pictures, "seed": seed}
    job = PrepareJob(processor, locate(out), told, max_length=max_length, shard_size=shard_size)
    job.claim()
    done = job.run(conversations)
    _tell(out, done, {"out": out, **summary(done)} if json_ else None)


def _check(tasks: Sequence[str], pictures: str | None) -> None:
    """Raises:
    RangeError: tasks that read different files, or pictures that no task asks for.
    """
    from semhitok.errors import RangeError

    alone = [name for name in tasks if name in ("chat", "text")]
    if alone and len(tasks) > 1:
        raise RangeError(
            f"--task {alone[0]} reads files of its own; run it apart from {', '.join(tasks)}"
        )
    if ("chat" in tasks) != (pictures is not None):
        raise RangeError("--pictures goes with --task chat, and only with that; see --help")


def _size(text: str | None) -> Size:
    """Raises:
    RangeError: neither pixels nor HxW.
    """
    if text is None:
        return None
    if text.isdecimal():
        return int(text)
    return parse_patches(text, "pixels, or patches as HxW, such as 8x12")


def _conversations(
    data: Sequence[str], tasks: Sequence[str], pictures: str | None, seed: int, digest: str
) -> Iterator[Conversation | Failure]:
    from semhitok.lm.conversations import read_chats, read_texts
    from semhitok.lm.records import Records
    from semhitok.lm.tasks import Describe, Draw, DrawClass, IsThere, Name, converse

    if tasks[0] == "chat":
        assert pictures is not None
        find = _finder(pictures, digest)
        return chain.from_iterable(read_chats(item, find) for item in data)
    if tasks[0] == "text":
        return chain.from_iterable(map(read_texts, data))
    kinds: dict[str, type[Describe | Draw | Name | DrawClass | IsThere]] = {
        "describe": Describe,
        "draw": Draw,
        "name": Name,
        "is-there": IsThere,
        "draw-class": DrawClass,
    }
    records = [Records(item, [kinds[name].needs for name in tasks], digest) for item in data]

    def make(kind: type[Describe | Draw | Name | DrawClass | IsThere]) -> Task:
        if issubclass(kind, IsThere):
            return kind(chain.from_iterable(r.classes() for r in records), seed)
        return kind(seed)

    return converse(_watched(records), [make(kinds[name]) for name in tasks])


def _watched(records: Sequence[Records]) -> Iterator[Record | Failure]:
    """All records, with their progress on stderr."""
    with progress("pictures", sum(map(len, records))) as advance:
        for number, record in enumerate(chain.from_iterable(records), 1):
            yield record
            advance(number)


def _finder(pictures: str, digest: str) -> FindPicture:
    from semhitok.lm.conversations import TokenPictures, in_folder
    from semhitok.lm.records import is_tokens

    return TokenPictures(pictures, digest) if is_tokens(pictures) else in_folder(pictures)


def _tell(out: str, done: Prepared, record: dict[str, Any] | None) -> None:
    if record is not None:
        print_json(record)
    else:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in done.sequences.items())
        total = sum(done.sequences.values())
        rows = {
            "out": out,
            "sequences": f"{total:,} ({counts})",
            "tokens": f"{done.tokens:,}, of which {done.learned:,} are learned",
            "longest": f"{done.longest:,} tokens; {done.too_long:,} longer ones left out",
            "failed": f"{len(done.failures):,}",
        }
        print_table(make_pairs(rows))
    for failure in done.failures[:NAMED_FAILURES]:
        message(f"failed: {failure.key}: {failure.reason}")
    if len(done.failures) > NAMED_FAILURES:
        message(f"and {len(done.failures) - NAMED_FAILURES} more: {out}/failures.jsonl")
    if done.failures:
        raise typer.Exit(SOME_FAILED)
