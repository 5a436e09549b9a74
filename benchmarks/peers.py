"""`encode` of semhitok-256 beside the public tokenizers at 256 px, all with random weights.

python benchmarks/peers.py --peers FOLDER  (without --peers, only ours)

FOLDER holds checkouts by these names, each at the commit that was run:

    llamagen    github.com/FoundationVision/LlamaGen      ce98ec41803a74a90ce68c40ababa9eaeffeb4ec
    tokenflow   github.com/ByteVisionLab/TokenFlow        9812da01c0695f4989060cc4eea053715e9e4441
    unitok      github.com/FoundationVision/UniTok        bb8012e8e8d7be66928bedd80506c56a55ea6305
    seed-voken  github.com/TencentARC/SEED-Voken (IBQ)    b9a17eac8e2c0779c12a5429b0bfd6c502788484

Their encoders need `pip install einops timm==1.0.8 ftfy regex pytz typed-argument-parser`. A peer
that is missing or does not build is named with the reason and left out.

Each picture goes in as RGB in [0, 1] and comes out as ids: normalisation and quantization are in
the time. What runs is each one's own `encode`, code vectors of the ids included where it makes
them. Decoders and text towers are dropped, and are neither timed nor counted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import math
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import packaging.version
import torch
import yaml
from protocol import bar, product, protocol, race, show
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from semhitok import SemHiTok
from semhitok.train.run import planned_config

SIZE = 256
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Contestant:
    """A tokenizer's way from pictures to ids."""

    name: str
    encode: Callable[[Tensor, torch.dtype], Tensor]
    """RGB in [0, 1] and the precision of products to ids, the batch first."""
    weights: int
    """Of the encode path, codes included."""
    bits: float
    """Of one id."""


# -- ours ------------------------------------------------------------------------------------------


def ours(recipe: str) -> Contestant:
    model = SemHiTok(planned_config(recipe), parts=("encode",)).eval()
    trunk, projection = model.semantic.trunk, model.semantic.projection
    assert trunk is not None and projection is not None
    # Else the latents of random weights lie in one spot, and near-ties are searched in float64.
    size = model.config.image_size
    with torch.inference_mode():
        features = trunk(torch.rand(4, 3, size, size), model.grid(size, size))
        projection.fit(features.flatten(0, 2))
    return _contestant(model)


def tiny() -> Contestant:
    return _contestant(SemHiTok.from_pretrained("tiny", parts=("encode",)).eval())


def _contestant(model: SemHiTok) -> Contestant:
    # The semantic codes are a buffer, and not a parameter as the codes of the others are.
    weights = count(model) + model.semantic.codebook.codes.numel()
    return Contestant(
        model.config.name,
        lambda images, dtype: model.set_precision(dtype).encode(images),
        weights,
        math.log2(model.vocab_size),
    )


# -- theirs ----------------------------------------------------------------------------------------


def llamagen(folder: Path) -> Contestant:
    """VQ-16, 16,384 codes of 8: the defaults of `ModelArgs` and of vq_train.py."""
    with code_of(folder):
        module = importlib.import_module("tokenizer.tokenizer_image.vq_model")
        model = module.VQ_models["VQ-16"](codebook_size=16384, codebook_embed_dim=8)
    drop(model, "decoder", "post_quant_conv")
    return peer("LlamaGen VQ-16", model, lambda x: model.encode(x)[2][2], 16384)


def tokenflow(folder: Path) -> Contestant:
    """CLIP-B and CNN encoders, 32,768 shared codes of 32 + 8, nine scales.

    The one with published weights that runs at 256 px (tokenflow_clipb_32k_enhanced), by
    scripts/reconstruction_vq.sh: positions interpolated from 224 px.
    """

    def random_clip(module: Any) -> nn.Module:
        # What `load_clip_vision` builds from the download for ViT-B/16.
        visual = module.VisionTransformer(224, 16, 768, 12, 12, 512)
        del visual.proj
        return visual

    # It imports two helpers that transformers 5 no longer has, for properties that we do not read.
    modeling = importlib.import_module("transformers.modeling_utils")
    for gone in ("get_parameter_device", "get_parameter_dtype"):
        vars(modeling).setdefault(gone, None)
    with code_of(folder / "tokenflow"):
        module = importlib.import_module("tokenizer.vq_model")
        clip = module.clip
        clip.load_clip_vision = lambda *_, **__: random_clip(clip)
        model = module.VQ_models["TokenFlow"](
            codebook_size=32768,
            codebook_embed_dim=8,
            semantic_code_dim=32,
            teacher="clipb_224",
            infer_interpolate=True,
        )
    drop(model, "decoder", "decoder_vqkd", "decode_task_layer", "post_quant_conv")
    return peer("TokenFlow CLIP-B", model, lambda x: model.encode(x)[2], 32768)


def unitok(folder: Path) -> Contestant:
    """ViTamin-L, 8 codebooks of 4,096 codes of 8: the defaults of utils/config.py, launch.sh."""
    with code_of(folder):
        args = importlib.import_module("utils.config").Args()
        # It saves memory in training, and would only wrap the blocks here.
        args.grad_ckpt = False
        model = importlib.import_module("models.unitok").UniTok(args)
    drop(model, "decoder", "post_quant_proj", "text_encoder", "fc_norm", "projection")
    del model.logit_scale
    return peer("UniTok", model, model.img_to_idx, args.vocab_size // args.num_codebooks)


def ibq(folder: Path) -> Contestant:
    """16,384 codes of 256: configs/IBQ/gpu/imagenet_ibqgan_16384.yaml.

    The encoder is the same for 262,144 codes. Their `encode` multiplies three times with all codes
    (logits, and code vectors of the soft and the hard choice): 6 GFLOP here, 103 there.
    """
    text = (folder / "configs/IBQ/gpu/imagenet_ibqgan_16384.yaml").read_text()
    options = yaml.safe_load(text)["model"]["init_args"]
    options["lossconfig"] = {"target": "torch.nn.Identity"}
    # Their `encode` would compute the entropy loss too: leave that out, and the EMA copy.
    options.update(learning_rate=1e-4, use_entropy_loss=False, use_ema=False)
    with code_of(folder):
        model = importlib.import_module("src.IBQ.models.ibqgan").IBQ(**options)
    drop(model, "decoder", "post_quant_conv", "loss")
    codes = options["n_embed"]
    return peer("IBQ 16,384", model, lambda x: model.encode(x)[2][2], codes)


PEERS = {"llamagen": llamagen, "tokenflow": tokenflow, "unitok": unitok, "seed-voken": ibq}


def peer(name: str, model: nn.Module, ids: Callable[[Tensor], Tensor], codes: int) -> Contestant:
    """All four are fed RGB in [-1, 1]."""
    model.eval()

    def encode(images: Tensor, dtype: torch.dtype) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return ids(images * 2 - 1).reshape(len(images), -1)

    return Contestant(name, encode, count(model), math.log2(codes))


def drop(model: nn.Module, *parts: str) -> None:
    for part in parts:
        delattr(model, part)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def load_peers(folder: Path) -> Iterator[Contestant]:
    for name, build in PEERS.items():
        if not (folder / name).is_dir():
            print(f"{name} left out: there is no {folder / name}")
            continue
        try:
            yield build(folder / name)
        except Exception as error:  # their code, and whatever it needs
            print(f"{name} left out: {type(error).__name__}: {error}")


# -- their imports ---------------------------------------------------------------------------------

# Imported beside the encoders for data, training and downloads, and never called by `encode`:
# where one is not installed, names of it resolve to empty classes while a peer is built.
UNUSED = ("torchvision", "lightning", "pytorch_lightning", "pkg_resources")


class Empty(type):
    """A class all of whose attributes are such classes."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Empty(name, (), {})


class Stub(types.ModuleType):
    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        # IBQ is a LightningModule: a Module with hooks for training. TokenFlow's CLIP compares
        # versions at import, by the `packaging` that older setuptools carried.
        known = {"LightningModule": nn.Module, "packaging": packaging}
        return known.get(name) or Empty(name, (), {})


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds those of `UNUSED` that are not installed."""

    def __init__(self) -> None:
        self.roots = [name for name in UNUSED if importlib.util.find_spec(name) is None]

    def find_spec(self, name: str, path: object, target: object = None) -> Any:
        if name.partition(".")[0] in self.roots:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextlib.contextmanager
def code_of(folder: Path) -> Iterator[None]:
    """Imports from a checkout, in silence; their modules (all have a `utils`) are gone after."""
    before, path, stubs = set(sys.modules), list(sys.path), Stubs()
    precision = torch.get_float32_matmul_precision()
    sys.path.insert(0, str(folder))
    sys.meta_path.append(stubs)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name in [n for n in sys.modules if n not in before and _is_of(n, folder)]:
            del sys.modules[name]
        sys.meta_path.remove(stubs)
        sys.path[:] = path
        torch.set_float32_matmul_precision(precision)  # importing IBQ's main.py lowers it


def _is_of(name: str, folder: Path) -> bool:
    spec = getattr(sys.modules[name], "__spec__", None)
    if spec is None or isinstance(spec.loader, Stubs):
        return spec is not None
    # A folder without __init__.py, as some of theirs are, has no origin.
    place = spec.origin or str(next(iter(spec.submodule_search_locations or ()), ""))
    return Path(place).is_relative_to(folder)


# -- the race --------------------------------------------------------------------------------------


def operations(contestant: Contestant, images: Tensor) -> int:
    """Of one picture, two for each multiply-add.

    With attention written out: the counter does not see into the fused kernels of the CPU.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            contestant.encode(images[:1], torch.float32)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def seconds(
    contestants: Sequence[Contestant], images: Tensor, dtype: torch.dtype, repeats: int, side: int
) -> dict[str, float]:
    """Of one batch by name, and of a matrix product under "peak"."""
    work: dict[str, Callable[[], object]] = {"peak": product(dtype, side)}
    for contestant in contestants:
        work[contestant.name] = lambda encode=contestant.encode: encode(images, dtype)
    return race(work, repeats)


def verdicts(
    names: Sequence[str], flops: dict[str, int], took: dict[str, float], dtype: str
) -> Iterator[str]:
    """Whether the first, ours, is faster than each that needs at least as many FLOPs."""
    first, *others = names
    for name in others:
        speed, share = took[name] / took[first], flops[name] / flops[first]
        title = f"pictures/s over {name}, {dtype} (it needs {share:.2f} of our FLOPs)"
        yield bar(title, speed, 1) if share >= 1 else f"{title}: {speed:.4g}x, no bar"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, help="folder of the checkouts named above")
    parser.add_argument("--recipe", default="semhitok-256")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=SIZE, help="pixels; the peers want 256")
    parser.add_argument("--peak-side", type=int, default=2048, help="of the matrix product")
    parser.add_argument("--dtypes", nargs="*", choices=list(DTYPES), default=list(DTYPES))
    o = parser.parse_args()
    if o.peers is not None and o.size != SIZE:
        parser.error(f"--size is {o.size}; the peers' published models are for {SIZE}")
    torch.manual_seed(0)
    print(protocol(o.repeats, f"batch of {o.batch_size}, {o.size} px, random weights"))
    first = ours(o.recipe)
    peers = list(load_peers(o.peers.resolve())) if o.peers is not None else []
    contestants = [first, *peers, tiny()]
    images = torch.rand(o.batch_size, 3, o.size, o.size)

    flops, rows = {}, []
    for c in contestants:
        flops[c.name] = operations(c, images)
        ids = c.encode(images[:1], torch.float32).numel()
        row = [f"{c.weights / 1e6:.1f}", f"{flops[c.name] / 1e9:.1f}", f"{ids:,}"]
        rows.append([c.name, *row, f"{ids * c.bits:,.0f}"])
    print()
    show(["encoder", "M weights", "GFLOP a picture", "ids", "bits"], rows)

    lines: list[str] = []
    for name in o.dtypes:
        took = seconds(contestants, images, DTYPES[name], o.repeats, o.peak_side)
        peak = 2 * o.peak_side**3 / took.pop("peak") / 1e9
        print(f"\n{name}; a matrix product of {o.peak_side} reaches {peak:.0f} GFLOP/s")
        rows = []
        for encoder in sorted(took, key=lambda encoder: took[encoder]):
            pictures = o.batch_size / took[encoder]
            rate = pictures * flops[encoder] / 1e9
            rows.append([encoder, f"{pictures:.2f}", f"{rate:.0f}", f"{rate / peak:.0%}"])
        show(["encoder", "pictures/s", "GFLOP/s", "of peak"], rows)
        lines += verdicts([first.name, *(c.name for c in peers)], flops, took, name)
    print("", *lines, sep="\n")


if __name__ == "__main__":
    main()
