"""What the usual picture codecs buy for as many bytes: JPEG, WebP and AVIF through Pillow."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from semhitok.errors import RangeError
from semhitok.evaluate.metrics import psnr
from semhitok.images import to_tensor


@dataclass(frozen=True)
class Codec:
    """A lossy format and the range of its quality setting."""

    name: str
    """Pillow's name of the format."""
    lowest: int
    highest: int
    options: dict[str, Any] = field(default_factory=dict)
    """What `Image.save` gets beside the quality."""

    def encode(self, image: Image.Image, quality: int) -> bytes:
        """The whole file.

        Raises:
            RangeError: quality is outside [lowest, highest].
        """
        if not self.lowest <= quality <= self.highest:
            raise RangeError(
                f"{self.name} quality is {quality}; allowed: {self.lowest} to {self.highest}"
            )
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, self.name, quality=quality, **self.options)
        return buffer.getvalue()

    def decode(self, data: bytes) -> Image.Image:
        """The picture in RGB."""
        with Image.open(io.BytesIO(data), formats=[self.name]) as image:
            return image.convert("RGB")


# JPEG without `optimize` carries general Huffman tables, which double the smallest files.
JPEG = Codec("JPEG", lowest=1, highest=100, options={"optimize": True})
WEBP = Codec("WEBP", lowest=0, highest=100)
AVIF = Codec("AVIF", lowest=0, highest=100)
CODECS = (JPEG, WEBP, AVIF)


def at_smallest(codec: Codec, image: Image.Image) -> bytes:
    """The file at the lowest quality: less than this the codec cannot do."""
    return codec.encode(image, codec.lowest)


def at_bytes(codec: Codec, image: Image.Image, budget: int) -> tuple[bytes, int]:
    """The file of the lowest quality that uses at least `budget` bytes, and that quality.

    So the codec never has fewer bytes than the tokenizer that it is compared with. Where even the
    lowest quality needs more, that is the file; where no quality uses so many, the highest one.
    Sizes are taken to grow with quality, as they do but for a few bytes.
    """
    low, high = codec.lowest, codec.highest
    while low < high:
        middle = (low + high) // 2
        if len(codec.encode(image, middle)) >= budget:
            high = middle
        else:
            low = middle + 1
    return codec.encode(image, low), low


def codec_psnr(codec: Codec, image: Image.Image, data: bytes) -> float:
    """PSNR in dB of the file `data` against the picture that it was made from."""
    original, decoded = to_tensor(image), to_tensor(codec.decode(data))
    return float(psnr(original[None], decoded[None]))
