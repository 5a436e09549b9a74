"""What the report can grade: our tokenizers, picture codecs, and anything else in an `Adapter`."""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from semhitok.errors import NotFoundError
from semhitok.evaluate.codecs import Codec, at_bytes
from semhitok.images import to_pil, to_tensor
from semhitok.model import SemHiTok
from semhitok.model.tokenizer import DecoderName


class Adapter(ABC):
    """A tokenizer or codec as the report sees it.

    Subclass it for another one: name it, say what sides its pictures need, and how they become
    something and pictures again.
    """

    name: str
    multiple: int = 1
    """Both sides of a picture must be multiples of this, in pixels."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "b 3 height width"]) -> Any:
        """Whatever stands for the pictures; they are RGB in [0, 1], on the CPU."""

    @abstractmethod
    def decode(self, encoded: Any) -> Float[Tensor, "b 3 height width"]:
        """The pictures back, in [0, 1]."""

    @abstractmethod
    def bits(self, encoded: Any) -> list[float]:
        """Bits of each picture as they would be stored, without entropy coding of our own."""

    def describe(self) -> dict[str, Any]:
        """For the protocol: what decides the result beside the name, such as a hash."""
        return {}

    def codes(self, encoded: Any) -> tuple[Int64[Tensor, "b h w"], Int64[Tensor, "b h w"]] | None:
        """Semantic and pixel codes, whose use is then reported; None where there are none.

        One codebook counts as m pixel codes under a single semantic one.
        """
        return None

    def codebook_sizes(self) -> tuple[int, int]:
        """K and m; asked only where `codes` gives some."""
        raise NotImplementedError


class TokenizerAdapter(Adapter):
    """One of ours, by one of its decoders."""

    def __init__(self, model: SemHiTok, decoder: DecoderName | None = None) -> None:
        """Args:
        decoder: as `SemHiTok.decode` takes it.
        """
        self.model, self.decoder = model, decoder
        self.name = model.config.name
        self.multiple = model.patch_size

    def encode(self, images: Tensor) -> Int64[Tensor, "b h w"]:
        return self.model.encode(images)

    def decode(self, encoded: Tensor) -> Tensor:
        return self.model.decode(encoded, decoder=self.decoder).cpu()

    def bits(self, encoded: Tensor) -> list[float]:
        """log2(K * m) for each patch."""
        return [encoded[0].numel() * math.log2(self.model.vocab_size)] * len(encoded)

    def describe(self) -> dict[str, Any]:
        return {
            "hash": self.model.hash,
            "decoder": self.decoder or "its default",
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "device": describe_device(self.model.device),
        }

    def codes(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.split(encoded)

    def codebook_sizes(self) -> tuple[int, int]:
        return self.model.config.semantic.num_codes, self.model.config.pixel.num_codes


class CodecAdapter(Adapter):
    """JPEG, WebP or AVIF at the lowest quality that uses at least some bytes a picture."""

    def __init__(self, codec: Codec, bytes_per_pixel: float) -> None:
        self.codec, self.bytes_per_pixel = codec, bytes_per_pixel
        self.name = codec.name.lower()

    def encode(self, images: Tensor) -> list[bytes]:
        budget = math.ceil(self.bytes_per_pixel * images.shape[-2] * images.shape[-1])
        return [at_bytes(self.codec, to_pil(image), budget)[0] for image in images]

    def decode(self, encoded: list[bytes]) -> Tensor:
        return torch.stack([to_tensor(self.codec.decode(data)) for data in encoded])

    def bits(self, encoded: list[bytes]) -> list[float]:
        """Of the whole file."""
        return [8.0 * len(data) for data in encoded]

    def describe(self) -> dict[str, Any]:
        return {
            "quality": "lowest that uses at least the bytes asked for, else the lowest there is",
            "bytes_per_pixel": self.bytes_per_pixel,
            "options": self.codec.options,
        }


def load_adapter(name: str) -> Adapter:
    """The adapter that `package.module:name` calls: a class or function without arguments.

    Raises:
        NotFoundError: there is none.
    """
    module_name, _, attribute = name.partition(":")
    try:
        made = getattr(importlib.import_module(module_name), attribute)()
    except (ImportError, AttributeError, ValueError) as error:
        raise NotFoundError(f"there is no adapter {name}: {error}") from error
    if not isinstance(made, Adapter):
        raise NotFoundError(
            f"{name} gives {type(made).__name__}; a semhitok.evaluate.adapters.Adapter is needed"
        )
    return made


def describe_device(device: torch.device) -> str:
    """Its kind and, of a GPU, its name."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type
