"""The judge: a network that no training here sees, and the perceptual distance made from it.

`LPIPS` is differentiable and can be trained against. A model trained against it must not be judged
by it: a loss that is also the measure only says how well it was minimised.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semhitok.errors import FormatError, NotFoundError, ShapeError

TRUNK_FILE = "squeezenet1_1.safetensors"
HEADS_FILE = "lpips_v0.1_squeeze.safetensors"
ENVIRONMENT_VARIABLE = "SEMHITOK_JUDGES"

MIN_SIDE = 17
"""Smallest side in pixels that survives SqueezeNet's four reductions."""

_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, by which SqueezeNet was trained
_STD = (0.229, 0.224, 0.225)
_STAGE_ENDS = (1, 4, 7, 9, 10, 11, 12)  # layers of the trunk after which LPIPS compares
_STAGE_WIDTHS = (64, 128, 256, 384, 384, 512, 512)
_NORM_FLOOR = 1e-8  # keeps the gradient finite where all channels are zero
_Module = TypeVar("_Module", bound=nn.Module)


def find_judge(folder: str | Path | None = None) -> Path | None:
    """The folder of the judge's weights: the one given, else $SEMHITOK_JUDGES, else none."""
    chosen = folder or os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(chosen) if chosen else None


def judge_hash(folder: str | Path) -> str:
    """SHA-256 (hex) of the two weight files, one after the other.

    Raises:
        NotFoundError: one of the two is not in the folder.
    """
    digest = hashlib.sha256()
    for name in (TRUNK_FILE, HEADS_FILE):
        digest.update(_weight_file(folder, name).read_bytes())
    return digest.hexdigest()


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1, an ImageNet-1k classifier, reading torchvision's weights.

    Reference: Iandola et al., SqueezeNet, arXiv:1602.07360.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=3, stride=2),
            nn.ReLU(),
            _pool(),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            _pool(),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            _pool(),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, 1000, kernel_size=1))
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    @classmethod
    def load(cls, folder: str | Path) -> SqueezeNet:
        """The frozen network in float32, in evaluation mode.

        Raises:
            NotFoundError: the folder lacks one of the judge's two files.
            FormatError: the file is not SqueezeNet 1.1.
        """
        # torchvision calls the trunk `features`; here that is the method which gives them.
        weights = {
            key.replace("features.", "trunk.", 1): value
            for key, value in _read_weights(folder, TRUNK_FILE).items()
        }
        return _frozen(cls(), weights, TRUNK_FILE)

    def stages(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Seven grids (b, c, h', w'), from fine to coarse, as LPIPS compares them.

        Raises:
            ShapeError: a side is shorter than MIN_SIDE.
        """
        height, width = images.shape[-2:]
        if min(height, width) < MIN_SIDE:
            raise ShapeError(f"judge: picture is {height}x{width}; both sides need {MIN_SIDE} px")
        hidden, stages = (images.float() - self.mean) / self.std, []
        for index, layer in enumerate(self.trunk):
            hidden = layer(hidden)
            if index in _STAGE_ENDS:
                stages.append(hidden)
        return stages

    def classify(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b 512"], Float[Tensor, "b 1000"]]:
        """Features (the trunk's last grid, averaged over its places), and scores of the ImageNet-1k
        classes in order of wnid. Images are RGB in [0, 1].

        The published accuracy is for the short side at 256 px and a centre crop of 224.
        """
        last = self.stages(images)[-1]
        return last.mean(dim=(2, 3)), F.relu(self.classifier(last)).mean(dim=(2, 3))


class Fire(nn.Module):
    """Squeeze to few channels, then expand by 1x1 and 3x3 convolutions side by side."""

    def __init__(self, width_in: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width_in, squeezed, kernel_size=1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, kernel_size=1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, kernel_size=3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Twice `expanded` channels."""
        squeezed = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], dim=1))


class LPIPS(nn.Module):
    """Learned perceptual distance (version 0.1, SqueezeNet): 0 for equal pictures, less is better.

    Reference: Zhang et al., The Unreasonable Effectiveness of Deep Features, arXiv:1801.03924.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = SqueezeNet()
        self.heads = nn.ModuleList(nn.Conv2d(c, 1, 1, bias=False) for c in _STAGE_WIDTHS)

    @classmethod
    def load(cls, folder: str | Path) -> LPIPS:
        """The frozen measure in float32.

        Raises:
            NotFoundError: the folder lacks one of the judge's two files.
            FormatError: a file is not what its name says.
        """
        judge = cls()
        judge.network = SqueezeNet.load(folder)
        weights = {
            key.replace("lin", "", 1).replace("model.1.", "", 1): value
            for key, value in _read_weights(folder, HEADS_FILE).items()
        }
        _frozen(judge.heads, weights, HEADS_FILE)
        return judge.eval()

    def forward(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, b]:
        """Distance of each pair, for RGB in [0, 1]; differentiable in both.

        Raises:
            ShapeError: a side is shorter than MIN_SIDE.
        """
        total = torch.zeros(len(a), device=a.device)
        stages = zip(self.heads, self.network.stages(a), self.network.stages(b), strict=True)
        for head, left, right in stages:
            difference = (_unit(left) - _unit(right)).square()
            total = total + head(difference).mean(dim=(1, 2, 3))
        return total


def _unit(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    norm = (features.square().sum(dim=1, keepdim=True) + _NORM_FLOOR).sqrt()
    return features / norm


def _pool() -> nn.Module:
    return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)


def _weight_file(folder: str | Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise NotFoundError(
            f"{folder} has no {name}; the judge is the two files {TRUNK_FILE} and {HEADS_FILE}"
        )
    return path


def _read_weights(folder: str | Path, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _weight_file(folder, name)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise FormatError(f"{path} is not a safetensors file: {error}") from error


def _frozen(module: _Module, weights: dict[str, Tensor], name: str) -> _Module:
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    if wanted != found:
        odd = sorted(key for key in wanted | found if wanted.get(key) != found.get(key))
        raise FormatError(f"{name} is another network: {len(odd)} tensors differ, first {odd[0]!r}")
    module.load_state_dict(weights)
    return module.eval().requires_grad_(False)
