"""A contrastive teacher's text tower, and its vision tower's head: words and pictures compared.

Asked when zero-shot accuracy is measured; no tokenizer needs it. Beside `trunk.py` and
`trunk_source.py` the one place that knows classes of `transformers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semhitok.errors import FormatError, NotFoundError, RangeError
from semhitok.model.config import TeacherConfig
from semhitok.model.teacher import load_named
from semhitok.model.trunk import load_library_model, one_line, quiet_library, refuse_missing
from semhitok.model.trunk_source import find_file, read_model_config

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")

BATCH_SIZE = 256
"""Texts at a time."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How the models of one `model_type` embed."""

    model: str
    """Class in `transformers`, both towers included."""
    padding: bool | str
    """Of the texts, as the model was trained; True pads to the longest."""
    pooling: str
    """How patch features become the picture's embedding, for a protocol."""


_ATTENTION = (
    "the vision tower's own attention-pooling head over the patches, as in the model itself"
)
_KINDS = {
    "clip_vision_model": _Kind(
        model="CLIPModel",
        padding=True,
        pooling="mean of the patches, then the vision tower's post-layernorm and projection; the "
        "model itself puts its class token there, which patches do not have",
    ),
    "siglip_vision_model": _Kind(model="SiglipModel", padding="max_length", pooling=_ATTENTION),
    "siglip2_vision_model": _Kind(model="Siglip2Model", padding="max_length", pooling=_ATTENTION),
}


class TextTower(nn.Module):
    """Texts, and the patch features of a teacher, as unit vectors of one space."""

    def __init__(self, kind: _Kind, network: Any, tokenizer: Any) -> None:
        """Take over a model that `load` read; its vision trunk is thrown away."""
        super().__init__()
        self.pooling = kind.pooling
        self._kind, self._tokenizer = kind, tokenizer
        self.max_tokens: int = network.config.text_config.max_position_embeddings
        del network.vision_model.encoder, network.vision_model.embeddings
        self.network = network
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, config: TeacherConfig) -> TextTower:
        """The text tower and head that the teacher's source has, in float32.

        Raises:
            RangeError, NotFoundError: as `check_text_tower`.
            FormatError: weights or tokenizer are missing or unreadable, or the vision tower has
                other weights than the config names.
        """
        check_text_tower(config)
        load_named(config)  # refuses a head that was trained on other features than the teacher's
        import transformers

        kind = _KINDS[config.architecture["model_type"]]
        network, missing = load_library_model(getattr(transformers, kind.model), config)
        refuse_missing(missing, config, "its text tower and head need")
        return cls(kind, network, _load_tokenizer(config))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n e"]:
        """Unit vectors of texts, cut to `max_tokens`."""
        rows = [
            self._embed_texts(list(texts[start : start + BATCH_SIZE]))
            for start in range(0, len(texts), BATCH_SIZE)
        ]
        return F.normalize(torch.cat(rows), dim=-1)

    @torch.no_grad()
    def embed_features(self, features: Float[Tensor, "b h w d"]) -> Float[Tensor, "b e"]:
        """Unit vectors of pictures, from the features of the teacher's layer -1."""
        vision, patches = self.network.vision_model, features.float().flatten(1, 2)
        if hasattr(vision, "head"):
            pooled = vision.head(patches)
        else:
            pooled = self.network.visual_projection(vision.post_layernorm(patches.mean(dim=1)))
        return F.normalize(pooled, dim=-1)

    def _embed_texts(self, texts: list[str]) -> Float[Tensor, "n e"]:
        # Without a mask: SigLIP was trained without one, and in CLIP no token sees those after it.
        tokens = self._tokenizer(
            texts,
            padding=self._kind.padding,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )["input_ids"]
        parameter = next(self.network.parameters())
        pooled: Tensor = self.network.text_model(tokens.to(parameter.device)).pooler_output
        if hasattr(self.network, "text_projection"):
            pooled = self.network.text_projection(pooled)
        return pooled


def check_text_tower(config: TeacherConfig) -> None:
    """Refuse a teacher without a text tower, before its weights are read.

    Raises:
        RangeError: its family has none, or it reads other layers than its head takes.
        NotFoundError: there is no such folder or model, or it is a vision tower alone.
    """
    family = config.architecture["model_type"]
    if family not in _KINDS:
        allowed = ", ".join(sorted(name.removesuffix("_vision_model") for name in _KINDS))
        raise RangeError(
            f"teacher {config.source} is a {family}, which has no text tower; zero-shot accuracy "
            f"needs a teacher of: {allowed}"
        )
    if config.layers != (-1,):
        raise RangeError(
            f"teacher {config.source} is read at layers {list(config.layers)}; its head takes "
            "[-1] alone: measure zero-shot accuracy of a tokenizer with that"
        )
    raw, _ = read_model_config(config.source, config.revision)
    if "text_config" not in raw:
        raise NotFoundError(
            f"teacher {config.source} is a vision tower alone; zero-shot accuracy needs the whole "
            "model, its text tower included"
        )


def _load_tokenizer(config: TeacherConfig) -> Any:
    from transformers import AutoTokenizer

    # Asked for a tokenizer that is not there, the library makes one without words.
    if not any(find_file(config.source, name, config.revision) for name in TOKENIZER_FILES):
        raise FormatError(
            f"teacher {config.source} has no tokenizer, none of {', '.join(TOKENIZER_FILES)}; "
            "get a whole copy of it"
        )
    with quiet_library():
        try:
            return AutoTokenizer.from_pretrained(config.source, revision=config.revision or "main")
        except Exception as error:  # whatever the library and its own libraries raise
            raise FormatError(
                f"the tokenizer of teacher {config.source} cannot be loaded: {one_line(error)}"
            ) from error
