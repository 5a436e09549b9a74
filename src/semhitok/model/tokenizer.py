"""SemHiTok: pictures to ids and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semhitok.errors import FormatError, IdError, NotFoundError, RangeError, ShapeError
from semhitok.model.codebook import (
    FreeOffsets,
    HierarchicalCodebook,
    LowRankOffsets,
    Quantized,
)
from semhitok.model.config import ALL_PARTS, Part, PixelConfig, SemanticConfig, TokenizerConfig
from semhitok.model.pixel import PixelDecoder, PixelEncoder, join_vectors
from semhitok.model.precision import PRECISIONS, products_in
from semhitok.model.semantic import SemanticBranch
from semhitok.model.teacher import Teacher
from semhitok.model.tiles import TILING, Tiling, in_tiles

if TYPE_CHECKING:
    from semhitok.images import Picture

DecoderName = Literal["pixel", "enhance"]


@dataclass(frozen=True)
class Reconstruction:
    """What `SemHiTok.forward` gives, with gradients into the pixel branch."""

    images: Float[Tensor, "b 3 height width"]
    """By the stage-2 decoder, not clamped."""
    semantic: Int64[Tensor, "b h w"]
    latents: Float[Tensor, "b h w d"]
    """Of the pixel encoder, before quantization."""
    pixel: Quantized


class PixelBranch(nn.Module):
    """Encoder, sub-codebooks and decoders of the pixel codes."""

    def __init__(
        self,
        config: PixelConfig,
        semantic: SemanticConfig,
        patch_size: int,
        parts: Sequence[Part] = ALL_PARTS,
    ) -> None:
        super().__init__()
        parents, m, d = semantic.num_codes, config.num_codes, config.code_dim
        offsets: FreeOffsets | LowRankOffsets
        if config.offset_rank is None:
            offsets = FreeOffsets(parents, m, d)
        else:
            offsets = LowRankOffsets(parents, m, d, config.offset_rank)
        joined = semantic.code_dim + d
        self.codebook = HierarchicalCodebook(m, d, offsets)
        self.encoder: PixelEncoder | None = None
        self.decoder: PixelDecoder | None = None
        self.enhance: PixelDecoder | None = None
        if "encode" in parts:
            self.encoder = PixelEncoder(patch_size, config)
        if "decode" in parts:
            self.decoder = PixelDecoder(patch_size, joined, config.decoder)
            if config.enhance is not None:
                self.enhance = PixelDecoder(patch_size, joined, config.enhance)


class SemHiTok(nn.Module):
    """One discrete token a patch: `id = i * m + j`, semantic code i of K, pixel code j of its m.

    Reference: Chen et al., SemHiTok, arXiv:2503.06764.
    """

    def __init__(
        self,
        config: TokenizerConfig,
        teacher: Teacher | None = None,
        parts: Sequence[Part] = ALL_PARTS,
    ) -> None:
        """Build with random weights.

        Args:
            teacher: brings its own weights; else `config.semantic.teacher` tells its architecture.
            parts: what the model is for; modules that this does not need are not built.
        """
        super().__init__()
        self.config = config
        self.parts = tuple(parts)
        self._precision = torch.float32
        self.semantic = SemanticBranch(config.semantic, teacher, parts)
        self.pixel = PixelBranch(config.pixel, config.semantic, config.patch_size, parts)

    # -- sizes ---------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """K * m."""
        return self.config.vocab_size

    @property
    def patch_size(self) -> int:
        """Pixels per side of a patch."""
        return self.config.patch_size

    @property
    def device(self) -> torch.device:
        """Where the codebooks are."""
        return self.pixel.codebook.base.device

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches of a picture of `height` x `width` pixels.

        Raises:
            ShapeError: a side is not a positive multiple of the patch size.
        """
        p = self.patch_size
        if height < p or width < p or height % p or width % p:
            raise ShapeError(
                f"image is {height}x{width}; both sides must be multiples of patch_size {p}: "
                "use preprocess(), or crop it"
            )
        return height // p, width // p

    def set_precision(self, dtype: torch.dtype) -> SemHiTok:
        """Precision of the networks' products in `encode` and `decode`; the model itself.

        In bfloat16 the ids of patches flip whose two nearest codes lie close to each other, and
        may depend on the rest of the batch. Weights, codes and their search stay float32.

        Raises:
            RangeError: another dtype than float32 and bfloat16.
        """
        if dtype not in PRECISIONS.values():
            raise RangeError(f"precision is {dtype}; allowed: {', '.join(PRECISIONS)}")
        self._precision = dtype
        if isinstance(self.semantic.trunk, Teacher):
            self.semantic.trunk.precision = dtype
        return self

    # -- pictures and ids ----------------------------------------------------------------------

    def preprocess(
        self,
        pictures: Picture | Sequence[Picture],
        *,
        size: int | Literal["native"] | None = None,
        crop: Literal["square", "grid"] = "square",
    ) -> Float[Tensor, "b 3 height width"]:
        """Read one picture or a list of them as RGB in [0, 1].

        Args:
            pictures: path, bytes, PIL image or array; or a list, all of which must come out alike.
            size: short side in pixels; None for the model's image_size, "native" for no resizing.
            crop: "square" cuts the centre square, "grid" only what exceeds a multiple of the patch.

        Raises:
            ImageError: one cannot be read; the message names it.
            ShapeError: the pictures of a list come out in different sizes.
        """
        from semhitok.images import ImagePolicy, read_image, to_tensor

        items: list[Picture]
        if isinstance(pictures, (list, tuple)):
            items = list(pictures)
        else:
            items = [cast("Picture", pictures)]
        side = self.config.image_size if size is None else (None if size == "native" else size)
        policy = ImagePolicy(size=side, crop=crop, multiple=self.patch_size)
        tensors = [to_tensor(policy.apply(read_image(item))) for item in items]
        shapes = {tuple(t.shape[1:]) for t in tensors}
        if len(shapes) != 1:
            raise ShapeError(
                f"pictures come out in {len(shapes)} sizes ({sorted(shapes)[:3]} ...); a batch "
                "needs one: use crop='square', or one picture at a time"
            )
        return torch.stack(tensors).to(self.device)

    def forward(self, images: Float[Tensor, "b 3 height width"]) -> Reconstruction:
        """The path that stage 2 trains; `encode` then `decode` gives the same pictures, clamped.

        No gradient enters the semantic branch (contract C3).
        """
        encoder, decoder = self._need("encode").encoder, self._need("decode").decoder
        assert encoder is not None and decoder is not None
        with torch.no_grad():
            semantic = self.semantic.encode(images, self.grid(*images.shape[-2:]))
        latents = encoder(images)
        pixel = self.pixel.codebook(latents, semantic)
        vectors = join_vectors(self.semantic.codebook.lookup(semantic), pixel.quantized)
        return Reconstruction(decoder(vectors), semantic, latents, pixel)

    @torch.inference_mode()
    def encode(
        self, images: Float[Tensor, "b 3 height width"], *, tiling: Tiling = TILING
    ) -> Int64[Tensor, "b h w"]:
        """One id a patch, in [0, vocab_size).

        Args:
            images: RGB float32 in [0, 1]; sides are multiples of the patch size.
            tiling: how pictures with a side beyond `tiling.whole` are cut into tiles.

        Raises:
            ShapeError: not (b, 3, height, width), or a side is no multiple of the patch size.
            RangeError: not float32, or values outside [0, 1], or not finite; or a tiling that
                keeps nothing.
        """
        self._need("encode")
        _check_images(images)
        grid = self.grid(*images.shape[-2:])

        def ids_of(tile: Tensor) -> Tensor:
            with products_in(self._precision, self.device):
                return self._encode_whole(tile.to(self.device))

        return in_tiles(ids_of, images, grid, self.patch_size, tiling)

    @torch.inference_mode()
    def decode(
        self,
        ids: Int64[Tensor, "b h w"],
        *,
        decoder: DecoderName | None = None,
        tiling: Tiling = TILING,
    ) -> Float[Tensor, "b 3 height width"]:
        """Pictures in [0, 1] from ids.

        Args:
            ids: grids of ids; any height and width.
            decoder: "pixel" (stage 2), "enhance" (stage 3), or None for the best that there is.
            tiling: how grids with a side beyond `tiling.whole` are cut into tiles.

        Raises:
            IdError: an id outside the vocabulary, or ids that are not integers.
            ShapeError: ids are not (b, h, w).
            NotFoundError: the model has no such decoder.
            RangeError: a tiling that keeps nothing.
        """
        return self._paint(ids, decoder, tiling, self.decoder_input)

    def decoder_input(self, ids: Int64[Tensor, "b h w"]) -> Float[Tensor, "b h w d"]:
        """Joined code vectors at the scale that the decoders read."""
        return join_vectors(*self._vectors(*self.split(ids)))

    def split(
        self, ids: Int64[Tensor, "*grid"]
    ) -> tuple[Int64[Tensor, "*grid"], Int64[Tensor, "*grid"]]:
        """Semantic codes i and pixel codes j of ids.

        Raises:
            IdError: an id outside [0, vocab_size).
        """
        _check_indices(ids, self.vocab_size, "id", self.config.name)
        m = self.config.pixel.num_codes
        return ids // m, ids % m

    def join(
        self, semantic: Int64[Tensor, "*grid"], pixel: Int64[Tensor, "*grid"]
    ) -> Int64[Tensor, "*grid"]:
        """Ids of semantic and pixel codes: the inverse of `split`.

        Raises:
            IdError: a code outside [0, K) or [0, m).
        """
        m = self.config.pixel.num_codes
        _check_indices(semantic, self.config.semantic.num_codes, "semantic code", self.config.name)
        _check_indices(pixel, m, "pixel code", self.config.name)
        return semantic * m + pixel

    @torch.inference_mode()
    def features(self, ids: Int64[Tensor, "b h w"]) -> Float[Tensor, "b h w d"]:
        """Code vectors, d = d_sem + d_pix: what a language model reads."""
        return torch.cat(self._vectors(*self.split(ids)), dim=-1)

    @torch.inference_mode()
    def semantic_features(
        self, ids: Int64[Tensor, "b h w"], *, tiling: Tiling = TILING
    ) -> Float[Tensor, "b h w d"]:
        """The teacher's features, in its own units, as the semantic codes tell them."""
        self._need("features")
        grid = self._grid_of(ids)

        def told(tile: Tensor) -> Tensor:
            with products_in(torch.float32, self.device):
                return self._tell_whole(tile.to(self.device)).movedim(-1, 1)

        return in_tiles(told, ids, grid, self.patch_size, tiling).movedim(1, -1)

    @torch.inference_mode()
    def decode_semantics(
        self,
        ids: Int64[Tensor, "b h w"],
        *,
        decoder: DecoderName | None = None,
        tiling: Tiling = TILING,
    ) -> Float[Tensor, "b 3 height width"]:
        """What the semantic codes alone paint: with each code's typical pixel vector."""

        def typical(tile: Tensor) -> Tensor:
            semantic, pixel = self.split(tile)
            vectors, _ = self._vectors(semantic, pixel)
            return join_vectors(vectors, self.pixel.codebook.typical[semantic.to(self.device)])

        return self._paint(ids, decoder, tiling, typical)

    # -- identity ------------------------------------------------------------------------------

    @property
    def hash(self) -> str:
        """SHA-256 over config and tensors in name order, whatever dtype they are stored in."""
        from semhitok.hub import model_hash

        return model_hash(self)

    @property
    def semantic_hash(self) -> str:
        """SHA-256 of the semantic branch, which stages 2 and 3 leave as it is (contract C3)."""
        return tensors_hash(self.semantic.state_dict())

    # -- folders and the Hub -------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        parts: Sequence[Part] = ALL_PARTS,
        revision: str | None = None,
    ) -> SemHiTok:
        """Load a bundled model, a folder, or a model of the Hugging Face Hub.

        Args:
            name: bundled name ("tiny"), folder, or Hub id ("owner/name").
            parts: what the caller will do with it; only what that needs is read.
            revision: branch, tag or commit on the Hub.

        Raises:
            NotFoundError: there is no such model.
            FormatError: the folder is damaged, or another version wrote it.
        """
        from semhitok.hub import load

        return load(name, parts=parts, revision=revision)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, `model.safetensors`, `README.md` and `metrics.json`."""
        from semhitok.hub import save

        save(self, folder)

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Upload the model folder to the Hugging Face Hub; its address."""
        from semhitok.hub import push

        return push(self, repo_id, private=private)

    # -- inside --------------------------------------------------------------------------------

    # What the network makes of pictures and ids of one tile: a variant overrides these, and leaves
    # checks and tiles to the methods above.

    def _encode_whole(self, images: Tensor) -> Tensor:
        encoder = self.pixel.encoder
        assert encoder is not None
        semantic = self.semantic.encode(images, self.grid(*images.shape[-2:]))
        return self.join(semantic, self.pixel.codebook.search(encoder(images), semantic))

    def _tell_whole(self, ids: Tensor) -> Tensor:
        return self.semantic.features(self.split(ids)[0])

    def _paint(
        self,
        ids: Tensor,
        decoder: DecoderName | None,
        tiling: Tiling,
        vectors_of: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Pictures in [0, 1] of what `vectors_of` makes of a tile's ids."""
        chosen = self._decoder(decoder)
        grid = self._grid_of(ids)

        def pictures_of(tile: Tensor) -> Tensor:
            with products_in(self._precision, self.device):
                out: Tensor = chosen(vectors_of(tile))
            return out.float().clamp(0, 1)

        return in_tiles(pictures_of, ids, grid, self.patch_size, tiling)

    def _grid_of(self, ids: Tensor) -> tuple[int, int]:
        """Patches of ids, once all are checked: an error names the place in no tile but here."""
        _check_indices(ids, self.vocab_size, "id", self.config.name)
        _check_grids(ids)
        return ids.shape[1], ids.shape[2]

    def _vectors(
        self, semantic: Int64[Tensor, "b h w"], pixel: Int64[Tensor, "b h w"]
    ) -> tuple[Tensor, Tensor]:
        _check_grids(semantic)
        semantic, pixel = semantic.to(self.device), pixel.to(self.device)
        return self.semantic.codebook.lookup(semantic), self.pixel.codebook.lookup(semantic, pixel)

    def _decoder(self, name: DecoderName | None) -> PixelDecoder:
        branch = self._need("decode")
        have = {"pixel": branch.decoder, "enhance": branch.enhance}
        decoders = {n: decoder for n, decoder in have.items() if decoder is not None}
        if name is None:
            return decoders.get("enhance", decoders["pixel"])
        if name not in decoders:
            names = ", ".join(map(repr, decoders))
            raise NotFoundError(f"{self.config.name} has no decoder {name!r}; it has: {names}")
        return decoders[name]

    def _need(self, part: Part) -> PixelBranch:
        """The pixel branch, once it is sure that the model was loaded for this part."""
        if part not in self.parts:
            raise FormatError(
                f"{self.config.name} was loaded for {list(self.parts)}; this needs {part!r}: "
                f"from_pretrained(..., parts=({part!r}, ...))"
            )
        return self.pixel


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ShapeError(
            f"images have shape {tuple(images.shape)}; (b, 3, height, width) is needed, each >= 1"
        )
    if images.dtype != torch.float32:
        raise RangeError(
            f"images are {images.dtype}; float32 in [0, 1] is needed: use preprocess()"
        )
    low, high = (float(v) for v in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise RangeError(
            f"images range from {low:g} to {high:g}; [0, 1] is needed: divide 8-bit values by "
            "255, or use preprocess()"
        )


def _check_grids(ids: Tensor) -> None:
    if ids.ndim != 3:
        raise ShapeError(f"ids have shape {tuple(ids.shape)}; (b, h, w) is needed")


def _check_indices(indices: Tensor, size: int, what: str, model: str) -> None:
    if indices.dtype != torch.int64:
        raise IdError(f"{what}s are {indices.dtype}; int64 is needed: use .long()")
    if indices.numel() == 0:
        return
    low, high = (int(v) for v in indices.aminmax())
    if low < 0 or high >= size:
        bad = low if low < 0 else high
        place = tuple(int(v) for v in (indices == bad).nonzero()[0])
        raise IdError(
            f"{what} {bad} at {place} is outside [0, {size}); {model} has {size} of them: was it "
            "written by another tokenizer?"
        )


def tensors_hash(tensors: dict[str, Tensor], prefix: bytes = b"") -> str:
    """SHA-256 over names, shapes and values, floating ones as float32, in name order."""
    digest = hashlib.sha256(prefix)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        tensor = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
