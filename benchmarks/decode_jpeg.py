"""How fast JPEGs become pixels, by which decoder, and what reduced decoding costs in ids.

python benchmarks/decode_jpeg.py ../shared/data/kodak-test.parquet --side 500

The photos are brought to `--side` and stored as JPEG in memory first. One thread; all rows take
turns, and of each picture the fastest round counts, so that what else the machine does falls on all
alike. From 1,000 px on finding memory costs more than decoding, and what counts is who copies less.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from semhitok import SemHiTok
from semhitok.data.sources import open_source
from semhitok.decoding import read_photo
from semhitok.images import ImagePolicy, read_image, to_array, to_tensor
from semhitok.jpeg import fast_decoder, load_jpeg


def as_jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    """The photo with that long side, as JPEG with 4:2:0."""
    factor = side / max(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    stream = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def reduced(scale: int) -> Callable[[bytes], Image.Image]:
    def decode(data: bytes) -> Image.Image:
        stream = io.BytesIO(data)
        return load_jpeg(Image.open(stream), stream, scale)  # type: ignore[arg-type]

    return decode


def measure(
    rows: dict[str, Callable[[bytes], object]], files: list[bytes], rounds: int
) -> dict[str, float]:
    """Pictures a second of each row, by the fastest time of each picture."""
    best = {name: [float("inf")] * len(files) for name in rows}
    for _ in range(rounds):
        for name, work in rows.items():
            for number, data in enumerate(files):
                started = time.perf_counter()
                work(data)
                taken = time.perf_counter() - started
                best[name][number] = min(best[name][number], taken)
    return {name: len(files) / sum(seconds) for name, seconds in best.items()}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB; infinite where equal."""
    error = float(((a.astype(float) - b) ** 2).mean())
    return 10 * float(np.log10(255**2 / error)) if error else float("inf")


@torch.inference_mode()
def compare(model: SemHiTok, whole: ImagePolicy, less: ImagePolicy, files: list[bytes]) -> None:
    """What reduced decoding does to pixels and ids."""
    pairs = [(whole.read(data, "it"), less.read(data, "it")) for data in files]
    errors = [psnr(to_array(a), to_array(b)) for a, b in pairs]
    changed = [error for error in errors if error < float("inf")]
    print(f"\nreduced: {len(changed)} of {len(files)} pictures have other pixels")
    if not changed:
        return
    print(f"PSNR of those {statistics.mean(changed):.1f} dB, the lowest {min(changed):.1f} dB")
    before, after = (model.encode(torch.stack([to_tensor(p[n]) for p in pairs])) for n in (0, 1))
    meaning = model.split(before)[0] != model.split(after)[0]
    print(
        f"ids of {model.config.name} that flip: {100 * float((before != after).float().mean()):.1f}"
        f" %, semantic codes {100 * float(meaning.float().mean()):.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="anything that holds pictures")
    parser.add_argument("--side", type=int, default=500, help="long side of the JPEGs in pixels")
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=128, help="what the policy brings them to")
    parser.add_argument("--model", default="tiny")
    options = parser.parse_args()
    torch.set_num_threads(1)

    model = SemHiTok.from_pretrained(options.model, parts=("encode",)).eval()
    source = open_source(options.data)
    count = min(options.pictures, len(source))
    files = [as_jpeg(source.read(n), options.side, options.quality) for n in range(count)]
    whole = ImagePolicy(options.size, "square", model.patch_size)
    less = ImagePolicy(options.size, "square", model.patch_size, reduced=True)
    rows: dict[str, Callable[[bytes], object]] = {"Pillow": pillow}
    decode = fast_decoder()
    if decode is not None:
        rows["simplejpeg"] = lambda data: decode(data, "RGB")
    rows |= {f"reduced to 1/{scale}": reduced(scale) for scale in (2, 4, 8)}
    rows |= {
        "read_photo": lambda data: read_photo(data).image,
        "read_image": read_image,
        f"Pillow, cut to {options.size}": lambda data: whole.apply(pillow(data)),
        f"policy.read at {options.size}": lambda data: whole.read(data, "it"),
        "the same, reduced": lambda data: less.read(data, "it"),
    }
    mean = sum(map(len, files)) / len(files) / 1000
    print(
        f"{len(files)} JPEGs, long side {options.side}, quality {options.quality}, {mean:.0f} kB "
        f"each; simplejpeg {'is used' if decode else 'is missing or gives other pixels'}"
    )
    print(f"{'':24} pictures/s   of Pillow")
    rates = measure(rows, files, options.rounds)
    for name, rate in rates.items():
        print(f"{name:24} {rate:10.0f}   {rate / rates['Pillow']:8.2f}x")
    compare(model, whole, less, files)


if __name__ == "__main__":
    main()
