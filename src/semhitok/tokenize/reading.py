"""Pictures read and cut by workers while the model encodes those before them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from semhitok.data.columns import Columns
from semhitok.data.sources import ImageSource
from semhitok.data.tokens import Failure, TokenRecord
from semhitok.errors import SemHiTokError, StorageError
from semhitok.images import ImagePolicy, to_array
from semhitok.model import SemHiTok

CHUNK = 32
"""Pictures that a worker reads at a time."""

REQUESTS = 16
"""Pictures that a worker asks of a store at once."""

WAITING_BATCHES = 4
"""Batches' worth of pictures of several sizes that wait until a batch of one size is full."""


@dataclass(frozen=True)
class Reading:
    """One picture as it came, or why it did not."""

    index: int
    key: str
    pixels: UInt8[np.ndarray, "h w 3"] | None
    reason: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    """What its data set says of it."""


class _Pictures(torch.utils.data.Dataset["list[Reading] | StorageError"]):
    """Chunks of a source's pictures; what a worker process holds."""

    def __init__(
        self,
        source: ImageSource,
        policy: ImagePolicy,
        columns: Columns,
        chunks: Sequence[Sequence[int]],
    ) -> None:
        self.source, self.policy, self.columns, self.chunks = source, policy, columns, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> list[Reading] | StorageError:
        """A chunk; where the store fails, that: no picture is to blame for it."""
        try:
            if not self.source.remote:
                return [self._read(index) for index in self.chunks[number]]
            with ThreadPoolExecutor(REQUESTS) as pool:
                return list(pool.map(self._read, self.chunks[number]))
        except StorageError as error:
            return error

    def _read(self, index: int) -> Reading:
        key = self.source.key(index)
        try:
            pixels = to_array(self.policy.read(self.source.read_bytes(index), key))
            return Reading(index, key, pixels, extra=self.columns.fit(self.source.meta(index)))
        except StorageError:
            raise
        except SemHiTokError as error:
            reason = " ".join(str(error).split()).removeprefix(f"{key}: ")
            return Reading(index, key, None, reason)


def read_pictures(
    source: ImageSource,
    policy: ImagePolicy,
    columns: Columns,
    parts: Iterable[Sequence[int]],
    workers: int,
) -> Iterator[Reading]:
    """The pictures of each of `parts`, in that order; `workers` processes read ahead, 0 reads here.

    Raises:
        StorageError: the store of the pictures fails.
    """
    # Parts are ranges, and so are their slices: of no picture but these is anything held.
    chunks = [part[n : n + CHUNK] for part in parts for n in range(0, len(part), CHUNK)]
    loader: Iterable[list[Reading] | StorageError] = torch.utils.data.DataLoader(
        _Pictures(source, policy, columns, chunks),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=4 if workers else None,
        # A store's connections do not live through a fork.
        multiprocessing_context="spawn" if workers and source.remote else None,
    )
    for chunk in loader:
        if isinstance(chunk, StorageError):
            raise chunk
        yield from chunk


def _as_it_is(chunk: list[Reading] | StorageError) -> list[Reading] | StorageError:
    return chunk


def by_size(
    readings: Iterable[Reading], batch_size: int, failures: dict[int, Failure]
) -> Iterator[list[Reading]]:
    """Batches of one size; what could not be read goes to `failures`, by its index."""
    waiting: dict[tuple[int, ...], list[Reading]] = {}
    for reading in readings:
        if reading.pixels is None:
            failures[reading.index] = Failure(reading.key, reading.reason)
            continue
        size = reading.pixels.shape
        waiting.setdefault(size, []).append(reading)
        if len(waiting[size]) == batch_size:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) > WAITING_BATCHES * batch_size:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
    yield from waiting.values()


@torch.inference_mode()
def encode(model: SemHiTok, batch: Sequence[Reading]) -> dict[int, TokenRecord]:
    """Records of a batch of one size, by their pictures' indices."""
    pixels = torch.from_numpy(np.stack([r.pixels for r in batch if r.pixels is not None]))
    # As bytes to the device, a quarter of what floats take; then what `to_tensor` does.
    images = pixels.to(model.device).permute(0, 3, 1, 2).contiguous().float() / 255
    ids = model.encode(images).cpu()
    return {
        reading.index: TokenRecord(reading.key, *model.split(grid), reading.extra)
        for reading, grid in zip(batch, ids, strict=True)
    }
