"""Models by the name that a user gives."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from semhitok import __version__, hub
from semhitok.data.tokens import TokenMetadata
from semhitok.errors import FormatError, NotFoundError, RangeError
from semhitok.evaluate.adapters import Adapter, CodecAdapter, TokenizerAdapter, load_adapter
from semhitok.evaluate.codecs import CODECS
from semhitok.images import ImagePolicy
from semhitok.model import SemHiTok
from semhitok.model.config import ALL_PARTS, Part
from semhitok.model.tokenizer import DecoderName, tensors_hash

if TYPE_CHECKING:
    from semhitok.lm.assistant import Assistant


def pick_device(name: str | None) -> torch.device:
    """The named device, or a GPU where there is one.

    Raises:
        RangeError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RangeError(
            f"device {name!r} is not there; allowed: cpu, and cuda, cuda:N or mps where torch "
            "finds them"
        ) from error
    if device.type == "meta":
        raise RangeError("device 'meta' computes nothing; allowed: cpu, cuda, cuda:N, mps")
    return device


def load_model(name: str, device: torch.device, parts: Sequence[Part] = ALL_PARTS) -> SemHiTok:
    """The model on its device."""
    return hub.load(name, parts=parts).to(device)


def load_assistant(name: str, tokenizer: str | None, device: torch.device) -> Assistant:
    """The multimodal model on its device, without the progress bars of `transformers`.

    Raises:
        NotFoundError, FormatError: there is no such model or tokenizer, or files are damaged.
    """
    from semhitok.lm.assistant import Assistant
    from semhitok.lm.language import hide_bars

    hide_bars()
    return Assistant.from_pretrained(name, tokenizer=tokenizer, device=device)


@dataclass(frozen=True)
class Adapters:
    """What is graded, in order, and the size at which it is by default."""

    items: list[Adapter]
    image_size: int | None
    """The first model's own, in pixels; None where the first one has none."""


def find_adapters(
    names: Sequence[str], device: torch.device, decoder: DecoderName | None
) -> Adapters:
    """Our models, codecs at the bytes of the first model, and adapters `package.module:name`.

    Raises:
        NotFoundError: there is no such model, adapter or decoder.
        RangeError: a codec without a model that tells how many bytes it gets.
    """
    codecs = {codec.name.lower(): codec for codec in CODECS}
    items: list[Adapter | None] = []
    size, rate = None, None
    for name in names:
        if name in codecs:
            items.append(None)  # the bytes that it gets are known once all models are
        elif ":" in name and not Path(name).exists():
            items.append(load_adapter(name))
        else:
            config = hub.read_config(hub.resolve(name))
            if decoder == "enhance" and config.pixel.enhance is None:
                raise NotFoundError(f"{config.name} has no decoder 'enhance'; it has: 'pixel'")
            items.append(TokenizerAdapter(load_model(name, device), decoder))
            size = size or config.image_size
            rate = rate or math.log2(config.vocab_size) / 8 / config.patch_size**2
    if None in items and rate is None:
        raise RangeError("a codec is given, but no model whose bytes it should use; name one")
    filled = [
        item or CodecAdapter(codecs[name], rate or 0.0)
        for name, item in zip(names, items, strict=True)
    ]
    return Adapters(filled, size)


def file_hash(folder: Path) -> str:
    """A model's hash from its files alone: no network is built for it.

    Raises:
        FormatError: files that are missing or damaged.
    """
    config, path = hub.read_config(folder), folder / hub.WEIGHTS
    if not path.is_file():
        raise FormatError(f"{folder} has no {hub.WEIGHTS}; get a whole copy of the model")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            stored = (file.metadata() or {}).get("hash")
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{path} is damaged ({error}); get a whole copy of it") from error
    digest = tensors_hash(tensors, json.dumps(config.to_dict(), sort_keys=True).encode())
    if stored not in (None, digest):
        raise FormatError(
            f"{path} does not have the hash that it was saved with: config or weights were "
            "changed; get a whole copy of both"
        )
    return digest


def token_metadata(model: str, policy: ImagePolicy, dtype: str = "float32") -> TokenMetadata:
    """What a token file says of the model, by its name, and of how pictures were cut.

    Args:
        dtype: of the networks' products.

    Raises:
        NotFoundError, FormatError: there is no such model, or its files are damaged.
    """
    folder = hub.resolve(model)
    config = hub.read_config(folder)
    return TokenMetadata(
        # A folder's path means nothing elsewhere; a Hub id does.
        model=config.name if Path(model).is_dir() else model,
        hash=file_hash(folder),
        num_semantic=config.semantic.num_codes,
        num_pixel=config.pixel.num_codes,
        patch_size=config.patch_size,
        policy=policy.describe(),
        dtype=dtype,
        version=__version__,
    )
