"""Codebooks: tables of code vectors, and how a latent finds its code.

How a table learns is not its business: by gradient through the losses below, or by the moving
averages of `semhitok.train.ema`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semhitok.errors import RecipeError
from semhitok.model.config import FeedbackConfig
from semhitok.model.search import nearest, nearest_in_parent


@dataclass(frozen=True)
class Quantized:
    """What a codebook makes of latents."""

    indices: Int64[Tensor, "*grid"]
    quantized: Float[Tensor, "*grid d"]
    """The chosen codes; gradients pass straight through to the latents."""
    commitment_loss: Float[Tensor, ""]
    """Pulls latents to their codes: trains the encoder only."""
    codebook_loss: Float[Tensor, ""]
    """Pulls codes to their latents: trains the codebook only."""


def _quantized(
    latents: Float[Tensor, "*grid d"],
    indices: Int64[Tensor, "*grid"],
    codes: Float[Tensor, "*grid d"],
) -> Quantized:
    # Forward this is exactly the code; backward it is the identity on the latents.
    straight_through = codes.detach() + (latents - latents.detach())
    return Quantized(
        indices=indices,
        quantized=straight_through,
        commitment_loss=F.mse_loss(latents, codes.detach()),
        codebook_loss=F.mse_loss(codes, latents.detach()),
    )


class SemanticCodebook(nn.Module):
    """K unit vectors; a latent takes the nearest. Learned by moving averages, never by gradient.

    With error feedback a picture is searched again and again: by how much the mean of its codes
    misses the mean of its latents is added, in part, to all of its latents, so that patches between
    two codes take the one that mends the mean. What a picture is about, which is in the mean, is
    then told better by the same codes, at next to no cost for the single patch.
    """

    codes: Tensor

    def __init__(
        self, num_codes: int, code_dim: int, feedback: FeedbackConfig | None = None
    ) -> None:
        super().__init__()
        codes = F.normalize(torch.randn(num_codes, code_dim), dim=-1)
        self.register_buffer("codes", codes)
        self.feedback = feedback

    def forward(self, latents: Float[Tensor, "*batch h w d"]) -> Quantized:
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            indices = self.search(latents)
            return _quantized(latents, indices, self.lookup(indices))

    @torch.no_grad()
    def search(self, latents: Float[Tensor, "*batch h w d"]) -> Int64[Tensor, "*batch h w"]:
        """Semantic codes i of the latents, each grid (h, w) that of a whole picture."""
        indices = self._nearest(latents)
        if self.feedback is not None:
            mean = latents.mean(dim=(-3, -2), keepdim=True)
            for _ in range(self.feedback.rounds):
                latents = latents + self.feedback.rate * self._error(mean, indices)
                indices = self._nearest(latents)
        return indices

    def _nearest(self, latents: Tensor) -> Tensor:
        return nearest(latents.flatten(0, -2), self.codes).view(latents.shape[:-1])

    def _error(self, mean: Float[Tensor, "*b 1 1 d"], indices: Tensor) -> Float[Tensor, "*b 1 1 d"]:
        """What the codes' mean lacks of the latents', to whose scale it is brought first."""
        given = self.lookup(indices).mean(dim=(-3, -2), keepdim=True)
        power = given.square().sum(dim=-1, keepdim=True).clamp_min(1e-12)
        return mean - given * (mean * given).sum(dim=-1, keepdim=True) / power

    def lookup(self, indices: Int64[Tensor, "*grid"]) -> Float[Tensor, "*grid d"]:
        """The code vectors that the indices name."""
        return F.embedding(indices, self.codes)


class FreeOffsets(nn.Module):
    """One free offset for each of the K x m codes."""

    def __init__(self, num_parents: int, num_codes: int, code_dim: int) -> None:
        super().__init__()
        self.num_parents, self.num_codes = num_parents, num_codes
        self.weight = nn.Parameter(torch.zeros(num_parents, num_codes, code_dim))

    def table(self) -> Float[Tensor, "k m d"]:
        return self.weight

    def rows(
        self, parents: Int64[Tensor, "*grid"], indices: Int64[Tensor, "*grid"]
    ) -> Float[Tensor, "*grid d"]:
        # One lookup of the chosen rows: the backward pass of a gather of all m would be huge.
        return F.embedding(parents * self.num_codes + indices, self.weight.flatten(0, 1))


class LowRankOffsets(nn.Module):
    """Parents mix the same few tables of offsets: K x m codes of K x r + r x m x d numbers."""

    def __init__(self, num_parents: int, num_codes: int, code_dim: int, rank: int) -> None:
        super().__init__()
        self.num_parents = num_parents
        # One factor starts at zero, so that all parents start at the base; the other must not.
        self.mixture = nn.Parameter(torch.randn(num_parents, rank) / rank**0.5)
        self.tables = nn.Parameter(torch.zeros(rank, num_codes, code_dim))

    def table(self) -> Float[Tensor, "k m d"]:
        return torch.einsum("kr,rmd->kmd", self.mixture, self.tables)

    def rows(
        self, parents: Int64[Tensor, "*grid"], indices: Int64[Tensor, "*grid"]
    ) -> Float[Tensor, "*grid d"]:
        rank, _, code_dim = self.tables.shape
        mixture = F.embedding(parents, self.mixture)
        rows = F.embedding(indices, self.tables.permute(1, 0, 2).flatten(1))
        return torch.einsum("...r,...rd->...d", mixture, rows.unflatten(-1, (rank, code_dim)))


class HierarchicalCodebook(nn.Module):
    """K sub-codebooks of m codes; a latent searches only the sub-codebook of its parent (SGHC).

    A sub-codebook is a base that all parents share plus the parent's own offsets, which start at
    zero: a rare parent is as good as the shared codebook from the start, and can only gain.

    Reference: Chen et al., SemHiTok, arXiv:2503.06764; base and offsets are ours.
    """

    typical: Tensor

    def __init__(
        self, num_codes: int, code_dim: int, offsets: FreeOffsets | LowRankOffsets
    ) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.randn(num_codes, code_dim))
        self.offsets = offsets
        self._made: tuple[tuple[tuple[int, int], ...], Tensor] | None = None
        # Mean code vector of each parent's patches in training: the guess where only i is known.
        self.register_buffer("typical", torch.zeros(offsets.num_parents, code_dim))

    def free_offsets(self, needed_by: str) -> FreeOffsets:
        """The offsets, where each code has its own.

        Raises:
            RecipeError: they are low-rank.
        """
        if not isinstance(self.offsets, FreeOffsets):
            raise RecipeError(
                f"{needed_by} moves single codes of a parent, which low-rank offsets cannot; set "
                "pixel.offset_rank to null"
            )
        return self.offsets

    def table(self) -> Float[Tensor, "k m d"]:
        """All sub-codebooks."""
        return self.base + self.offsets.table()

    def forward(
        self, latents: Float[Tensor, "*grid d"], parents: Int64[Tensor, "*grid"]
    ) -> Quantized:
        """Quantize latents (*grid, d), each within the sub-codebook of its parent (*grid)."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            indices = self.search(latents, parents)
            return _quantized(latents, indices, self.lookup(parents, indices))

    @torch.no_grad()
    def search(
        self, latents: Float[Tensor, "*grid d"], parents: Int64[Tensor, "*grid"]
    ) -> Int64[Tensor, "*grid"]:
        """Pixel codes j of the latents."""
        flat = nearest_in_parent(latents.flatten(0, -2), parents.flatten(), self._current_table())
        return flat.view(parents.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def _current_table(self) -> Tensor:
        """The table of the weights as they are; made anew only where they have changed.

        For a few patches it takes longer to make than to search.
        """
        weights = (self.base, *self.offsets.parameters())
        if self.training or any(weight.is_inference() for weight in weights):
            return self.table()  # of inference tensors nobody counts the changes
        state = tuple((weight.data_ptr(), weight._version) for weight in weights)
        if self._made is None or self._made[0] != state:
            self._made = (state, self.table())
        return self._made[1]

    def lookup(
        self, parents: Int64[Tensor, "*grid"], indices: Int64[Tensor, "*grid"]
    ) -> Float[Tensor, "*grid d"]:
        """The code vectors that semantic and pixel codes name together."""
        return F.embedding(indices, self.base) + self.offsets.rows(parents, indices)
