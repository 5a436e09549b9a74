"""A data set into token shards: each shard whole or not there, the same whoever writes it.

A shard is a pure function of the plan and the data. So nothing has to be remembered but which
shards are there: a job that was killed anywhere goes on with those that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from semhitok.data.columns import Columns
from semhitok.data.sources import ImageSource
from semhitok.data.tokens import Failure, TokenRecord, summarize_tokens, write_tokens
from semhitok.data.webdataset import webdataset_bytes
from semhitok.errors import FormatError
from semhitok.images import ImagePolicy
from semhitok.model import SemHiTok
from semhitok.model.precision import PRECISIONS
from semhitok.storage import Place, file_size, list_names, open_file, write_bytes
from semhitok.tokenize.flips import Flips, measure_flips
from semhitok.tokenize.plan import FAILURES, MANIFEST, Plan
from semhitok.tokenize.reading import Reading, by_size, encode, read_pictures

AHEAD = 2
"""Batches that wait for the model."""

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")
Progress = Callable[[int, int], None]
"""Called with pictures done and pictures failed, of this call."""


@dataclass(frozen=True)
class TokenizeJob:
    """One plan, the data and the model that it is about, and the folder of its shards."""

    plan: Plan
    source: ImageSource
    policy: ImagePolicy
    model: SemHiTok
    folder: Place
    batch_size: int = 16
    workers: int = 0
    """Processes that read pictures."""

    def pending(self) -> list[int]:
        """Shards that are not there yet."""
        there = list_names(self.folder)
        return [n for n in range(self.plan.num_shards) if self.plan.shard_name(n) not in there]

    def run_rank(
        self, rank: int = 0, world_size: int = 1, progress: Progress | None = None
    ) -> None:
        """Write every pending shard `n` with `n % world_size == rank`.

        Raises:
            StorageError: a shard cannot be written; those before it are whole.
        """
        self.run_shards([n for n in self.pending() if n % world_size == rank], progress)

    def run_shards(self, shards: Sequence[int], progress: Progress | None = None) -> None:
        """Write these shards. Reading, encoding and writing go on beside each other.

        Raises:
            StorageError: a shard cannot be written; those before it are whole.
        """
        self.model.set_precision(PRECISIONS[self.plan.tokens.dtype])
        columns = Columns(self.plan.columns)
        parts = map(self.plan.pictures_of, shards)
        readings = read_pictures(self.source, self.policy, columns, parts, self.workers)
        tell = progress or (lambda done, failed: None)
        done = failed = 0
        with ThreadPoolExecutor(1) as model_thread, ThreadPoolExecutor(1) as writer:
            writing: Future[None] | None = None
            for shard in shards:
                records: dict[int, TokenRecord] = {}
                failures: dict[int, Failure] = {}
                of_shard = _take(readings, len(self.plan.pictures_of(shard)))
                batches = by_size(of_shard, self.batch_size, failures)
                work = partial(encode, self.model)
                for encoded in _ahead(model_thread, work, batches):
                    records |= encoded
                    tell(done + len(records), failed + len(failures))
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write, shard, records, failures)
                done, failed = done + len(records), failed + len(failures)
                tell(done, failed)
            if writing is not None:
                writing.result()

    def finish(self) -> dict[str, Any]:
        """Write `failures.jsonl` and `manifest.json` from the shards; the manifest.

        Raises:
            FormatError: shards are missing, or one is not of this plan.
        """
        missing = self.pending()
        if missing:
            raise FormatError(
                f"{self.folder} lacks {len(missing)} of {self.plan.num_shards} shards; start the "
                "job again to write them"
            )
        precision = PRECISIONS[self.plan.tokens.dtype]
        flips = None
        if precision != torch.float32:
            flips = measure_flips(self.model, self.source, self.policy, precision)
        return write_manifest(self.plan, self.folder, flips)

    def _clean(self, shard: int) -> None:
        """Remove what a killed writer left; a store shows nothing of the kind."""
        if isinstance(self.folder, Path):
            stem = Path(self.plan.shard_name(shard)).stem
            for stale in self.folder.glob(f".{stem}.*"):
                stale.unlink(missing_ok=True)

    def _write(
        self, shard: int, records: dict[int, TokenRecord], failures: dict[int, Failure]
    ) -> None:
        self._clean(shard)
        path = self.folder / self.plan.shard_name(shard)
        rows = [records[index] for index in sorted(records)]
        if self.plan.webdataset:  # first, since a shard that is there counts as done
            write_bytes(path.with_suffix(".tar"), webdataset_bytes(rows, self.plan.tokens))
        write_tokens(
            path,
            rows,
            self.plan.tokens,
            columns=Columns(self.plan.columns),
            failures=[failures[index] for index in sorted(failures)],
        )


def write_manifest(plan: Plan, folder: Place, flips: Flips | None = None) -> dict[str, Any]:
    """`failures.jsonl` and `manifest.json` of a folder that has all its shards; the manifest.

    Args:
        flips: of reduced precision against float32.

    Raises:
        FormatError: a shard is damaged or of another model.
    """
    shards: list[dict[str, Any]] = []
    failures: list[Failure] = []
    for number in range(plan.num_shards):
        path = folder / plan.shard_name(number)
        found = summarize_tokens(path)
        if found.metadata != plan.tokens:
            raise FormatError(f"{path} is not of this job's model and options; delete it")
        shard = {
            "name": path.name,
            "rows": found.rows,
            "failed": len(found.failures),
            "bytes": file_size(path),
            "sha256": file_sha256(path),
        }
        if plan.webdataset:
            shard["tar_sha256"] = file_sha256(path.with_suffix(".tar"))
        shards.append(shard)
        failures += found.failures
    manifest = {
        "format": plan.format,
        "source": plan.source,
        "fingerprint": plan.fingerprint,
        "pictures": sum(shard["rows"] for shard in shards),
        "failed": len(failures),
        "tokens": asdict(plan.tokens),
        **({"flips": asdict(flips)} if flips else {}),
        "shards": shards,
    }
    lines = "".join(json.dumps({"key": f.key, "reason": f.reason}) + "\n" for f in failures)
    write_bytes(folder / FAILURES, lines.encode())
    # Last: a folder with a manifest is whole.
    write_bytes(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    return manifest


def file_sha256(path: Place) -> str:
    """Hash of a file's bytes."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[_Given], _Made], items: Iterable[_Given]
) -> Iterator[_Made]:
    """`work` of each item, in order; a few items are asked for before their turn."""
    waiting: deque[Future[_Made]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _take(readings: Iterator[Reading], count: int) -> Iterator[Reading]:
    return (next(readings) for _ in range(count))
