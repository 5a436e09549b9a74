"""FID-Inception, the network in which rFID is measured, and no other.

It is the TensorFlow graph of 2015-12-05 as torch-fidelity converted it: average pools that leave
padding out, a maximum in the pool of the last block, TensorFlow 1's bilinear resize to 299 px. Each
of these moves the figure; torchvision's Inception gives another one.

Reference: Heusel et al., TTUR, arXiv:1706.08500; Szegedy et al., arXiv:1512.00567.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from semhitok.errors import FormatError, NotFoundError

WEIGHTS_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
WEIGHTS_SHA256_START = "6726825d"
ENVIRONMENT_VARIABLE = "SEMHITOK_INCEPTION"
SIDE = 299
"""Pixels that the network sees, whatever the picture's size."""


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, width_in: int, width_out: int, kernel: tuple[int, int], stride: int, same: bool
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if same else (0, 0)
        self.conv = nn.Conv2d(width_in, width_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width_out, eps=0.001)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        return F.relu(self.bn(self.conv(x)))


class Step(NamedTuple):
    """A named convolution of a path. One that strides is not padded."""

    name: str
    width: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1


Pool = Callable[[Tensor], Tensor]
Chain = list[Pool | Step | tuple[Step, Step]]
"""Steps one after the other; a pair is two convolutions side by side, which only ends a path."""


class Mixed(nn.Module):
    """Paths side by side from the same input, their outputs joined along channels."""

    def __init__(self, width_in: int, paths: list[Chain]) -> None:
        super().__init__()
        self.paths = paths
        self.width_out = 0
        for path in paths:
            width = width_in
            for step in path:
                if callable(step):
                    continue
                pair = (step,) if isinstance(step, Step) else step
                for name, out, kernel, stride in pair:
                    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
                    self.add_module(name, Convolution(width, out, sides, stride, stride == 1))
                width = sum(one.width for one in pair)
            self.width_out += width

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        return torch.cat([self._follow(path, x) for path in self.paths], dim=1)

    def _follow(self, path: Chain, x: Tensor) -> Tensor:
        for step in path:
            if callable(step):
                x = step(x)
            elif isinstance(step, Step):
                x = self.get_submodule(step.name)(x)
            else:
                x = torch.cat([self.get_submodule(one.name)(x) for one in step], dim=1)
        return x


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, kernel_size=3, stride=2)


def _block_a(pool_width: int) -> list[Chain]:
    return [
        [Step("branch1x1", 64)],
        [Step("branch5x5_1", 48), Step("branch5x5_2", 64, 5)],
        [Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, 3), Step("branch3x3dbl_3", 96, 3)],
        [_average, Step("branch_pool", pool_width)],
    ]


def _block_b() -> list[Chain]:
    double: Chain = [
        Step("branch3x3dbl_1", 64),
        Step("branch3x3dbl_2", 96, 3),
        Step("branch3x3dbl_3", 96, 3, stride=2),
    ]
    return [[Step("branch3x3", 384, 3, stride=2)], double, [_halve]]


def _block_c(width: int) -> list[Chain]:
    row, column = (1, 7), (7, 1)
    return [
        [Step("branch1x1", 192)],
        [
            Step("branch7x7_1", width),
            Step("branch7x7_2", width, row),
            Step("branch7x7_3", 192, column),
        ],
        [
            Step("branch7x7dbl_1", width),
            Step("branch7x7dbl_2", width, column),
            Step("branch7x7dbl_3", width, row),
            Step("branch7x7dbl_4", width, column),
            Step("branch7x7dbl_5", 192, row),
        ],
        [_average, Step("branch_pool", 192)],
    ]


def _block_d() -> list[Chain]:
    return [
        [Step("branch3x3_1", 192), Step("branch3x3_2", 320, 3, stride=2)],
        [
            Step("branch7x7x3_1", 192),
            Step("branch7x7x3_2", 192, (1, 7)),
            Step("branch7x7x3_3", 192, (7, 1)),
            Step("branch7x7x3_4", 192, 3, stride=2),
        ],
        [_halve],
    ]


def _block_e(pool: Pool) -> list[Chain]:
    row, column = (1, 3), (3, 1)
    return [
        [Step("branch1x1", 320)],
        [
            Step("branch3x3_1", 384),
            (Step("branch3x3_2a", 384, row), Step("branch3x3_2b", 384, column)),
        ],
        [
            Step("branch3x3dbl_1", 448),
            Step("branch3x3dbl_2", 384, 3),
            (Step("branch3x3dbl_3a", 384, row), Step("branch3x3dbl_3b", 384, column)),
        ],
        [pool, Step("branch_pool", 192)],
    ]


class Inception(nn.Module):
    """2,048 features of a picture: the mean of the last grid."""

    def __init__(self) -> None:
        super().__init__()
        three, one = (3, 3), (1, 1)
        self.Conv2d_1a_3x3 = Convolution(3, 32, three, 2, same=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, three, 1, same=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, three, 1, same=True)
        self.Conv2d_3b_1x1 = Convolution(64, 80, one, 1, same=False)
        self.Conv2d_4a_3x3 = Convolution(80, 192, three, 1, same=False)
        width = 192
        for name, paths in _blocks():
            block = Mixed(width, paths)
            self.add_module(name, block)
            width = block.width_out

    @classmethod
    def load(cls, path: Path) -> Inception:
        """The frozen network in float32, from torch-fidelity's file or the same as safetensors.

        Raises:
            NotFoundError: there is no such file.
            FormatError: the file holds another network.
        """
        weights = _read(path)
        network = cls()
        wanted = network.state_dict()
        # Counters of training, and the classifier, take no part.
        wanted = {k: v for k, v in wanted.items() if not k.endswith("num_batches_tracked")}
        odd = [k for k, v in wanted.items() if k not in weights or weights[k].shape != v.shape]
        if odd:
            raise FormatError(
                f"{path} is not FID-Inception: {len(odd)} tensors are missing or of another "
                f"shape, first {odd[0]!r}; get {WEIGHTS_URL}"
            )
        network.load_state_dict({k: weights[k] for k in wanted}, strict=False)
        return network.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        """Features of pictures in [0, 1], rounded to 8 bits as files would be."""
        x = resize_like_tensorflow((images * 255).round(), SIDE)
        x = (x - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = _halve(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halve(x))))
        for name, _ in _blocks():
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))


def _blocks() -> Iterator[tuple[str, list[Chain]]]:
    for name, pool_width in (("5b", 32), ("5c", 64), ("5d", 64)):
        yield f"Mixed_{name}", _block_a(pool_width)
    yield "Mixed_6a", _block_b()
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        yield f"Mixed_{name}", _block_c(width)
    yield "Mixed_7a", _block_d()
    yield "Mixed_7b", _block_e(_average)
    yield "Mixed_7c", _block_e(_maximum)


def resize_like_tensorflow(x: Float[Tensor, "b c h w"], side: int) -> Float[Tensor, "b c s s"]:
    """Bilinear as TensorFlow 1 did it: corners at 0, and no low-pass filter where it shrinks."""
    for axis in (2, 3):
        length = x.shape[axis]
        places = torch.arange(side, dtype=torch.float32, device=x.device) * (length / side)
        low = places.long()
        high = (low + 1).clamp_max(length - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = side
        share = (places - low).view(shape).to(x.dtype)
        first, second = x.index_select(axis, low), x.index_select(axis, high)
        x = first + (second - first) * share
    return x


def find_inception(path: str | Path | None = None) -> Path | None:
    """The file of weights: the one given, else $SEMHITOK_INCEPTION, else the one in the cache."""
    chosen = path or os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        return Path(chosen)
    return cached_weights() if cached_weights().is_file() else None


def cached_weights() -> Path:
    """Where `download` keeps the weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_URL.rsplit("/", 1)[1]


def download() -> Path:
    """Fetch the weights, once; the file is checked by its hash.

    Raises:
        NotFoundError: it cannot be fetched.
        FormatError: another file came.
    """
    target = cached_weights()
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(
                WEIGHTS_URL, str(target), hash_prefix=WEIGHTS_SHA256_START, progress=False
            )
        except RuntimeError as error:  # a wrong hash
            raise FormatError(f"{WEIGHTS_URL}: {error}") from error
        except OSError as error:
            raise NotFoundError(
                f"{WEIGHTS_URL} cannot be fetched ({error}); fetch it elsewhere and give its path"
            ) from error
    return target


def weights_hash(path: Path) -> str:
    """SHA-256 (hex) of the file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}; get {WEIGHTS_URL}, or leave rFID out")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return weights
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise FormatError(f"{path} holds no weights: {' '.join(str(error).split())}") from error
