"""Many pictures by one model, each by a seed of its own, so that work may stop and go on."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from semhitok.files import storage_error, write_file
from semhitok.images import to_pil
from semhitok.lm.assistant import Assistant
from semhitok.lm.drawing import Size
from semhitok.lm.sampling import Sampling


@dataclass(frozen=True)
class Wanted:
    """A picture to draw."""

    key: str
    """Decides, with the seed, on its random numbers."""
    prompt: str | None
    """None for an unconditional picture."""
    file: str
    """Its name in the set, with forward slashes."""


class Store(ABC):
    """Where drawn pictures go."""

    @abstractmethod
    def has(self, file: str) -> bool:
        """Whether the picture is there, and whole."""

    @abstractmethod
    def put(self, file: str, image: Image.Image) -> None:
        """Keep a picture."""

    @abstractmethod
    def get(self, file: str) -> Image.Image:
        """A picture that is there."""


class Memory(Store):
    """Pictures that nobody keeps."""

    def __init__(self) -> None:
        self._images: dict[str, Image.Image] = {}

    def has(self, file: str) -> bool:
        return file in self._images

    def put(self, file: str, image: Image.Image) -> None:
        self._images[file] = image

    def get(self, file: str) -> Image.Image:
        return self._images[file]


class Folder(Store):
    """PNG files below a folder; folders are made as they are needed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, file: str) -> bool:
        try:
            self.get(file)
        except (OSError, SyntaxError, ValueError):  # what Pillow says of broken files
            return False
        return True

    def put(self, file: str, image: Image.Image) -> None:
        """Raises:
        StorageError: the folder cannot be written.
        """
        path = self.root / file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(path, error) from error
        write_file(path, lambda temporary: image.save(temporary, "PNG"))

    def get(self, file: str) -> Image.Image:
        with Image.open(self.root / file) as image:
            return image.convert("RGB")


def draw_missing(
    assistant: Assistant,
    wanted: Sequence[Wanted],
    store: Store,
    *,
    sampling: Sampling,
    seed: int,
    size: Size | None = None,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda done: None,
) -> int:
    """Draw what the store does not have yet; how many those were.

    A picture follows from (seed, key) and the sampling, whatever else is drawn with it.

    Raises:
        RangeError: a side that no marker names.
        StorageError: a picture cannot be written.
    """
    missing = [one for one in wanted if not store.has(one.file)]
    there = len(wanted) - len(missing)
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        grids = assistant.draw(
            [one.prompt for one in batch],
            size=size,
            sampling=sampling,
            seed=[seed_of(seed, one.key) for one in batch],
        )
        for one, grid in zip(batch, grids, strict=True):
            store.put(one.file, to_pil(assistant.paint(grid)))
        advance(there + start + len(batch))
    return len(missing)


def seed_of(seed: int, key: str) -> int:
    """A seed of a picture's own, in [0, 2^63)."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
