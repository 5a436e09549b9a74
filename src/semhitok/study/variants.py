"""Parts of the tokenizer as a row of the study has them otherwise; each takes the place of ours."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semhitok.model import HierarchicalCodebook, Quantized, SemHiTok, Teacher, TokenizerConfig
from semhitok.model.codebook import FreeOffsets
from semhitok.model.config import PixelDecoderConfig
from semhitok.model.pixel import PixelDecoder, join_vectors
from semhitok.model.tokenizer import Reconstruction

Build = Callable[[TokenizerConfig, Teacher], SemHiTok]

SIMILAR = 0.7
"""Cosine of two patches' semantic latents from which on they share their sub-codebooks."""


# ------------------------------------------------------------------------------------- decoders


class PixelOnlyDecoder(PixelDecoder):
    """Reads the pixel vectors alone: of two tokenizers that know nothing of each other, one."""

    def __init__(
        self, patch_size: int, in_dim: int, pixel_dim: int, config: PixelDecoderConfig
    ) -> None:
        super().__init__(patch_size, in_dim, config)
        self.pixel_dim = pixel_dim

    def forward(self, vectors: Float[Tensor, "b h w in_dim"]) -> Float[Tensor, "b 3 height width"]:
        blind = torch.zeros_like(vectors[..., : -self.pixel_dim])
        return super().forward(torch.cat([blind, vectors[..., -self.pixel_dim :]], dim=-1))


class SequenceDecoder(PixelDecoder):
    """Semantic and pixel vectors as two tokens of the sequence, side by side; twice as long."""

    def __init__(
        self, patch_size: int, in_dim: int, pixel_dim: int, config: PixelDecoderConfig
    ) -> None:
        super().__init__(patch_size, in_dim, config)
        self.pixel_dim = pixel_dim
        del self.embed  # of both vectors as one
        self.embed_semantic = nn.Linear(in_dim - pixel_dim, config.transformer.width)
        self.embed_pixel = nn.Linear(pixel_dim, config.transformer.width)

    def _grid(self, vectors: Tensor) -> Tensor:
        semantic = self.embed_semantic(vectors[..., : -self.pixel_dim])
        pixel = self.embed_pixel(vectors[..., -self.pixel_dim :])
        # Neighbours in a row of twice the width: where one's other half is does not change with it.
        pairs = torch.stack([semantic, pixel], dim=3).flatten(2, 3)
        grid: Tensor = self.transformer(pairs)[:, :, 1::2]
        return grid


def with_decoder(kind: type[PixelOnlyDecoder] | type[SequenceDecoder]) -> Build:
    """Our tokenizer with such a decoder."""

    def build(config: TokenizerConfig, teacher: Teacher) -> SemHiTok:
        model = SemHiTok(config, teacher)
        pixel_dim = config.pixel.code_dim
        joined = config.semantic.code_dim + pixel_dim
        model.pixel.decoder = kind(config.patch_size, joined, pixel_dim, config.pixel.decoder)
        return model

    return build


# ------------------------------------------------------------------------------------- codebooks


class RotationCodebook(HierarchicalCodebook):
    """Gradients come back turned as the latent was turned to its code, rather than straight.

    Reference: Fifty et al., Restructuring Vector Quantization with the Rotation Trick,
    arXiv:2410.06424.
    """

    def forward(
        self, latents: Float[Tensor, "*grid d"], parents: Int64[Tensor, "*grid"]
    ) -> Quantized:
        found = super().forward(latents, parents)
        with torch.autocast(latents.device.type, enabled=False):
            codes = self.lookup(parents, found.indices).detach()
            turned = rotate_to(latents.float(), codes)
        return Quantized(found.indices, turned, found.commitment_loss, found.codebook_loss)


def rotate_to(
    latents: Float[Tensor, "*grid d"], codes: Float[Tensor, "*grid d"]
) -> Float[Tensor, "*grid d"]:
    """The codes, as the latents turned and stretched by a constant: so the gradient sees them."""
    e, q = F.normalize(latents.detach(), dim=-1), F.normalize(codes, dim=-1)
    r = F.normalize(e + q, dim=-1)
    stretch = codes.norm(dim=-1, keepdim=True) / latents.detach().norm(dim=-1, keepdim=True)
    # (I - 2 r r^T + 2 q e^T) turns e to q.
    along_r = (latents * r).sum(dim=-1, keepdim=True)
    along_e = (latents * e).sum(dim=-1, keepdim=True)
    turned: Tensor = stretch.clamp(0.01, 100.0) * (latents - 2 * along_r * r + 2 * along_e * q)
    return turned


class OwnCodebook(HierarchicalCodebook):
    """Sub-codebooks that share nothing but where they start: the base stays, offsets learn."""

    def requires_grad_(self, requires_grad: bool = True) -> OwnCodebook:
        super().requires_grad_(requires_grad)
        self.base.requires_grad_(False)
        return self


class SimVQCodebook(HierarchicalCodebook):
    """The base is a fixed table seen through a linear map that learns: all codes move together.

    Reference: Zhu et al., SimVQ, arXiv:2411.02038.
    """

    def __init__(self, num_codes: int, code_dim: int, offsets: FreeOffsets) -> None:
        super().__init__(num_codes, code_dim, offsets)
        self.base.requires_grad_(False)
        self.map = nn.Linear(code_dim, code_dim, bias=False)
        nn.init.eye_(self.map.weight)

    def table(self) -> Float[Tensor, "k m d"]:
        table: Tensor = self.map(self.base) + self.offsets.table()
        return table

    def lookup(
        self, parents: Int64[Tensor, "*grid"], indices: Int64[Tensor, "*grid"]
    ) -> Float[Tensor, "*grid d"]:
        base: Tensor = self.map(F.embedding(indices, self.base))
        return base + self.offsets.rows(parents, indices)

    def requires_grad_(self, requires_grad: bool = True) -> SimVQCodebook:
        """The fixed table stays so."""
        super().requires_grad_(requires_grad)
        self.base.requires_grad_(False)
        return self


def with_codebook(kind: type[HierarchicalCodebook]) -> Build:
    """Our tokenizer with such a pixel codebook."""

    def build(config: TokenizerConfig, teacher: Teacher) -> SemHiTok:
        model = SemHiTok(config, teacher)
        m, d = config.pixel.num_codes, config.pixel.code_dim
        model.pixel.codebook = kind(m, d, FreeOffsets(config.semantic.num_codes, m, d))
        return model

    return build


# --------------------------------------------------------------------------------------- search


class UnionSemHiTok(SemHiTok):
    """A patch may take a pixel code of any similar patch of its picture, and then that patch's id.

    The semantic code of its id is then the other patch's, which is similar, but not its own.

    Reference: the mapping of Rosetta Stone (CVPR 2026), as `SIMILAR` describes it.
    """

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Reconstruction:
        encoder, decoder = self.pixel.encoder, self.pixel.decoder
        assert encoder is not None and decoder is not None
        with torch.no_grad():
            keys = self.semantic.latents(images, self.grid(*images.shape[-2:]))
        latents = encoder(images)
        with torch.autocast(images.device.type, enabled=False):
            latents = latents.float()
            parents, indices = self.search(keys, latents)
            codes = self.pixel.codebook.lookup(parents, indices)
            pixel = Quantized(
                indices,
                codes.detach() + (latents - latents.detach()),
                F.mse_loss(latents, codes.detach()),
                F.mse_loss(codes, latents.detach()),
            )
        vectors = join_vectors(self.semantic.codebook.lookup(parents), pixel.quantized)
        return Reconstruction(decoder(vectors), parents, latents, pixel)

    def _encode_whole(self, images: Float[Tensor, "b 3 height width"]) -> Int64[Tensor, "b h w"]:
        assert self.pixel.encoder is not None
        keys = self.semantic.latents(images, self.grid(*images.shape[-2:]))
        return self.join(*self.search(keys, self.pixel.encoder(images)))

    @torch.no_grad()
    def search(
        self, keys: Float[Tensor, "b h w c"], latents: Float[Tensor, "b h w d"]
    ) -> tuple[Int64[Tensor, "b h w"], Int64[Tensor, "b h w"]]:
        """Semantic code of the patch that lends the pixel code, and that code, for each patch."""
        own = self.semantic.codebook.search(keys)
        table, m = self.pixel.codebook.table(), self.config.pixel.num_codes
        lenders, indices = torch.empty_like(own), torch.empty_like(own)
        for n in range(len(own)):
            key, latent = keys[n].flatten(0, 1), latents[n].flatten(0, 1).float()
            parents, inverse = own[n].flatten().unique(return_inverse=True)
            similar = (key @ key.T > SIMILAR).float()
            similar.fill_diagonal_(1.0)
            # A parent may lend where any of its patches is similar.
            may = similar @ F.one_hot(inverse, len(parents)).float() > 0
            codes = table[parents]
            scores = torch.einsum("pd,qmd->pqm", latent, codes) - codes.square().sum(-1) / 2
            best = scores.masked_fill(~may[..., None], -torch.inf).flatten(1).argmax(dim=1)
            lenders[n] = parents[best // m].view(own.shape[1:])
            indices[n] = (best % m).view(own.shape[1:])
        return lenders, indices
