"""Token shards as training data: by number, or as a shuffled stream that goes on exactly."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from semhitok.data.tokens import (
    TokenFile,
    TokenMetadata,
    read_tokens,
    summarize_tokens,
    token_files,
)
from semhitok.errors import DataError, FormatError, RangeError
from semhitok.storage import Place

KEPT_SHARDS = 8
"""Shards in memory: a picture of 256 ids takes about 2 KB there."""


@dataclass(frozen=True)
class TokenSample:
    """One picture as a language model sees it."""

    key: str
    ids: Int64[Tensor, "h w"]
    """In [0, K * m)."""
    extra: dict[str, Any] = field(default_factory=dict)
    """The columns that were asked for."""


class TokenDataset(torch.utils.data.Dataset[TokenSample]):
    """The pictures of token files in their order; the folder of a `tokenize` job, or some files."""

    def __init__(
        self, data: str | Place | Sequence[str | Place], *, columns: Sequence[str] = ()
    ) -> None:
        """Args:
            data: a folder of shards, or token files; paths or URLs.
            columns: what comes along as `extra`: label, captions, ...

        Raises:
            NotFoundError: no such folder or file, or it holds no tokens.
            FormatError: a file is damaged, the files are of several tokenizers, or lack a column.
        """
        self.paths = token_files(data)
        summaries = [summarize_tokens(path) for path in self.paths]
        self.metadata: TokenMetadata = summaries[0].metadata
        for path, summary in zip(self.paths, summaries, strict=True):
            if summary.metadata.hash != self.metadata.hash:
                raise FormatError(
                    f"{path} was written by {_author(summary.metadata)}, {self.paths[0]} by "
                    f"{_author(self.metadata)}; read them apart"
                )
        self.columns = tuple(columns)
        self.sizes = [summary.rows for summary in summaries]
        """Pictures of each file."""
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self._kept: OrderedDict[int, _Shard] = OrderedDict()
        if len(self) == 0:
            raise DataError(f"{self.paths[0]}: no pictures in {len(self.paths)} files")

    @property
    def vocab_size(self) -> int:
        """K * m."""
        return self.metadata.num_semantic * self.metadata.num_pixel

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> TokenSample:
        index = range(len(self))[index]
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.shard(shard).sample(index - int(self._starts[shard]))

    def stream(
        self,
        *,
        seed: int = 0,
        shuffle: bool = True,
        mixed_shards: int = 4,
        rank: int = 0,
        world_size: int = 1,
    ) -> TokenStream:
        """All pictures again and again; see `TokenStream`."""
        return TokenStream(self, seed, shuffle, mixed_shards, rank, world_size)

    def shard(self, number: int) -> _Shard:
        """A file's pictures, from memory where they are there."""
        if number not in self._kept:
            self._kept[number] = _Shard(read_tokens(self.paths[number]), self.columns)
            while len(self._kept) > KEPT_SHARDS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": OrderedDict()}


class TokenStream(torch.utils.data.IterableDataset[TokenSample]):
    """The pictures without end, epoch after epoch, for one rank; goes on exactly.

    The order follows from (seed, epoch) alone. Files are shuffled; the pictures of `mixed_shards`
    files that follow one another are shuffled together, and dealt to the ranks in turn; of a last
    group that does not go round all get as many. So each rank gets as many pictures an epoch.
    `state_dict` is two numbers; workers of a DataLoader are ranks of their own.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        seed: int,
        shuffle: bool,
        mixed_shards: int,
        rank: int,
        world_size: int,
    ) -> None:
        """Raises:
        RangeError: no such rank, or no shard to mix.
        """
        if not 0 <= rank < world_size:
            raise RangeError(f"rank {rank} of {world_size}; needed: 0 <= rank < world_size")
        if mixed_shards < 1:
            raise RangeError(f"mixed_shards is {mixed_shards}; it must be at least 1")
        self.dataset, self.seed, self.shuffle = dataset, seed, shuffle
        self.mixed_shards, self.rank, self.world_size = mixed_shards, rank, world_size
        self.epoch, self.given = 0, 0
        """Where the stream is: this rank's pictures of this epoch that it has given."""

    def __iter__(self) -> Iterator[TokenSample]:
        rank, world_size = self._share()
        if len(self.dataset) < world_size:
            raise RangeError(
                f"{len(self.dataset)} pictures for {world_size} ranks and workers; use fewer"
            )
        while True:
            yield from self._rest_of_epoch(rank, world_size)
            self.epoch, self.given = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Where the stream is."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there; seed, files, ranks and the rest must be the same."""
        self.epoch, self.given = state["epoch"], state["given"]

    def _share(self) -> tuple[int, int]:
        worker = torch.utils.data.get_worker_info()
        if worker is None:
            return self.rank, self.world_size
        return self.rank * worker.num_workers + worker.id, self.world_size * worker.num_workers

    def _rest_of_epoch(self, rank: int, world_size: int) -> Iterator[TokenSample]:
        passed, dealt = 0, 0
        share = len(self.dataset) // world_size
        for group in self._groups():
            sizes = [self.dataset.sizes[shard] for shard in group]
            # Dealt on from where the group before ended, so that all get as many but for the last.
            places = range((rank - dealt) % world_size, sum(sizes), world_size)
            dealt += sum(sizes)
            skipped = min(len(places), max(0, self.given - passed))
            passed += len(places)
            if skipped == len(places):
                continue
            left = places[skipped:]
            shards, rows = self._rows(group, sizes)[left.start : left.stop : left.step].T.tolist()
            for shard, row in zip(shards, rows, strict=True):
                if self.given == share:
                    return
                self.given += 1
                yield self.dataset.shard(shard).sample(row)

    def _groups(self) -> list[list[int]]:
        order = np.arange(len(self.dataset.paths))
        if self.shuffle:
            order = self._random(0).permutation(len(order))
        return [
            order[n : n + self.mixed_shards].tolist()
            for n in range(0, len(order), self.mixed_shards)
        ]

    def _rows(self, group: list[int], sizes: list[int]) -> np.ndarray:
        """(pictures, 2): shard and row, in the order in which they are dealt."""
        shards = np.repeat(group, sizes)
        rows = np.concatenate([np.arange(size) for size in sizes])
        both = np.stack([shards, rows], axis=1)
        return self._random(1 + group[0]).permutation(both) if self.shuffle else both

    def _random(self, use: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox([self.seed, self.epoch, use]))


class _Shard:
    """One file's ids, all at once."""

    def __init__(self, file: TokenFile, columns: Sequence[str]) -> None:
        self.keys = file.keys
        # Cut up in one call, which is faster than a slice for each picture.
        self.ids = torch.from_numpy(file.flat_ids()).split(np.diff(file.starts).tolist())
        self.heights, self.widths = file.sizes.T.tolist()
        self.columns = {name: file.column(name) for name in columns}

    def sample(self, row: int) -> TokenSample:
        ids = self.ids[row].view(self.heights[row], self.widths[row])
        extra = {name: values[row] for name, values in self.columns.items()}
        return TokenSample(self.keys[row], ids, extra)


def _author(metadata: TokenMetadata) -> str:
    return f"{metadata.model} ({metadata.hash[:12]})"
