"""Pictures of any kind as grids of the tokenizer's ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from semhitok.errors import RangeError, SemHiTokError, ShapeError
from semhitok.images import ImagePolicy, read_image, resize_window, to_tensor
from semhitok.images import Picture as Source
from semhitok.lm.vocabulary import Vocabulary
from semhitok.model.tokenizer import SemHiTok

Picture = Source | Tensor
"""A path, a file's bytes, a Pillow image, an array, RGB in [0, 1] (3, H, W), or a grid of ids."""
Size = int | tuple[int, int] | None
"""Pixels of the short side, (height, width) in patches, or None for the tokenizer's own."""
BATCH = 32


class PictureReader:
    """Reads, resizes and encodes pictures; grids and tensors it takes as they are."""

    def __init__(self, tokenizer: SemHiTok, vocabulary: Vocabulary, size: Size) -> None:
        """Raises:
        RangeError: a size that is impossible.
        """
        self.tokenizer, self.vocabulary, self.size = tokenizer, vocabulary, size
        if isinstance(size, tuple):
            vocabulary.check_side(*size)
            self._policy = None
        else:
            side = tokenizer.config.image_size if size is None else size
            self._policy = ImagePolicy(side, "square", tokenizer.patch_size)
            vocabulary.check_side(*[side // tokenizer.patch_size] * 2)

    @property
    def patches(self) -> tuple[int, int]:
        """Height and width, in patches, of what files and images become."""
        if isinstance(self.size, tuple):
            return self.size
        pixels = self.tokenizer.config.image_size if self.size is None else self.size
        return (pixels // self.tokenizer.patch_size,) * 2

    def grids(self, pictures: Sequence[Picture]) -> list[Int64[Tensor, "h w"]]:
        """A grid for each picture.

        Raises:
            ImageError, NotFoundError: one that cannot be read.
            ShapeError, RangeError: one of a size that has no patches, or whose sides no marker
                names.
            IdError: a grid with an id outside [0, K * m).
        """
        found = self.try_grids(pictures)
        for grid in found:
            if isinstance(grid, SemHiTokError):
                raise grid
        return [grid for grid in found if isinstance(grid, Tensor)]

    def try_grids(self, pictures: Sequence[Picture]) -> list[Int64[Tensor, "h w"] | SemHiTokError]:
        """As `grids`, with the error in place of a picture that cannot be used.

        Pictures of one size are encoded together, which changes no id; one that comes several
        times, as the same object, is encoded once.
        """
        found: dict[int, Tensor | SemHiTokError] = {}
        waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
        for picture in pictures:
            name = id(picture)
            if name in found:
                continue
            try:
                ready = self._ready(picture)
            except SemHiTokError as error:
                found[name] = error
                continue
            found[name] = ready
            if ready.ndim == 3:
                alike = waiting.setdefault(tuple(ready.shape), [])
                alike.append((name, ready))
        for alike in waiting.values():
            for start in range(0, len(alike), BATCH):
                names, images = zip(*alike[start : start + BATCH], strict=True)
                grids = self.tokenizer.encode(torch.stack(images)).cpu()
                found.update(zip(names, grids, strict=True))
        return [found[id(picture)] for picture in pictures]

    def _ready(self, picture: Picture) -> Tensor:
        """A grid that has been checked, or an image that `encode` takes."""
        if not isinstance(picture, Tensor):
            return self.image(picture)
        if picture.ndim == 2:
            self.vocabulary.check_side(*picture.shape)
            self.vocabulary.to_tokens(picture)
            return picture.cpu()
        if picture.ndim != 3 or picture.shape[0] != 3:
            raise ShapeError(
                f"picture has shape {tuple(picture.shape)}; a grid of ids is (h, w), an image "
                "(3, H, W)"
            )
        self.vocabulary.check_side(*self.tokenizer.grid(*picture.shape[1:]))
        if picture.dtype != torch.float32 or not (0 <= picture.min() and picture.max() <= 1):
            raise RangeError(
                f"picture is {picture.dtype}, {float(picture.min()):g} to "
                f"{float(picture.max()):g}; float32 in [0, 1] is needed"
            )
        return picture

    def describe(self) -> str:
        """How files and images come to their size, in one line for protocols."""
        if self._policy is not None:
            return self._policy.describe()
        height, width = (side * self.tokenizer.patch_size for side in self.patches)
        return f"covers {height}x{width} (height x width, Pillow bicubic), centre crop"

    def image(self, source: Source) -> Float[Tensor, "3 height width"]:
        """A file or an image as it is encoded.

        Raises:
            ImageError, NotFoundError: it cannot be read.
        """
        image = read_image(source)
        if self._policy is not None:
            return to_tensor(self._policy.apply(image))
        assert isinstance(self.size, tuple)
        patch = self.tokenizer.patch_size
        return to_tensor(_cover(image, self.size[0] * patch, self.size[1] * patch))


def _cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle of the picture once it is just large enough to cover height x width pixels."""
    scale = max(height / image.height, width / image.width)
    whole = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    return resize_window(image, whole, (left, top, width, height))
