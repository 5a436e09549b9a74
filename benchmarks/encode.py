"""What `encode` of semhitok-256 costs beside its teacher alone, and pictures/s of the bundled tiny.

python benchmarks/encode.py  (semhitok-256 has random weights; the tiny model is the bundled one)
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from protocol import bar, product, protocol, race, show
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from semhitok import SemHiTok
from semhitok.model.config import TokenizerConfig
from semhitok.train.run import planned_config

SMALL = """
extends: semhitok-256
teacher:
  architecture: {hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2,
    num_attention_heads: 2, image_size: 64}
model:
  image_size: 64
  semantic: {num_codes: 64, code_dim: 32, decoder: {width: 32, depth: 1, heads: 1}}
  pixel:
    encoder: {width: 32, depth: 1, heads: 1}
    decoder: {transformer: {width: 32, depth: 1, heads: 1}}
    enhance: {transformer: {width: 32, depth: 1, heads: 1}}
"""


def planned(quick: bool) -> TokenizerConfig:
    if not quick:
        return planned_config("semhitok-256")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.yaml"
        path.write_text("name: small" + SMALL)
        return planned_config(str(path))


def operations(config: TokenizerConfig) -> dict[str, int]:
    """Of one picture, two for each multiply-add."""
    with torch.device("meta"):
        model = SemHiTok(config, parts=("encode",)).eval()
    trunk, encoder = model.semantic.trunk, model.pixel.encoder
    assert trunk is not None and encoder is not None
    side = config.image_size // config.patch_size
    images = torch.empty(1, 3, config.image_size, config.image_size, device="meta")

    def count(work: Callable[[], object]) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            work()
        return int(counter.get_total_flops())

    teacher = count(lambda: trunk(images, (side, side)))
    semantic, pixel = config.semantic, config.pixel
    return {
        "teacher": teacher,
        "projection": count(lambda: model.semantic.latents(images, (side, side))) - teacher,
        "semantic search": 2 * side**2 * semantic.num_codes * semantic.code_dim,
        "pixel encoder": count(lambda: encoder(images)),
        "pixel search": 2 * side**2 * pixel.num_codes * pixel.code_dim,
    }


def parts_of(model: SemHiTok, images: Tensor) -> dict[str, Callable[[], object]]:
    """`encode` and what it is made of, each from inputs that are there already."""
    semantic, pixel, grid = model.semantic, model.pixel, model.grid(*images.shape[-2:])
    trunk, projection, encoder = semantic.trunk, semantic.projection, pixel.encoder
    assert trunk is not None and projection is not None and encoder is not None
    features = trunk(images, grid)
    latents, pixel_latents = projection(features), encoder(images)
    parents = semantic.codebook.search(latents)
    return {
        "encode": lambda: model.encode(images),
        "teacher": lambda: trunk(images, grid),
        "projection": lambda: projection(features),
        "semantic search": lambda: semantic.codebook.search(latents),
        "pixel encoder": lambda: encoder(images),
        "pixel search": lambda: pixel.codebook.search(pixel_latents, parents),
    }


@torch.inference_mode()
def compare(
    config: TokenizerConfig, batch: int, repeats: int, side: int
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Seconds of each part by dtype, and GFLOP/s of a matrix product."""
    torch.manual_seed(0)
    model = SemHiTok(config, parts=("encode",)).eval()
    semantic = model.semantic
    assert semantic.trunk is not None and semantic.projection is not None
    images = torch.rand(batch, 3, config.image_size, config.image_size)
    # Else the latents of random weights lie in one spot, and near-ties are searched in float64.
    features = semantic.trunk(images, model.grid(*images.shape[-2:]))
    semantic.projection.fit(features.flatten(0, 2))
    took, peaks = {}, {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model.set_precision(dtype)  # of `encode` and the trunk; the parts alone by autocast
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            parts = parts_of(model, images)
            seconds = race({"peak": product(dtype, side), **parts}, repeats)
        peaks[name] = 2 * side**3 / seconds.pop("peak") / 1e9
        took[name] = seconds
    return took, peaks


def tiny_rates(batch: int, size: int, repeats: int) -> dict[str, float]:
    """Pictures a second."""
    model = SemHiTok.from_pretrained("tiny", parts=("encode", "decode")).eval()
    images = torch.rand(batch, 3, size, size)
    ids = model.encode(images)
    work = {"encode": lambda: model.encode(images), "decode": lambda: model.decode(ids)}
    return {name: batch / took for name, took in race(work, repeats).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny-batch", type=int, default=16)
    parser.add_argument("--tiny-size", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    o = parser.parse_args()
    if o.quick:
        o.batch_size, o.repeats, o.tiny_batch, o.tiny_size = 2, 1, 1, 64
    config, side = planned(o.quick), 256 if o.quick else 2048
    print(protocol(o.repeats, f"{config.name}, batch of {o.batch_size}, {config.image_size} px"))
    flops = operations(config)
    took, peaks = compare(config, o.batch_size, o.repeats, side)
    total = sum(flops.values())
    flops = {"encode": total, **flops}
    for dtype, seconds in took.items():
        print(f"\n{dtype}; a matrix product of {side} reaches {peaks[dtype]:.0f} GFLOP/s")
        rows = []
        for part, took_part in seconds.items():
            rate = flops[part] * o.batch_size / took_part / 1e9
            rows.append(
                [
                    part,
                    f"{took_part * 1e3:.1f}",
                    f"{took_part / seconds['encode']:.1%}",
                    f"{flops[part] / 1e9:.2f}",
                    f"{flops[part] / total:.1%}",
                    f"{rate:.0f}",
                    f"{rate / peaks[dtype]:.0%}",
                ]
            )
        header = ["part", "ms", "of encode", "GFLOP a picture", "of encode", "GFLOP/s", "of peak"]
        show(header, rows)
    print()
    for dtype, seconds in took.items():
        searches = seconds["semantic search"] + seconds["pixel search"]
        share = 100 * searches / seconds["encode"]
        print(bar(f"quantization's share of encode, {dtype}", share, 3, at_most=True, unit=" %"))
    for dtype, seconds in took.items():
        ratio = seconds["encode"] / seconds["teacher"]
        print(bar(f"encode over teacher, {dtype}", ratio, 1.35, at_most=True))
    print(bar("encode over teacher, FLOPs", total / flops["teacher"], 1.35, at_most=True))
    rates = tiny_rates(o.tiny_batch, o.tiny_size, o.repeats)
    told = ", ".join(f"{name} {rate:.1f} pictures/s" for name, rate in rates.items())
    print(f"tiny at {o.tiny_size} px, batch of {o.tiny_batch}: {told}")


if __name__ == "__main__":
    main()
