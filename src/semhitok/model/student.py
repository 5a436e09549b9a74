"""A small encoder in a large teacher's place (VQ-KD): tokenizing then does without the teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semhitok.model.config import StudentConfig, TeacherConfig
from semhitok.model.layers import Transformer, patchify


class Student(nn.Module):
    """Patches of the teacher's stride, transformer blocks, features of the teacher's width.

    Reference: Peng et al., BEiT v2 (VQ-KD), arXiv:2208.06366.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: StudentConfig, teacher: TeacherConfig) -> None:
        super().__init__()
        self.stride = teacher.stride
        self.register_buffer("mean", torch.tensor(teacher.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(teacher.std).view(3, 1, 1), persistent=False)
        self.embed = nn.Linear(3 * teacher.stride**2, config.transformer.width)
        self.transformer = Transformer(config.transformer)
        self.head = nn.Linear(config.transformer.width, teacher.dim)

    def forward(
        self, images: Float[Tensor, "b 3 height width"], grid: tuple[int, int]
    ) -> Float[Tensor, "b h w d"]:
        """Features (b, h, w, d) of pictures in [0, 1]."""
        size = (grid[0] * self.stride, grid[1] * self.stride)
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        patches = patchify((images - self.mean) / self.std, self.stride)
        features: Tensor = self.head(self.transformer(self.embed(patches)))
        return features
