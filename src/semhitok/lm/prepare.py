"""Conversations to parquet shards of ready sequences, which `sequences` trains on.

A folder holds `job.json` (what decides on the bytes, written first), `sequences-*.parquet`, and at
the end `manifest.json` (counts and shards) and `failures.jsonl`. Killed and started again a job
begins anew and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import semhitok
from semhitok.data.tokens import Failure
from semhitok.errors import DataError, FormatError, RangeError, SemHiTokError, StorageError
from semhitok.lm.conversations import KINDS, Conversation, failure
from semhitok.lm.examples import Example
from semhitok.lm.processor import UnifiedProcessor
from semhitok.storage import Place, check_folder, is_file, list_names, read_file, write_bytes

JOB, MANIFEST, FAILURES = "job.json", "manifest.json", "failures.jsonl"
FORMAT_VERSION = 1
METADATA = b"semhitok.sequences"
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("kind", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("learned", pa.list_(pa.int32())),
        ("dropped", pa.list_(pa.int32())),
    ]
)
"""`learned` holds start, stop, start, stop, ...; `dropped` start and stop, or nothing."""
TOGETHER = 64
"""Conversations whose pictures are encoded together."""


@dataclass
class Prepared:
    """What came of a job."""

    sequences: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    """By kind."""
    tokens: int = 0
    learned: int = 0
    """Tokens that are learned."""
    longest: int = 0
    too_long: int = 0
    """Left out, as longer than the limit."""
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class PrepareJob:
    """Writes the sequences of conversations into a folder."""

    processor: UnifiedProcessor
    folder: Place
    told: Mapping[str, Any]
    """What decides on the conversations: data, tasks, seed."""
    max_length: int = 2048
    """Longer sequences are left out: a picture is never cut."""
    shard_size: int = 16_384
    """Sequences of a file."""

    def __post_init__(self) -> None:
        if self.max_length < 1 or self.shard_size < 1:
            raise RangeError(
                f"max_length is {self.max_length}, shard_size {self.shard_size}; both must be at "
                "least 1"
            )

    def claim(self) -> None:
        """Write down in the folder what is to be done, or see that it is the same.

        Raises:
            StorageError: the folder cannot be written, or holds what no such job wrote.
            FormatError: it holds another job.
        """
        check_folder(self.folder)
        text = json.dumps(self._decides(), indent=2, sort_keys=True) + "\n"
        path = self.folder / JOB
        if is_file(path):
            if read_file(path).decode(errors="replace") != text:
                raise FormatError(
                    f"{self.folder} holds the sequences of another job, or of another version; "
                    "give the same data and options, or another --out"
                )
            return
        strangers = sorted(name for name in list_names(self.folder) if not name.startswith("."))
        if strangers:
            raise StorageError(
                f"{self.folder} has files that no preparing wrote ({strangers[0]}); choose an "
                "empty or new folder"
            )
        write_bytes(path, text.encode())

    def run(self, conversations: Iterable[Conversation | Failure]) -> Prepared:
        """Write the sequences of all of them.

        Raises:
            DataError: not one sequence comes of them.
            StorageError: the folder cannot be written, or a store of pictures fails.
        """
        done = Prepared()
        rows: list[dict[str, Any]] = []
        shards: list[dict[str, Any]] = []
        for item, example in self._examples(conversations):
            row = self._take(item, example, done)
            if row is not None:
                rows.append(row)
            if len(rows) == self.shard_size:
                shards.append(self._write(len(shards), rows))
                rows = []
        if rows:
            shards.append(self._write(len(shards), rows))
        if not shards:
            raise DataError(_nothing(done, self.max_length))
        self._finish(done, shards)
        return done

    def _examples(
        self, conversations: Iterable[Conversation | Failure]
    ) -> Iterator[tuple[Conversation | Failure, Example | SemHiTokError | None]]:
        items = iter(conversations)
        while chunk := list(islice(items, TOGETHER)):
            pictures = [p for c in chunk if isinstance(c, Conversation) for p in c.pictures]
            grids = iter(self.processor.pictures.try_grids(pictures))
            for item in chunk:
                if isinstance(item, Failure):
                    yield item, None
                    continue
                own = list(islice(grids, len(item.pictures)))
                yield item, self._example(item, own)

    def _example(self, item: Conversation, grids: Sequence[Any]) -> Example | SemHiTokError:
        for grid in grids:
            if isinstance(grid, SemHiTokError):
                return grid
        try:
            if isinstance(item.messages, str):
                return self.processor.plain(item.messages)
            return self.processor.example(item.messages, grids)
        except SemHiTokError as error:
            return error

    def _take(
        self,
        item: Conversation | Failure,
        example: Example | SemHiTokError | None,
        done: Prepared,
    ) -> dict[str, Any] | None:
        """A row; or None, and why there is none is noted."""
        if isinstance(item, Failure):
            done.failures.append(item)
            return None
        if not isinstance(example, Example):
            assert example is not None
            done.failures.append(failure(item.key, example))
            return None
        if len(example) > self.max_length:
            done.too_long += 1
            return None
        done.sequences[item.kind] += 1
        done.tokens += len(example)
        done.learned += sum(stop - start for start, stop in example.learned)
        done.longest = max(done.longest, len(example))
        return {
            "key": item.key,
            "kind": item.kind,
            "input_ids": example.input_ids.numpy(),
            "learned": [place for span in example.learned for place in span],
            "dropped": list(example.dropped or ()),
        }

    def _write(self, number: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        metadata = {METADATA: json.dumps(self.identity(), sort_keys=True).encode()}
        table = pa.Table.from_pylist(list(rows), SCHEMA.with_metadata(metadata))
        sink = pa.BufferOutputStream()
        pq.write_table(
            table, sink, compression="zstd", use_dictionary=["kind"], write_page_checksum=True
        )
        data = sink.getvalue().to_pybytes()
        name = f"sequences-{number:06d}.parquet"
        write_bytes(self.folder / name, data)
        digest = hashlib.sha256(data).hexdigest()
        return {"file": name, "rows": len(rows), "bytes": len(data), "sha256": digest}

    def _finish(self, done: Prepared, shards: Sequence[Mapping[str, Any]]) -> None:
        lines = "".join(json.dumps(dataclasses.asdict(f)) + "\n" for f in done.failures)
        write_bytes(self.folder / FAILURES, lines.encode())
        record = {**summary(done), **self._decides(), "shards": list(shards)}
        write_bytes(self.folder / MANIFEST, (json.dumps(record, indent=2) + "\n").encode())

    def identity(self) -> dict[str, Any]:
        """What a shard says of itself."""
        return {
            "format": FORMAT_VERSION,
            "version": semhitok.__version__,
            **self.processor.identity(),
        }

    def _decides(self) -> dict[str, Any]:
        size = self.processor.pictures.size
        return {
            **self.identity(),
            "size": list(size) if isinstance(size, tuple) else size,
            "max_length": self.max_length,
            "shard_size": self.shard_size,
            **self.told,
        }


def summary(done: Prepared) -> dict[str, Any]:
    """Counts as plain values."""
    counts = dataclasses.asdict(dataclasses.replace(done, failures=[]))
    return {**counts, "failures": len(done.failures)}


def _nothing(done: Prepared, max_length: int) -> str:
    reasons = Counter(item.reason for item in done.failures)
    common = f"; most often: {reasons.most_common(1)[0][0]}" if reasons else ""
    return (
        f"not one sequence: {len(done.failures)} conversations failed, {done.too_long} are longer "
        f"than {max_length} tokens{common}"
    )
