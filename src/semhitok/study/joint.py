"""Training semantics and pixels at once: the way that the staged training is compared with.

A quantizer is an object that turns both latents of a patch into one id; the paper's own hierarchy
is one of them, and what other papers do are the others.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semhitok.model import SemHiTok, Teacher, TokenizerConfig, fit_linear_paths
from semhitok.model.kmeans import kmeans
from semhitok.model.pixel import join_vectors
from semhitok.model.search import nearest
from semhitok.train.ema import CodebookEMA, WeightEMA
from semhitok.train.losses import pixel_distances, semantic_losses
from semhitok.train.pixel import FIT_BATCHES, SubcodeUsage
from semhitok.train.recipe import Recipe
from semhitok.train.semantic import SemanticTrainer
from semhitok.train.stage import Losses, round_to_half, usage, weighted
from semhitok.train.world import World

COMMITMENT = 0.25
RESTART_BELOW = 0.02
RESTART_EVERY = 50


@dataclass(frozen=True)
class Tokens:
    """What a quantizer makes of both latents."""

    ids: Int64[Tensor, "*grid"]
    semantic: Float[Tensor, "*grid c"]
    """Code vectors; gradients pass straight through to the latents."""
    pixel: Float[Tensor, "*grid d"]
    loss: Float[Tensor, ""]
    """Commitment of the latents, and what moves codes that learn by gradient."""


class Quantizer(nn.Module, ABC):
    """Both latents of a patch to one id of K * m, and code vectors back."""

    @abstractmethod
    def track(self) -> None:
        """Begin the moving averages anew, from the codes as they are and where they are."""

    @abstractmethod
    def begin(self, semantic: Tensor, pixel: Tensor, generator: torch.Generator) -> None:
        """Start from latents (n, c) and (n, d)."""

    @abstractmethod
    def forward(self, semantic: Tensor, pixel: Tensor) -> Tokens: ...

    @abstractmethod
    def search(self, semantic: Tensor, pixel: Tensor) -> Int64[Tensor, "*grid"]:
        """Ids alone."""

    @abstractmethod
    def lookup(self, ids: Int64[Tensor, "*grid"]) -> tuple[Tensor, Tensor]:
        """Semantic and pixel code vectors."""

    @abstractmethod
    def learn(
        self, semantic: Tensor, pixel: Tensor, ids: Tensor, step: int, last: bool, world: World
    ) -> int:
        """Take one batch's latents into moving averages; codes restarted. `last`: let them rest."""

    @abstractmethod
    def learning(self) -> dict[str, Any]:
        """State of the learning, beside the module's own."""

    @abstractmethod
    def load_learning(self, state: dict[str, Any]) -> None: ...


class HierarchicalQuantizer(Quantizer):
    """The paper's: nearest semantic code, then the nearest pixel code under it."""

    def __init__(self, model: SemHiTok, recipe: Recipe, world: World) -> None:
        super().__init__()
        self.semantic, self.pixel = model.semantic.codebook, model.pixel.codebook
        self.recipe, self.world, self.m = recipe, world, model.config.pixel.num_codes

    def track(self) -> None:
        decay = self.recipe.semantic.codebook_decay
        self.means = CodebookEMA(self.semantic.codes, decay, unit=True)
        self.usage = SubcodeUsage(self.pixel, self.recipe.pixel, self.world)

    def begin(self, semantic: Tensor, pixel: Tensor, generator: torch.Generator) -> None:
        settings = self.recipe.semantic.kmeans_iterations
        k = len(self.semantic.codes)
        codes = kmeans(semantic, k, iterations=settings, generator=generator, unit=True)
        self.semantic.codes.copy_(codes)
        base = kmeans(pixel, self.m, iterations=settings, generator=generator)
        self.pixel.base.data.copy_(base)
        self.track()

    def forward(self, semantic: Tensor, pixel: Tensor) -> Tokens:
        first = self.semantic(semantic)
        second = self.pixel(pixel, first.indices)
        loss = COMMITMENT * second.commitment_loss + second.codebook_loss + first.commitment_loss
        ids = first.indices * self.m + second.indices
        return Tokens(ids, first.quantized, second.quantized, loss)

    def search(self, semantic: Tensor, pixel: Tensor) -> Tensor:
        parents = self.semantic.search(semantic)
        return parents * self.m + self.pixel.search(pixel, parents)

    def lookup(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        parents = ids // self.m
        return self.semantic.lookup(parents), self.pixel.lookup(parents, ids % self.m)

    def learn(
        self, semantic: Tensor, pixel: Tensor, ids: Tensor, step: int, last: bool, world: World
    ) -> int:
        parents = ids // self.m
        self.means.update(semantic, parents, world)
        self.usage.update(pixel, parents, ids % self.m)
        if last or (step + 1) % RESTART_EVERY:
            return 0
        generator = torch.Generator().manual_seed(step)
        dead = self.means.counts < RESTART_BELOW * self.means.counts.mean()
        moved = self.means.restart(dead, semantic, generator)
        return moved + self.usage.restart(pixel, parents, generator)

    def learning(self) -> dict[str, Any]:
        return {"means": self.means.state_dict(), "usage": self.usage.state_dict()}

    def load_learning(self, state: dict[str, Any]) -> None:
        self.means.load_state_dict(state["means"])
        self.usage.load_state_dict(state["usage"])


class SharedQuantizer(Quantizer):
    """Both latents in one space; one code of N stands for both, or one of each level in turn.

    One level and no mixing is TokenFlow's shared index: two codebooks of N rows, and the row whose
    two distances add up to the least. With mixing the two latents become one before the search, and
    both decoders read all of the code: one hybrid codebook, as in VILA-U. Two levels are a residual
    quantizer: the second codes what the first leaves.

    Codes learn by moving averages. The semantic latent, a unit vector, is scaled so that both
    latents weigh alike in the distance.
    """

    def __init__(
        self, semantic_dim: int, pixel_dim: int, levels: Sequence[int], *, mixed: bool, decay: float
    ) -> None:
        super().__init__()
        self.split_at, self.scale = semantic_dim, math.sqrt(pixel_dim)
        self.levels, self.decay = list(levels), decay
        dim = semantic_dim + pixel_dim
        self.mix: nn.Module = nn.Identity()
        self.unmix: nn.Module = nn.Identity()
        if mixed:
            self.mix, self.unmix = nn.Linear(dim, dim), nn.Linear(dim, dim)
            for layer in (self.mix, self.unmix):
                nn.init.eye_(layer.weight)
                nn.init.zeros_(layer.bias)
        for number, size in enumerate(levels):
            self.register_buffer(f"level{number}", torch.randn(size, dim))

    def track(self) -> None:
        self.means = [CodebookEMA(table, self.decay) for table in self.tables]

    @property
    def tables(self) -> list[Tensor]:
        """Codes of each level."""
        return [getattr(self, f"level{number}") for number in range(len(self.levels))]

    def begin(self, semantic: Tensor, pixel: Tensor, generator: torch.Generator) -> None:
        rest = self._joined(semantic, pixel)
        for table in self.tables:
            table.copy_(kmeans(rest, len(table), iterations=5, generator=generator))
            rest = rest - table[nearest(rest, table)]
        self.track()

    def forward(self, semantic: Tensor, pixel: Tensor) -> Tokens:
        with torch.autocast(pixel.device.type, enabled=False):
            latents = self._joined(semantic.float(), pixel.float())
            indices = self._search(latents)
            codes = self._sum(indices)
            loss = COMMITMENT * F.mse_loss(latents, codes)
            straight_through = codes + (latents - latents.detach())
            return Tokens(self._to_ids(indices), *self._apart(straight_through), loss)

    def search(self, semantic: Tensor, pixel: Tensor) -> Tensor:
        return self._to_ids(self._search(self._joined(semantic.float(), pixel.float())))

    def lookup(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self._apart(self._sum(self._from_ids(ids)))

    def learn(
        self, semantic: Tensor, pixel: Tensor, ids: Tensor, step: int, last: bool, world: World
    ) -> int:
        with torch.no_grad():
            rest = self._joined(semantic, pixel)
        generator, moved = torch.Generator().manual_seed(step), 0
        for table, means, chosen in zip(self.tables, self.means, self._from_ids(ids), strict=True):
            left = rest - table[chosen]
            means.update(rest, chosen, world)
            if not last and (step + 1) % RESTART_EVERY == 0:
                dead = means.counts < RESTART_BELOW * means.counts.mean()
                moved += means.restart(dead, rest, generator)
            rest = left
        return moved

    def learning(self) -> dict[str, Any]:
        return {str(n): means.state_dict() for n, means in enumerate(self.means)}

    def load_learning(self, state: dict[str, Any]) -> None:
        for number, means in enumerate(self.means):
            means.load_state_dict(state[str(number)])

    def _joined(self, semantic: Tensor, pixel: Tensor) -> Tensor:
        joined: Tensor = self.mix(torch.cat([semantic * self.scale, pixel], dim=-1))
        return joined

    def _apart(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.unmix(codes)
        return codes[..., : self.split_at] / self.scale, codes[..., self.split_at :]

    @torch.no_grad()
    def _search(self, latents: Tensor) -> list[Tensor]:
        rest, indices = latents.flatten(0, -2), []
        for table in self.tables:
            indices.append(nearest(rest, table))
            rest = rest - table[indices[-1]]
        return [found.view(latents.shape[:-1]) for found in indices]

    def _sum(self, indices: Sequence[Tensor]) -> Tensor:
        return torch.stack(
            [table[found] for table, found in zip(self.tables, indices, strict=True)]
        ).sum(dim=0)

    def _to_ids(self, indices: Sequence[Tensor]) -> Tensor:
        ids = torch.zeros_like(indices[0])
        for size, found in zip(self.levels, indices, strict=True):
            ids = ids * size + found
        return ids

    def _from_ids(self, ids: Tensor) -> list[Tensor]:
        indices = []
        for size in reversed(self.levels):
            indices.append(ids % size)
            ids = ids // size
        return indices[::-1]


class JointSemHiTok(SemHiTok):
    """A tokenizer whose ids a quantizer makes from both latents."""

    quantizer: Quantizer

    def latents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Semantic (b, h, w, c) and pixel (b, h, w, d)."""
        assert self.pixel.encoder is not None
        return self.semantic.latents(images, self.grid(*images.shape[-2:])), self.pixel.encoder(
            images
        )

    def _encode_whole(self, images: Tensor) -> Tensor:
        return self.quantizer.search(*self.latents(images))

    def _tell_whole(self, ids: Tensor) -> Tensor:
        decoder = self.semantic.decoder
        assert decoder is not None
        return decoder.restore(decoder(self.quantizer.lookup(ids)[0]))

    def _vectors(self, semantic: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
        return self.quantizer.lookup(self.join(semantic, pixel))


MakeQuantizer = Callable[[SemHiTok, Recipe, World], Quantizer]


class JointTrainer(SemanticTrainer):
    """Both branches learn from both losses at every step; the semantic trunk hears the pixels.

    The recipe's semantic section tells steps and optimiser, since this is the only stage.
    """

    def __init__(self, model: SemHiTok, teacher: Teacher, recipe: Recipe, world: World) -> None:
        super().__init__(model, teacher, recipe, world)
        assert isinstance(model, JointSemHiTok)
        assert model.pixel.encoder is not None and model.pixel.decoder is not None
        self.joint, self.quantizer = model, model.quantizer
        self.encoder, self.painter = model.pixel.encoder, model.pixel.decoder
        self.trained.update(
            {"encoder": self.encoder, "painter": self.painter, "quantizer": self.quantizer}
        )
        self.quantizer.requires_grad_(True).track()
        scales: dict[nn.Module, float] = {}
        if isinstance(self.quantizer, HierarchicalQuantizer):
            codebook = self.quantizer.pixel
            scales = {codebook: 1.0, codebook.offsets: recipe.pixel.offsets_lr}
        self.updater = self.make_updater(scales)
        self.average = WeightEMA(self.trained, self.config.ema)
        self.weights = {
            **{n: w for n, w in recipe.semantic.weights.items() if n != "commitment"},
            **{
                n: w for n, w in recipe.pixel.weights.items() if n not in ("commitment", "codebook")
            },
            "quantizer": 1.0,
        }

    @torch.no_grad()
    def begin(self, batches: Iterator[Tensor]) -> None:
        """As both stages begin: fitted projection, linear paths, k-means of the latents."""
        super().begin(batches)
        pictures = [self.world.gather_rows(next(batches)) for _ in range(FIT_BATCHES)]
        fit_linear_paths(self.encoder, self.painter, torch.cat(pictures))
        generator = torch.Generator().manual_seed(self.recipe.seed + 1)
        rows = [tuple(x.flatten(0, 2) for x in self.joint.latents(p)) for p in pictures]
        semantic, pixel = (torch.cat(part) for part in zip(*rows, strict=True))
        self.quantizer.begin(semantic, pixel, generator)
        self.average = WeightEMA(self.trained, self.config.ema)

    def step(self, images: Tensor, step: int) -> Losses:
        """One update from this rank's pictures (b, 3, height, width)."""
        grid = self.model.grid(*images.shape[-2:])
        with torch.no_grad():
            target = self.decoder.standardize(self.teacher(images, grid))
        semantic = self.projection(self.branch.trunk_features(images, grid))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._reduced):
            pixel = self.encoder(images)
        tokens = self.quantizer(semantic, pixel.float())
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._reduced):
            predicted = self.decoder(tokens.semantic)
            fake = self.painter(join_vectors(tokens.semantic, tokens.pixel))
        losses = semantic_losses(predicted, target) | pixel_distances(fake, images)
        losses["quantizer"] = tokens.loss
        losses["total"] = weighted(losses, self.weights)
        losses["total"].backward()
        norm = self.updater.update(step)
        self.average.update(self.trained, step)
        last = step >= 0.9 * self.config.steps
        seen = (semantic.detach().flatten(0, 2), pixel.detach().float().flatten(0, 2))
        restarted = self.quantizer.learn(*seen, tokens.ids.flatten(), step, last, self.world)
        size = self.model.config.vocab_size
        return {
            **{f"loss/{name}": loss.detach() for name, loss in losses.items()},
            **usage("ids", tokens.ids.flatten(), size),
            "ids/restarted": torch.tensor(float(restarted)),
            "gradient_norm": norm,
        }

    def finish(self) -> None:
        """Take the averaged weights."""
        self.average.copy_to(self.trained)
        round_to_half(self.projection)

    @torch.no_grad()
    def samples(self, images: Tensor) -> Tensor:
        """Reconstructions by the weights as they learn."""
        return self.model.decode(self.model.encode(images)).clone()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "quantizer": self.quantizer.learning()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.quantizer.load_learning(state["quantizer"])


def joint(make: MakeQuantizer, recipe: Recipe) -> Callable[[TokenizerConfig, Teacher], SemHiTok]:
    """Builds a tokenizer around the quantizer that `make` makes."""

    def build(config: TokenizerConfig, teacher: Teacher) -> SemHiTok:
        model = JointSemHiTok(config, teacher)
        model.quantizer = make(model, recipe, World.join())
        return model

    return build
