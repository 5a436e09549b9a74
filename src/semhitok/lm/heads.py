"""How a language model writes an image id: a distribution over the K * m ids.

Both heads have one interface: `loss` for training; `semantic_log_probs` and `pixel_log_probs` for
generation, which draws i and then j among its m children; `log_probs` of all ids for evaluation.
`loss` holds logits of a few positions at a time and makes them anew on the way back, so that its
memory does not grow with the sequence.

Shapes: n positions, d width of the language model, r width of the factorised head's own layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from semhitok.errors import NotFoundError

HeadName = Literal["flat", "factorised"]
FLAT_UP_TO = 2**18
"""Ids up to which the flat head is the default: 2^18 of width 3,584 are 0.9 G weights."""
NUMBERS_AT_ONCE = 2**26
"""Largest intermediate result, in numbers: 256 MB of float32."""


class FlatHead(nn.Module):
    """The paper's softmax over all K * m ids: K * m * d weights."""

    def __init__(self, width: int, num_semantic: int, num_pixel: int) -> None:
        super().__init__()
        self.num_pixel = num_pixel
        self.ids = nn.Linear(width, num_semantic * num_pixel, bias=False)

    def loss(self, hidden: Float[Tensor, "n d"], ids: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Negative log-likelihood of each id, float32."""
        return in_chunks(self._loss, hidden, ids, self.ids.out_features)

    def log_probs(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n k_times_m"]:
        """Normalised, float32."""
        return F.log_softmax(self.ids(hidden).float(), dim=-1)

    def semantic_log_probs(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """log p(i), float32: a sum over the children, and so over all K * m logits."""
        children: Tensor = self.log_probs(hidden).unflatten(-1, (-1, self.num_pixel))
        return children.logsumexp(dim=-1)

    def pixel_log_probs(
        self, hidden: Float[Tensor, "n d"], semantic: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n m"]:
        """log p(j | i) of one i a position, float32."""
        children = self.ids.weight.unflatten(0, (-1, self.num_pixel))[semantic]
        return F.log_softmax(torch.einsum("nmd,nd->nm", children, hidden).float(), dim=-1)

    def _loss(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return F.cross_entropy(self.ids(hidden).float(), ids, reduction="none")


class FactorisedHead(nn.Module):
    """p(i) p(j | i): a linear map to K, then W silu(U h + E_i) to m.

    K * (d + r) + (d + m) * r weights; of 16,384 x 12 ids at d = 3,584 and r = 256, 64 M in place
    of 705 M.
    """

    def __init__(self, width: int, num_semantic: int, num_pixel: int, inner: int) -> None:
        super().__init__()
        self.semantic = nn.Linear(width, num_semantic, bias=False)
        self.parent = nn.Embedding(num_semantic, inner)
        self.context = nn.Linear(width, inner)
        self.pixel = nn.Linear(inner, num_pixel)

    def loss(self, hidden: Float[Tensor, "n d"], ids: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Negative log-likelihood of each id, float32; never K * m logits."""
        return in_chunks(self._loss, hidden, ids, self.semantic.out_features)

    def log_probs(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n k_times_m"]:
        """Normalised, float32; a few parents at a time."""
        semantic = self.semantic_log_probs(hidden)
        context = self.context(hidden)[:, None]
        step = max(1, NUMBERS_AT_ONCE // max(1, context.numel()))
        pixel = [self._pixel(context + parents) for parents in self.parent.weight.split(step)]
        return (semantic[..., None] + torch.cat(pixel, dim=1)).flatten(1)

    def semantic_log_probs(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """log p(i), float32."""
        return F.log_softmax(self.semantic(hidden).float(), dim=-1)

    def pixel_log_probs(
        self, hidden: Float[Tensor, "n d"], semantic: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n m"]:
        """log p(j | i) of one i a position, float32; never K * m logits."""
        return self._pixel(self.context(hidden) + self.parent(semantic))

    def _loss(self, hidden: Tensor, ids: Tensor) -> Tensor:
        m = self.pixel.out_features
        parents, pixels = ids // m, ids % m
        semantic = F.cross_entropy(self.semantic(hidden).float(), parents, reduction="none")
        pixel = self.pixel_log_probs(hidden, parents)
        return semantic + F.nll_loss(pixel, pixels, reduction="none")

    def _pixel(self, summed: Tensor) -> Tensor:
        """log p(j | i) of the sum of context and parent."""
        return F.log_softmax(self.pixel(F.silu(summed)).float(), dim=-1)


Head = FlatHead | FactorisedHead


def make_head(name: str, width: int, num_semantic: int, num_pixel: int, inner: int) -> Head:
    """The head of that name; `inner` is r of the factorised one.

    Raises:
        NotFoundError: there is none.
    """
    if name == "flat":
        return FlatHead(width, num_semantic, num_pixel)
    if name == "factorised":
        return FactorisedHead(width, num_semantic, num_pixel, inner)
    raise NotFoundError(f"there is no head {name!r}; allowed: flat, factorised")


def default_head(num_images: int) -> HeadName:
    """Flat up to 2^18 ids, factorised beyond."""
    return "flat" if num_images <= FLAT_UP_TO else "factorised"


def in_chunks(
    loss: Callable[[Tensor, Tensor], Tensor],
    hidden: Float[Tensor, "n d"],
    targets: Int64[Tensor, " n"],
    logits: int,
) -> Float[Tensor, " n"]:
    """`loss` of a few positions at a time, of `logits` numbers each, made anew on the way back."""
    rows = max(1, NUMBERS_AT_ONCE // logits)
    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(loss, h, t, use_reentrant=False) for h, t in parts])
