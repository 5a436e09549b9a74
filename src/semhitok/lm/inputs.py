"""How a language model reads an image id: adapters from ids to embeddings.

All have one interface, `adapter(ids (n,), codes) -> (n, width)`. The code vectors are looked up by
id, never laid out as a table of K * m, and belong to the tokenizer: they get no gradient and are
not saved with the language model.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semhitok.errors import NotFoundError
from semhitok.model.tokenizer import SemHiTok

InputName = Literal["dual", "semantic", "pixel", "table"]


class CodeVectors:
    """The frozen tokenizer's code vectors. No module: what holds it neither saves nor trains it."""

    def __init__(self) -> None:
        self.tokenizer: SemHiTok | None = None

    def __call__(
        self, ids: Int64[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n semantic"], Float[Tensor, "n pixel"]]:
        """Semantic and pixel code vectors, on the tokenizer's device, at the decoders' scale.

        Raises:
            NotFoundError: no tokenizer was attached.
            IdError: an id outside [0, K * m).
        """
        if self.tokenizer is None:
            raise NotFoundError(
                "the model has no tokenizer to look code vectors up in; call attach(tokenizer)"
            )
        with torch.no_grad():
            joined = self.tokenizer.decoder_input(ids[None, None])[0, 0]
        semantic = self.tokenizer.config.semantic.code_dim
        return joined[:, :semantic], joined[:, semantic:]


class DualAdapter(nn.Module):
    """The paper's Dual-MLP adapter: both vectors projected apart, then joined.

    Reference: Chen et al., SemHiTok, arXiv:2503.06764.
    """

    def __init__(self, semantic_dim: int, pixel_dim: int, width: int) -> None:
        super().__init__()
        self.semantic = _mlp(semantic_dim, width // 2)
        self.pixel = _mlp(pixel_dim, width - width // 2)

    def forward(self, ids: Int64[Tensor, " n"], codes: CodeVectors) -> Float[Tensor, "n width"]:
        semantic, pixel = codes(ids)
        return torch.cat([_project(self.semantic, semantic), _project(self.pixel, pixel)], dim=-1)


class SemanticAdapter(nn.Module):
    """Semantic vectors alone."""

    def __init__(self, semantic_dim: int, width: int) -> None:
        super().__init__()
        self.semantic = _mlp(semantic_dim, width)

    def forward(self, ids: Int64[Tensor, " n"], codes: CodeVectors) -> Float[Tensor, "n width"]:
        return _project(self.semantic, codes(ids)[0])


class PixelAdapter(nn.Module):
    """Pixel vectors alone."""

    def __init__(self, pixel_dim: int, width: int) -> None:
        super().__init__()
        self.pixel = _mlp(pixel_dim, width)

    def forward(self, ids: Int64[Tensor, " n"], codes: CodeVectors) -> Float[Tensor, "n width"]:
        return _project(self.pixel, codes(ids)[1])


class TableEmbedding(nn.Module):
    """A learned row for each of the K * m ids, as for words; needs no code vectors."""

    def __init__(self, num_images: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_images, width)

    def forward(self, ids: Int64[Tensor, " n"], codes: CodeVectors) -> Float[Tensor, "n width"]:
        rows: Tensor = self.table(ids)
        return rows


Adapter = DualAdapter | SemanticAdapter | PixelAdapter | TableEmbedding


def make_adapter(
    name: str, semantic_dim: int, pixel_dim: int, num_images: int, width: int
) -> Adapter:
    """The adapter of that name.

    Raises:
        NotFoundError: there is none.
    """
    if name == "dual":
        return DualAdapter(semantic_dim, pixel_dim, width)
    if name == "semantic":
        return SemanticAdapter(semantic_dim, width)
    if name == "pixel":
        return PixelAdapter(pixel_dim, width)
    if name == "table":
        return TableEmbedding(num_images, width)
    raise NotFoundError(f"there is no input {name!r}; allowed: dual, semantic, pixel, table")


def _mlp(inner: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inner, width), nn.GELU(), nn.Linear(width, width))


def _project(mlp: nn.Sequential, vectors: Tensor) -> Tensor:
    # Code vectors are float32 wherever the tokenizer is; the language model may be neither.
    projected: Tensor = mlp(vectors.to(cast(nn.Linear, mlp[0]).weight))
    return projected
