"""Training batches whose content follows from (seed, step) alone."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from semhitok.data.sources import ImageSource
from semhitok.errors import DataError, RecipeError, SemHiTokError
from semhitok.images import resize_window, to_array

_log = logging.getLogger(__name__)

_ORDER, _SAMPLE, _INSTEAD = 0, 1, 2  # keep the uses of one seed apart
_DRAWS = 64


@dataclass(frozen=True)
class Batch:
    """Crops in [0, 1], and the key of the picture that each was cut from."""

    images: Float[Tensor, "b 3 crop crop"]
    keys: list[str]


class DecodedPictures:
    """The pictures of a source with their short side at most `short_side`, kept in memory.

    What is kept does not change what comes out; it is kept until `cache_bytes` are full.
    """

    broken: dict[str, str]
    """Key of each picture that could not be read, and why."""

    def __init__(self, source: ImageSource, short_side: int, cache_bytes: int = 6 << 30) -> None:
        """Args:
            short_side: limit in pixels; smaller pictures stay as they are.
            cache_bytes: limit of what is kept.

        Raises:
            DataError: an empty source.
        """
        if len(source) == 0:
            raise DataError(f"{source.name}: no pictures to train on")
        self.source, self.short_side, self.cache_bytes = source, short_side, cache_bytes
        self.broken = {}
        self._broken_indices: set[int] = set()
        self._cache: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """Pixels of a picture; None where it cannot be read."""
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        if index in self._broken_indices:
            return None
        try:
            image = self.source.read(index)
        except SemHiTokError as error:
            self._note_broken(index, str(error))
            return None
        pixels = to_array(_limit_short_side(image, self.short_side))
        with self._lock:
            if index not in self._cache and self._cached_bytes + pixels.nbytes <= self.cache_bytes:
                self._cache[index] = pixels
                self._cached_bytes += pixels.nbytes
        return pixels

    def _note_broken(self, index: int, reason: str) -> None:
        with self._lock:
            if index in self._broken_indices:
                return
            self._broken_indices.add(index)
            self.broken[self.source.key(index)] = reason
        _log.warning("left out of training: %s", reason)


class TrainBatches:
    """Random crops of a source, every picture once an epoch.

    Sample `n = step * batch_size + row` is the picture at place `n` of the epochs' permutations,
    cut by random numbers that depend on (seed, n) alone; so a step can be had without the steps
    before it, and ranks need not talk. A picture is resized, in one go and only where the crop
    lies, so that its short side is a random integer from `smallest` to the pictures' limit; never
    above the picture's own, never below `crop`.

    A picture that cannot be read is replaced by another drawn at random; so is one smaller than
    `crop`, unless `enlarge` says to make it as large.
    """

    def __init__(
        self,
        pictures: DecodedPictures,
        *,
        crop: int,
        smallest: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        flip: bool = True,
        enlarge: bool = False,
        threads: int = 2,
    ) -> None:
        """Args:
            crop: side of the square crops, in pixels.
            smallest: least short side, in pixels, before the crop.
            batch_size: crops in one step of all ranks together.
            rank: gets rows rank, rank + world_size, ... of each step.
            flip: mirror half of the crops.
            enlarge: use pictures smaller than the crop, enlarged, rather than pass them over.
            threads: workers that prepare batches ahead in `iterate`.

        Raises:
            RecipeError: numbers that do not go together.
        """
        scale = (smallest, pictures.short_side)
        _check(crop, scale, batch_size, seed, rank, world_size, threads)
        self.pictures, self.crop, self.scale, self.batch_size = pictures, crop, scale, batch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.flip, self.enlarge, self.threads = flip, enlarge, threads
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def batch(self, step: int) -> Batch:
        """This rank's rows of step `step`.

        Raises:
            DataError: not one picture of the source can be read.
        """
        first = step * self.batch_size
        numbers = range(first + self.rank, first + self.batch_size, self.world_size)
        pixels = np.empty((len(numbers), self.crop, self.crop, 3), np.uint8)
        keys = []
        for row, number in enumerate(numbers):
            index, picture = self._picture(number)
            pixels[row] = self._cut(picture, number)
            keys.append(self.pictures.source.key(index))
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(255)
        return Batch(images, keys)

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Steps `start` to `stop - 1`, the next ones being prepared by threads meanwhile."""
        steps = iter(range(start, stop))
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="batches")
        try:
            first = islice(steps, min(self.threads + 1, 4))
            ahead = deque(pool.submit(self.batch, step) for step in first)
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(pool.submit(self.batch, step) for step in islice(steps, 1))
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _picture(self, number: int) -> tuple[int, UInt8[np.ndarray, "h w 3"]]:
        """Index and pixels of the picture at place `number`, or of one drawn in its stead."""
        epoch, place = divmod(number, len(self.pictures))
        order = self._order(epoch)
        # Drawn at random and not the next in order: where many are passed over, that one would
        # come again and again. In the end all are tried, so that a usable one is found.
        random = np.random.Generator(np.random.Philox([self.seed, _INSTEAD, number]))
        instead = random.integers(len(order), size=_DRAWS)
        for other in chain([place], instead, range(len(order))):
            index = int(order[other])
            picture = self.pictures.load(index)
            if picture is not None and (self.enlarge or min(picture.shape[:2]) >= self.crop):
                return index, picture
        raise self._nothing_to_use(len(order))

    def _nothing_to_use(self, count: int) -> DataError:
        where, broken = self.pictures.source.name, self.pictures.broken
        if len(broken) < count:
            return DataError(
                f"{where}: all of {count - len(broken)} readable pictures are smaller than the "
                f"crop of {self.crop} px; lower phases.crop, or set phases.enlarge"
            )
        key, reason = next(iter(broken.items()))
        return DataError(f"{where}: not one of {count} pictures can be read; {key}: {reason}")

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._orders:
                random = np.random.Generator(np.random.Philox([self.seed, _ORDER, epoch]))
                for old in sorted(self._orders)[:-1]:  # two: a batch may end one and begin the next
                    del self._orders[old]
                self._orders[epoch] = random.permutation(len(self.pictures))
            return self._orders[epoch]

    def _cut(self, picture: UInt8[np.ndarray, "h w 3"], number: int) -> UInt8[np.ndarray, "c c 3"]:
        """Sample `number`'s own crop of its picture."""
        random = np.random.Generator(np.random.Philox([self.seed, _SAMPLE, number]))
        height, width = picture.shape[:2]
        own = min(height, width)
        low, high = (min(limit, own) for limit in self.scale)
        short = max(int(random.integers(low, high, endpoint=True)), self.crop)
        size = (round(width * short / own), round(height * short / own))
        left, top = (int(random.integers(side - self.crop, endpoint=True)) for side in size)
        mirrored = self.flip and random.random() < 0.5
        if short == own:
            cut = picture[top : top + self.crop, left : left + self.crop]
        else:
            cut = _resized_crop(picture, size, (left, top), self.crop)
        return cut[:, ::-1] if mirrored else cut


def _resized_crop(
    picture: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], corner: tuple[int, int], crop: int
) -> UInt8[np.ndarray, "crop crop 3"]:
    """The crop at `corner` of the picture resized to `size` (both left first, then top)."""
    image = Image.fromarray(picture)
    return np.asarray(resize_window(image, size, (*corner, crop, crop)))


def _limit_short_side(image: Image.Image, limit: int) -> Image.Image:
    own = min(image.size)
    if own <= limit:
        return image
    width, height = (max(limit, round(side * limit / own)) for side in image.size)
    return resize_window(image, (width, height), (0, 0, width, height))


def _check(
    crop: int,
    scale: tuple[int, int],
    batch_size: int,
    seed: int,
    rank: int,
    world_size: int,
    threads: int,
) -> None:
    if crop < 1 or not crop <= scale[0] <= scale[1]:
        raise RecipeError(
            f"crop {crop} and scale {scale[0]} to {scale[1]}; needed: 1 <= crop <= low <= high"
        )
    if world_size < 1 or not 0 <= rank < world_size:
        raise RecipeError(f"rank {rank} of {world_size}; needed: 0 <= rank < world_size")
    if batch_size < 1 or batch_size % world_size:
        raise RecipeError(
            f"batch_size {batch_size} must be a positive multiple of the {world_size} ranks"
        )
    if threads < 1:
        raise RecipeError(f"threads is {threads}; at least 1 is needed")
    if seed < 0:
        raise RecipeError(f"seed is {seed}; it must not be negative")
