"""Learned perceptual distance on the three networks it is published for, and the judge's network.

`LPIPS` is differentiable and can be trained against. A model trained against it must not be judged
by it: a loss that is also the measure only says how well it was minimised.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semhitok.errors import FormatError, NotFoundError, ShapeError

TrunkName = Literal["alex", "squeeze", "vgg"]
TRUNK_NAMES: tuple[TrunkName, ...] = get_args(TrunkName)
ENVIRONMENT_VARIABLE = "SEMHITOK_JUDGES"

_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, by which all three trunks were trained
_STD = (0.229, 0.224, 0.225)
_NORM_FLOOR = 1e-8  # keeps the gradient finite where all channels are zero
_FEATURES = "features."  # what torchvision puts before the names of a trunk's weights
_CHUNK_BYTES = 1 << 20
_Module = TypeVar("_Module", bound=nn.Module)


def find_judge(folder: str | Path | None = None) -> Path | None:
    """The folder of the judge's weights: the one given, else $SEMHITOK_JUDGES, else none."""
    chosen = folder or os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(chosen) if chosen else None


def find_lpips(folder: str | Path) -> list[TrunkName]:
    """The trunks of which the folder has a file; loading says where its other one is missing.

    Raises:
        NotFoundError: it has none.
    """
    pairs = {name: (TRUNKS[name].file, TRUNKS[name].heads_file) for name in TRUNK_NAMES}
    found = [name for name in TRUNK_NAMES if any((Path(folder) / f).is_file() for f in pairs[name])]
    if not found:
        allowed = "; ".join(" and ".join(pair) for pair in pairs.values())
        raise NotFoundError(f"{folder} has no weights of LPIPS; give a folder with {allowed}")
    return found


def lpips_hash(folder: str | Path, trunk: TrunkName = "squeeze") -> str:
    """SHA-256 (hex) of trunk and heads, one file after the other.

    Raises:
        NotFoundError: one of the two is not in the folder.
    """
    kind, digest = TRUNKS[trunk], hashlib.sha256()
    for name in (kind.file, kind.heads_file):
        with _weight_file(folder, kind, name).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class TrunkKind:
    """A classifier's convolutions, numbered as torchvision does, and where LPIPS looks at them."""

    title: str
    file: str
    heads_file: str
    layers: Callable[[], list[nn.Module]]
    """The layers up to the last that is compared."""
    stages: dict[int, int]
    """Channels after each layer at which LPIPS compares."""
    min_side: int
    """Smallest side in pixels that survives the reductions."""


def _squeezenet() -> list[nn.Module]:
    return [
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
    ]


def _alexnet() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        nn.ReLU(),
    ]


def _vgg16() -> list[nn.Module]:
    layers: list[nn.Module] = []
    width_in = 3
    for depth, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        if layers:
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        for _ in range(depth):
            layers += [nn.Conv2d(width_in, width, kernel_size=3, padding=1), nn.ReLU()]
            width_in = width
    return layers


TRUNKS: dict[TrunkName, TrunkKind] = {
    "alex": TrunkKind(
        title="AlexNet",
        file="alexnet.safetensors",
        heads_file="lpips_v0.1_alex.safetensors",
        layers=_alexnet,
        stages={1: 64, 4: 192, 7: 384, 9: 256, 11: 256},
        min_side=31,
    ),
    "squeeze": TrunkKind(
        title="SqueezeNet 1.1",
        file="squeezenet1_1.safetensors",
        heads_file="lpips_v0.1_squeeze.safetensors",
        layers=_squeezenet,
        stages={1: 64, 4: 128, 7: 256, 9: 384, 10: 384, 11: 512, 12: 512},
        min_side=17,
    ),
    "vgg": TrunkKind(
        title="VGG16",
        file="vgg16.safetensors",
        heads_file="lpips_v0.1_vgg.safetensors",
        layers=_vgg16,
        stages={3: 64, 8: 128, 15: 256, 22: 512, 29: 512},
        min_side=16,
    ),
}
"""AlexNet: Krizhevsky, arXiv:1404.5997. SqueezeNet: Iandola et al., arXiv:1602.07360. VGG: Simonyan
and Zisserman, arXiv:1409.1556."""


class Trunk(nn.Module):
    """The convolutions of an ImageNet-1k classifier, reading torchvision's weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: TrunkName) -> None:
        super().__init__()
        self.kind = TRUNKS[name]
        self.features = nn.Sequential(*self.kind.layers())
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    @classmethod
    def load(cls, folder: str | Path, name: TrunkName) -> Trunk:
        """The frozen trunk in float32; a classifier in the file is passed over.

        Raises:
            NotFoundError: the folder lacks its file.
            FormatError: the file is another network.
        """
        kind = TRUNKS[name]
        return _frozen(cls(name), _read_weights(folder, kind, kind.file, _FEATURES), kind.file)

    def stages(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """The grids (b, c, h', w') that LPIPS compares, from fine to coarse.

        Raises:
            ShapeError: a side is shorter than the trunk's `min_side`.
        """
        height, width = images.shape[-2:]
        if min(height, width) < self.kind.min_side:
            raise ShapeError(
                f"{self.kind.title}: picture is {height}x{width}; both sides need "
                f"{self.kind.min_side} px"
            )
        hidden, stages = (images.float() - self.mean) / self.std, []
        for index, layer in enumerate(self.features):
            hidden = layer(hidden)
            if index in self.kind.stages:
                stages.append(hidden)
        return stages


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 whole: an ImageNet-1k classifier, reading torchvision's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk("squeeze")
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, 1000, kernel_size=1))

    @classmethod
    def load(cls, folder: str | Path) -> SqueezeNet:
        """The frozen network in float32, in evaluation mode.

        Raises:
            NotFoundError: the folder lacks its file.
            FormatError: the file is not SqueezeNet 1.1.
        """
        kind = TRUNKS["squeeze"]
        weights = {
            f"trunk.{key}" if key.startswith(_FEATURES) else key: value
            for key, value in _read_weights(folder, kind, kind.file).items()
        }
        return _frozen(cls(), weights, kind.file)

    def classify(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b 512"], Float[Tensor, "b 1000"]]:
        """Features (the trunk's last grid, averaged over its places), and scores of the ImageNet-1k
        classes in order of wnid. Images are RGB in [0, 1].

        The published accuracy is for the short side at 256 px and a centre crop of 224.
        """
        last = self.trunk.stages(images)[-1]
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
    """Learned perceptual distance, version 0.1: 0 for equal pictures, less is better.

    Reference: Zhang et al., The Unreasonable Effectiveness of Deep Features, arXiv:1801.03924.
    """

    def __init__(self, trunk: TrunkName = "squeeze") -> None:
        super().__init__()
        self.trunk = Trunk(trunk)
        widths = TRUNKS[trunk].stages.values()
        self.heads = nn.ModuleList(nn.Conv2d(c, 1, 1, bias=False) for c in widths)

    @classmethod
    def load(cls, folder: str | Path, trunk: TrunkName = "squeeze") -> LPIPS:
        """The frozen measure in float32.

        Raises:
            NotFoundError: the folder lacks one of the trunk's two files.
            FormatError: a file is not what its name says.
        """
        kind, measure = TRUNKS[trunk], cls(trunk)
        measure.trunk = Trunk.load(folder, trunk)
        weights = {
            key.replace("lin", "", 1).replace("model.1.", "", 1): value
            for key, value in _read_weights(folder, kind, kind.heads_file).items()
        }
        _frozen(measure.heads, weights, kind.heads_file)
        return measure.eval()

    def forward(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, b]:
        """Distance of each pair, for RGB in [0, 1]; differentiable in both.

        Raises:
            ShapeError: a side is shorter than the trunk's `min_side`.
        """
        total = torch.zeros(len(a), device=a.device)
        stages = zip(self.heads, self.trunk.stages(a), self.trunk.stages(b), strict=True)
        for head, left, right in stages:
            difference = (_unit(left) - _unit(right)).square()
            total = total + head(difference).mean(dim=(1, 2, 3))
        return total


def _unit(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    norm = (features.square().sum(dim=1, keepdim=True) + _NORM_FLOOR).sqrt()
    return features / norm


def _pool() -> nn.Module:
    return nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)


def _weight_file(folder: str | Path, kind: TrunkKind, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise NotFoundError(
            f"{folder} has no {name}; LPIPS on {kind.title} is the two files {kind.file} and "
            f"{kind.heads_file}"
        )
    return path


def _read_weights(
    folder: str | Path, kind: TrunkKind, name: str, prefix: str = ""
) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`: VGG16's classifier is half a gigabyte."""
    from safetensors import SafetensorError, safe_open

    path = _weight_file(folder, kind, name)
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}
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
