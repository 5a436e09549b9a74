"""Prepared sequences as training data: whole examples packed into items of one length.

An item holds examples one behind the other. Their `position_ids` start anew, from which
`transformers` makes a mask that keeps them apart wherever no `attention_mask` is given: with
eager, sdpa and flex attention; flash attention does so for batches of one item only. Padding comes
last, an example of its own of which nothing is learned: nobody sees it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int64
from torch import Tensor

from semhitok.errors import FormatError, NotFoundError, RangeError
from semhitok.images import reason
from semhitok.lm.examples import IGNORED, Example, Span
from semhitok.lm.packing import Plan, lay_out
from semhitok.lm.prepare import FORMAT_VERSION, MANIFEST, METADATA, SCHEMA
from semhitok.lm.processor import check_identity
from semhitok.storage import Place, is_file, locate, read_file

KEPT_EPOCHS = 2
"""Plans in memory: a batch may end one epoch and begin the next."""


class Sequences:
    """The sequences of prepared folders, all in memory: four bytes a token."""

    def __init__(self, folders: str | Place | Sequence[str | Place]) -> None:
        """Raises:
        NotFoundError: a folder that no finished job wrote.
        FormatError: a damaged file, or folders of several vocabularies, tokenizers or templates.
        """
        listed = [folders] if isinstance(folders, (str, Place)) else list(folders)
        self.name = ", ".join(map(str, listed))
        tables: list[pa.Table] = []
        digests: list[str] = []
        for folder in listed:
            identity, found, hashes = _read_folder(locate(folder))
            digests += hashes
            if tables:
                check_identity(self.identity, identity, str(folder))
            else:
                self.identity: dict[str, Any] = identity
            tables += found
        self.fingerprint = hashlib.sha256(" ".join(digests).encode()).hexdigest()
        """Hash of all sequences, wherever the folders are."""
        table = pa.concat_tables(tables).combine_chunks()
        self.keys = table.column("key")
        self.kinds: np.ndarray = np.array(table.column("kind").to_pylist())
        """understand, generate or text, of each."""
        self._tokens, self._starts = _flat(table, "input_ids")
        self._learned, self._learned_starts = _flat(table, "learned")
        dropped, starts = _flat(table, "dropped")
        has = np.diff(starts) == 2
        self._dropped = np.full((len(has), 2), -1, dtype=np.int64)
        self._dropped[has] = dropped.reshape(-1, 2)
        self.lengths: np.ndarray = np.diff(self._starts)
        """Tokens of each."""
        self.dropped_lengths: np.ndarray = np.diff(self._dropped, axis=1)[:, 0]
        """Tokens of each that are dropped to make it unconditional."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> Example:
        number = range(len(self))[number]
        tokens = self._tokens[self._starts[number] : self._starts[number + 1]]
        places = self._learned[self._learned_starts[number] : self._learned_starts[number + 1]]
        learned = tuple((int(a), int(b)) for a, b in places.reshape(-1, 2))
        start, stop = (int(place) for place in self._dropped[number])
        dropped: Span | None = (start, stop) if start >= 0 else None
        return Example(torch.from_numpy(tokens.astype(np.int64)), learned, dropped)


class Item(TypedDict):
    """What the model's `forward` takes, of one item."""

    input_ids: Int64[Tensor, " t"]
    labels: Int64[Tensor, " t"]
    position_ids: Int64[Tensor, " t"]


@dataclass(frozen=True)
class Source:
    """Sequences, and how often they come."""

    sequences: Sequences
    weight: float = 1.0
    """Times that each sequence comes in an epoch, on average."""


class PackedSequences(torch.utils.data.Dataset[Item]):
    """A mixture of sources as items of `length` tokens; item n follows from (seed, n) alone.

    Items are epochs behind one another. An epoch has each source as often as its weight says, in
    an order of its own; of a source with a fraction each sequence comes equally often over the
    epochs. In each epoch others of the drawings lose the text that they are drawn from.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        length: int,
        items: int,
        seed: int = 0,
        drop: float = 0.1,
    ) -> None:
        """Args:
            length: tokens of an item.
            items: how many there are: steps x batch size. The first ones do not depend on it.
            drop: share of the drawings that are made unconditional.

        Raises:
            RangeError: a number that is impossible, or a sequence longer than an item.
            FormatError: sources of several vocabularies, tokenizers or templates.
        """
        if not sources or length < 1 or items < 0 or seed < 0 or not 0 <= drop <= 1:
            raise RangeError(
                f"{len(sources)} sources, length {length}, {items} items, seed {seed}, drop {drop}"
                "; needed: at least 1, 1, 0 and 0, and drop in [0, 1]"
            )
        first = sources[0].sequences
        for source in sources:
            check_identity(first.identity, source.sequences.identity, source.sequences.name)
            longest = int(source.sequences.lengths.max(initial=0))
            if longest > length:
                raise RangeError(
                    f"{source.sequences.name} has a sequence of {longest} tokens, an item has "
                    f"{length}; prepare with --max-length {length}, or make items longer"
                )
            if not source.weight > 0 or round(source.weight * len(source.sequences)) < 1:
                raise RangeError(
                    f"{source.sequences.name} has weight {source.weight}; it must be above 0, and "
                    "give at least one of its sequences an epoch"
                )
        self.sources, self.length, self.items = list(sources), length, items
        self.seed, self.drop = seed, drop
        self.identity = first.identity
        self._firsts = [0]
        """Number of the first item of each epoch that has been laid out, and of the next."""
        self._plans: dict[int, Plan] = {}

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, number: int) -> Item:
        number = range(self.items)[number]
        epoch = 0
        while self._first_after(epoch) <= number:
            epoch += 1
        plan = self._plan(epoch)
        return self._pack(plan.item(number - self._firsts[epoch]))

    def _first_after(self, epoch: int) -> int:
        if len(self._firsts) == epoch + 1:
            self._firsts.append(self._firsts[epoch] + len(self._plan(epoch)))
        return self._firsts[epoch + 1]

    def _plan(self, epoch: int) -> Plan:
        if epoch not in self._plans:
            for old in sorted(self._plans)[: 1 - KEPT_EPOCHS]:
                del self._plans[old]
            self._plans[epoch] = lay_out(
                [
                    (s.sequences.lengths, s.sequences.dropped_lengths, s.weight)
                    for s in self.sources
                ],
                length=self.length,
                seed=self.seed,
                epoch=epoch,
                drop=self.drop,
            )
        return self._plans[epoch]

    def _pack(self, members: Sequence[tuple[int, int, bool]]) -> Item:
        examples = []
        for source, number, dropped in members:
            example = self.sources[source].sequences[number]
            examples.append(example.unconditional() if dropped else example)
        return pack(examples, self.length)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_plans": {}}


def pack(examples: Sequence[Example], length: int) -> Item:
    """Examples one behind the other, and padding, as an item of `length` tokens."""
    item: Item = {
        "input_ids": torch.zeros(length, dtype=torch.int64),
        "labels": torch.full((length,), IGNORED),
        "position_ids": torch.zeros(length, dtype=torch.int64),
    }
    done = 0
    for example in examples:
        here = slice(done, done + len(example))
        item["input_ids"][here] = example.input_ids
        item["labels"][here] = example.labels
        item["labels"][done] = IGNORED  # it would be learned after the example before
        item["position_ids"][here] = torch.arange(len(example))
        done += len(example)
    item["position_ids"][done:] = torch.arange(length - done)
    return item


# -------------------------------------------------------------------------------------- reading


def _read_folder(folder: Place) -> tuple[dict[str, Any], list[pa.Table], list[str]]:
    """What the shards say of themselves, their rows, and their hashes."""
    path = folder / MANIFEST
    if not is_file(path):
        raise NotFoundError(
            f"{folder} has no {MANIFEST}; prepare it with semhitok lm prepare, or start that again "
            "until it is done"
        )
    try:
        shards = [
            (str(shard["file"]), shard["sha256"]) for shard in json.loads(read_file(path))["shards"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path} is damaged ({reason(error)}); prepare it again") from error
    found = [_read_shard(folder / name, digest) for name, digest in shards]
    for name, (identity, _) in zip(shards, found, strict=True):
        check_identity(found[0][0], identity, f"{folder / name[0]}")
    return found[0][0], [table for _, table in found], [digest for _, digest in shards]


def _read_shard(path: Place, digest: str) -> tuple[dict[str, Any], pa.Table]:
    try:
        data = read_file(path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError("its hash is not that of the manifest")
        table = pq.read_table(io.BytesIO(data))
        identity: dict[str, Any] = json.loads((table.schema.metadata or {})[METADATA])
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise FormatError(
            f"{path}: no whole file of sequences ({reason(error)}); prepare it again"
        ) from error
    if identity.get("format") != FORMAT_VERSION or not table.schema.equals(SCHEMA):
        raise FormatError(
            f"{path}: format {identity.get('format')} with columns {table.schema.names}; this "
            f"version reads {FORMAT_VERSION} with {SCHEMA.names}"
        )
    return identity, table


def _flat(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """All rows' values in one array, and where each row starts in it."""
    column = table.column(name).combine_chunks()
    lengths = np.asarray(column.value_lengths()).astype(np.int64)
    return np.asarray(column.flatten()), np.concatenate([[0], np.cumsum(lengths)])
