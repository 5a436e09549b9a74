"""`semhitok-256` in bfloat16 on a GPU: pictures/s of encode and decode, and how near the floors.

python benchmarks/gpu.py --device cuda

Two floors: the products of a picture at the matrix peak that this device reaches, and the bytes
that a batch must move at the rate at which it copies memory. Weights are random, which changes no
time.
`compiled` is torch.compile, `graphs` the same with CUDA graphs. Nobody has run this on a GPU yet.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from encode import planned
from protocol import bar, protocol, show
from torch.utils.flop_counter import FlopCounterMode

from semhitok import SemHiTok

MODES = {"plain": None, "compiled": "default", "graphs": "reduce-overhead"}


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of `repeats` calls, after three that warm up and compile."""
    took = []
    for lap in range(repeats + 3):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        if lap >= 3:
            took.append(time.perf_counter() - started)
    return sorted(took)[len(took) // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def floors(device: torch.device, side: int, megabytes: int) -> tuple[float, float]:
    """Operations a second of bfloat16 products, and bytes a second that a copy reads and writes."""
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    block = torch.zeros(megabytes << 20, dtype=torch.uint8, device=device)
    product = 2 * side**3 / seconds_of(lambda: a @ a, device, 10)
    return product, 2 * block.numel() / seconds_of(block.clone, device, 10)


def weight_bytes(model: SemHiTok, prefixes: tuple[str, ...]) -> int:
    """Bytes of the tensors whose names begin so."""
    found = model.state_dict().items()
    return sum(t.numel() * t.element_size() for name, t in found if name.startswith(prefixes))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    o = parser.parse_args()
    device = torch.device(o.device)
    if o.quick:
        o.batches, o.repeats = [2], 1
    config = planned(o.quick)
    print(
        protocol(o.repeats, f"{config.name} on {_name(device)}, bfloat16, {config.image_size} px")
    )
    peak, copies = floors(device, 256 if o.quick else 8192, 4 if o.quick else 1024)
    print(f"matrix peak {peak / 1e12:.3g} TFLOP/s, copies {copies / 1e9:.3g} GB/s")
    torch.manual_seed(0)
    model = SemHiTok(config, parts=("encode", "decode")).eval().to(device)
    model.set_precision(torch.bfloat16)
    encoding = weight_bytes(model, ("semantic.", "pixel.encoder", "pixel.codebook"))
    decoding = weight_bytes(model, ("pixel.decoder", "pixel.enhance", "pixel.codebook"))
    side, best = config.image_size, 0.0
    grid = (side // config.patch_size,) * 2
    rows = []
    for batch in o.batches:
        images = torch.rand(batch, 3, side, side, device=device)
        ids = torch.randint(0, config.vocab_size, (batch, *grid), device=device)
        jobs: dict[str, tuple[Callable[..., object], torch.Tensor, int]] = {
            "encode": (model._encode_whole, images, encoding),
            "decode": (lambda x: model.decode(x, decoder="pixel"), ids, decoding),
        }
        for verb, (work, given, weights) in jobs.items():
            with FlopCounterMode(display=False) as counter:
                _run(work, given, device)
            flops = counter.get_total_flops()
            for name, mode in MODES.items():
                if mode is not None and (o.quick or device.type != "cuda"):
                    continue
                run = work if mode is None else torch.compile(work, mode=mode)
                took = seconds_of(lambda run=run, x=given: _run(run, x, device), device, o.repeats)
                share = flops / took / peak
                best = max(best, share) if verb == "encode" else best
                rows.append(
                    [
                        f"{verb}, {name}", str(batch), f"{batch / took:.1f}",
                        f"{flops / batch / 1e9:.0f}", f"{share:.0%}",
                        f"{(weights + images.numel() * 4) / copies / took:.1%}",
                    ]
                )  # fmt: skip
    show(
        ["what", "batch", "pictures/s", "GFLOP", "of the matrix peak", "of the copying rate"], rows
    )
    print(bar("encode's best share of the matrix peak", 100 * best, 50, unit=" %"))


def _run(work: Callable[..., object], given: torch.Tensor, device: torch.device) -> None:
    with torch.autocast(device.type, torch.bfloat16):
        work(given)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


if __name__ == "__main__":
    main()
