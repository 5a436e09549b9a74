"""The semantic branch: what a patch means, as one of K codes (stage 1, VQ-KD)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semhitok.errors import FormatError
from semhitok.model.codebook import SemanticCodebook
from semhitok.model.config import ALL_PARTS, Part, SemanticConfig, TransformerConfig
from semhitok.model.layers import Transformer
from semhitok.model.precision import products_in
from semhitok.model.student import Student
from semhitok.model.teacher import Teacher


class Projection(nn.Module):
    """Features of the trunk to unit latents: each channel over its deviation, then a linear map.

    The map is the identity (`standardize`), the leading principal components (`pca`), both fixed by
    `fit`, or VQ-KD's trained Linear-Tanh-Linear (`mlp`), which learns codes that are easy to hit
    and forgets what they meant; so the default is fixed and wide.
    """

    scale: Tensor

    def __init__(self, feature_dim: int, code_dim: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("scale", torch.ones(feature_dim))
        self.map: nn.Module
        if kind == "standardize":
            if code_dim != feature_dim:
                raise FormatError(
                    f"code_dim is {code_dim}; projection 'standardize' keeps the teacher's "
                    f"{feature_dim} channels: set code_dim to that, or choose 'pca'"
                )
            self.map = nn.Identity()
        elif kind == "pca":
            self.map = nn.Linear(feature_dim, code_dim).requires_grad_(False)
        else:
            self.map = nn.Sequential(
                nn.Linear(feature_dim, feature_dim), nn.Tanh(), nn.Linear(feature_dim, code_dim)
            )

    @torch.no_grad()
    def fit(self, features: Float[Tensor, "n d"]) -> None:
        """Set what is fixed from a sample of features: deviations, principal components."""
        self.scale.copy_(1 / features.std(dim=0).clamp_min(1e-6))
        if self.kind == "pca":
            assert isinstance(self.map, nn.Linear)
            scaled = (features * self.scale).double()
            mean = scaled.mean(dim=0)
            _, vectors = torch.linalg.eigh(torch.cov((scaled - mean).T))
            components = vectors.flip(-1)[:, : self.map.out_features].T
            # An eigenvector's sign is arbitrary: fix it, so that reruns agree.
            strongest = components.abs().argmax(dim=1, keepdim=True)
            components = components * components.gather(1, strongest).sign()
            self.map.weight.copy_(components)
            self.map.bias.copy_(-components @ mean)

    def forward(self, features: Float[Tensor, "*grid d"]) -> Float[Tensor, "*grid c"]:
        return F.normalize(self.map(features * self.scale), dim=-1)


class SemanticDecoder(nn.Module):
    """Predicts the teacher's features, each channel standardised, from code vectors."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, code_dim: int, feature_dim: int, config: TransformerConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(code_dim, config.width)
        self.transformer = Transformer(config)
        self.head = nn.Linear(config.width, feature_dim)
        # Beside the transformer, the line that a code's own mean feature needs.
        self.skip = nn.Linear(code_dim, feature_dim, bias=False)
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("deviation", torch.ones(feature_dim))

    def forward(self, vectors: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w d"]:
        # The codes are unit vectors: scaled to unit entries, as the layers expect.
        vectors = vectors * vectors.shape[-1] ** 0.5
        out: Tensor = self.head(self.transformer(self.embed(vectors))) + self.skip(vectors)
        return out

    def standardize(self, features: Float[Tensor, "*grid d"]) -> Float[Tensor, "*grid d"]:
        """The teacher's features as this decoder's targets."""
        return (features - self.mean) / self.deviation

    def restore(self, standardized: Float[Tensor, "*grid d"]) -> Float[Tensor, "*grid d"]:
        """Inverse of `standardize`."""
        return standardized * self.deviation + self.mean


class SemanticBranch(nn.Module):
    """Trunk, projection, codebook and decoder of the semantic codes.

    The trunk is whatever sees the picture: the frozen teacher, a copy trained in stage 1, or a
    student. Nothing in this branch ever gets a gradient from a pixel loss (contract C3).
    """

    def __init__(
        self,
        config: SemanticConfig,
        teacher: Teacher | None = None,
        parts: Sequence[Part] = ALL_PARTS,
    ) -> None:
        """Build the branch; `teacher` brings weights, or random ones follow `config.teacher`."""
        super().__init__()
        self.config = config
        dim = config.teacher.dim
        self.codebook = SemanticCodebook(config.num_codes, config.code_dim, config.feedback)
        self.trunk: Teacher | Student | None = None
        self.projection: Projection | None = None
        self.decoder: SemanticDecoder | None = None
        if "encode" in parts:
            self.trunk = _build_trunk(config, teacher)
            self.projection = Projection(dim, config.code_dim, config.projection)
        if "features" in parts:
            self.decoder = SemanticDecoder(config.code_dim, dim, config.decoder)

    def trunk_features(
        self, images: Float[Tensor, "b 3 height width"], grid: tuple[int, int]
    ) -> Float[Tensor, "b h w d"]:
        """What enters the projection."""
        assert self.trunk is not None
        features: Tensor = self.trunk(images, grid)
        return features

    def latents(
        self, images: Float[Tensor, "b 3 height width"], grid: tuple[int, int]
    ) -> Float[Tensor, "b h w c"]:
        """Unit latents before quantization; float32 from the trunk's features on."""
        assert self.projection is not None
        features = self.trunk_features(images, grid).float()
        with products_in(torch.float32, features.device):
            latents: Tensor = self.projection(features)
        return latents

    def encode(
        self, images: Float[Tensor, "b 3 height width"], grid: tuple[int, int]
    ) -> Int64[Tensor, "b h w"]:
        """Semantic codes i."""
        return self.codebook.search(self.latents(images, grid))

    def features(self, indices: Int64[Tensor, "b h w"]) -> Float[Tensor, "b h w d"]:
        """The teacher's features, in its own units, as the codes tell them."""
        assert self.decoder is not None
        return self.decoder.restore(self.decoder(self.codebook.lookup(indices)))


def _build_trunk(config: SemanticConfig, teacher: Teacher | None) -> Teacher | Student:
    if config.trunk == "student":
        assert config.student is not None
        return Student(config.student, config.teacher)
    teacher = teacher if teacher is not None else Teacher.from_config(config.teacher)
    return teacher if config.trunk == "frozen" else teacher.trainable_copy()
