"""Bytes of real token shards a picture, against the entropy of their ids and one .npy a picture.

python benchmarks/shard_size.py ../shared/data/tiny-imagenet-train.parquet --pictures 2000
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from protocol import bar, protocol, show

from semhitok.cli.models import load_model, token_metadata
from semhitok.data.sources import open_source
from semhitok.data.tokens import read_tokens
from semhitok.evaluate.codebooks import CodeCounter
from semhitok.images import ImagePolicy
from semhitok.tokenize.job import TokenizeJob
from semhitok.tokenize.plan import Plan

CODES = ("semantic", "pixel")
SEMANTIC = "semantic.list.element"
WAYS: dict[str, dict[str, Any]] = {
    "dictionaries, zstd 1 (the default)": {},
    "dictionaries, zstd 9": {"compression_level": 9},
    "dictionaries, zstd 19": {"compression_level": 19},
    "none for semantic, zstd 9": {"plain": SEMANTIC, "compression_level": 9},
    "none for semantic, zstd 15": {"plain": SEMANTIC, "compression_level": 15},
    "none for semantic, zstd 19": {"plain": SEMANTIC, "compression_level": 19},
    "no dictionaries, zstd 1": {"use_dictionary": False},
    "no dictionaries, zstd 9": {"use_dictionary": False, "compression_level": 9},
    "dictionaries, no zstd": {"compression": "none"},
    "byte stream split, zstd 9": {"encode": "BYTE_STREAM_SPLIT", "compression_level": 9},
    "delta bit-packed, zstd 9": {"encode": "DELTA_BINARY_PACKED", "compression_level": 9},
}


def code_bytes(file: io.BytesIO | Path) -> dict[str, int]:
    """Compressed bytes of the two columns of codes."""
    found = dict.fromkeys(CODES, 0)
    metadata = pq.ParquetFile(file).metadata
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            name = column.path_in_schema.split(".")[0]
            if name in found:
                found[name] += column.total_compressed_size
    return found


def rewritten(table: pa.Table, options: dict[str, Any]) -> tuple[dict[str, int], float, float]:
    """Code columns' bytes under other options of the writer; seconds to write and to read."""
    options = {"compression": "zstd", "write_page_checksum": True, **options}
    if encoding := options.pop("encode", None):
        # Of the codes alone: strings have no such encoding.
        options["column_encoding"] = {f"{name}.list.element": encoding for name in CODES}
        options["use_dictionary"] = False
    if plain := options.pop("plain", None):
        names = [f"{n}.list.element" if n in CODES else n for n in table.column_names]
        options["use_dictionary"] = [name for name in names if name != plain]
    file = io.BytesIO()
    started = time.perf_counter()
    pq.write_table(table, file, **options)
    wrote = time.perf_counter() - started
    started = time.perf_counter()
    pq.read_table(io.BytesIO(file.getvalue()))
    return code_bytes(file), wrote, time.perf_counter() - started


def miller_madow(counts: torch.Tensor) -> float:
    """Entropy in bits: of the counts as they are, plus the first term of what that falls short by.

    Reference: Miller, Note on the bias of information estimates, 1955.
    """
    seen = counts[counts > 0].double()
    total = float(seen.sum())
    plain = math.log2(total) - float((seen * seen.log2()).sum()) / total
    return plain + (len(seen) - 1) / (2 * total * math.log(2))


def chao_shen(counts: torch.Tensor) -> float:
    """Entropy in bits, for samples that miss many ids: each id weighted by the odds of its absence.

    Reference: Chao and Shen, Nonparametric estimation of Shannon's index of diversity, 2003.
    """
    seen = counts[counts > 0].double()
    total = float(seen.sum())
    once = float((seen == 1).sum())
    share = (1 - min(once, total - 1) / total) * seen / total
    return float((-share * share.log2() / -torch.expm1(total * torch.log1p(-share))).sum())


def npy_bytes(semantic: np.ndarray, pixel: np.ndarray, m: int) -> int:
    """Of one picture in LlamaGen's layout: a file of int64 ids, (1, n), for each."""
    file = io.BytesIO()
    np.save(file, (semantic.astype(np.int64) * m + pixel).reshape(1, -1))
    return file.getbuffer().nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", help="anything that holds pictures")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--shard-size", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="a few random pictures, to see it run")
    o = parser.parse_args()
    if o.data is None and not o.quick:
        parser.error("name the pictures, a parquet file for instance")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if o.quick:
            o.pictures, o.data = 4, str(noise(folder))
        print(protocol(1, f"{o.pictures:,} pictures of {Path(o.data).name}, {o.model}"))
        shards = tokenize(o, folder / "shards")
        report(shards)


def noise(folder: Path) -> Path:
    """Random pictures; they stand in for photos."""
    from PIL import Image

    pictures = folder / "noise"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    return pictures


def tokenize(o: argparse.Namespace, folder: Path) -> list[Path]:
    """The first pictures' shards, written as `semhitok tokenize` writes them."""
    source = open_source(o.data)
    o.pictures = min(o.pictures, len(source))
    model = load_model(o.model, torch.device("cpu"), parts=("encode",))
    size = 64 if o.quick else model.config.image_size
    policy = ImagePolicy(size=size, crop="square", multiple=model.patch_size)
    plan = Plan.make(source, token_metadata(o.model, policy), min(o.shard_size, o.pictures))
    plan.claim(folder)
    job = TokenizeJob(plan, source, policy, model, folder, o.batch_size)
    started = time.perf_counter()
    job.run_shards(range(-(-o.pictures // plan.shard_size)))
    shards = sorted(folder.glob("tokens-*.parquet"))
    print(f"{len(shards)} shards, {time.perf_counter() - started:.0f} s")
    return shards


def report(shards: list[Path]) -> None:
    files = [read_tokens(path) for path in shards]
    metadata = files[0].metadata
    counter = CodeCounter(metadata.num_semantic, metadata.num_pixel)
    npy = 0
    for file in files:
        for record in file:
            counter.update(record.semantic, record.pixel)
            npy += npy_bytes(record.semantic.numpy(), record.pixel.numpy(), metadata.num_pixel)
    pictures = sum(len(file) for file in files)
    counts, patches = counter.counts, int(counter.counts.sum())
    each = patches / pictures / 8  # bytes a picture for each bit a patch

    parents = counts.sum(dim=1)
    fixed = math.log2(counts.numel())
    statistics = counter.statistics()
    # That of the pair is the hardest to know: with fewer patches than ids no estimate is sure.
    bits = {
        "ids, plug-in (too low)": statistics.joint_entropy,
        "ids, Miller-Madow": miller_madow(counts),
        "ids, Chao-Shen": chao_shen(counts),
        "semantic + pixel apart, Miller-Madow": miller_madow(parents)
        + miller_madow(counts.sum(dim=0)),
        "log2(K) + log2(m), no entropy coding": fixed,
    }
    print(
        f"\n{pictures:,} pictures, {patches:,} patches, {int((counts > 0).sum()):,} ids seen of "
        f"{counts.numel():,}, {int((counts == 1).sum()):,} of them once"
    )
    show(
        ["bound", "bits a patch", "bytes a picture"],
        [[name, f"{value:.2f}", f"{value * each:.0f}"] for name, value in bits.items()],
    )
    print()
    table = pa.concat_tables([pq.read_table(path) for path in shards])
    rows, sizes = [], {}
    for way, options in WAYS.items():
        found, wrote, read = rewritten(table, options)
        sizes[way] = sum(found.values()) / pictures
        parts = [f"{found[name] / pictures:.1f}" for name in CODES]
        rows.append([way, *parts, f"{sizes[way]:.1f}", f"{wrote:.2f}", f"{read:.2f}"])
    show(["writer's options", *CODES, "bytes a picture", "s to write", "s to read"], rows)

    written = sum(sum(code_bytes(path).values()) for path in shards) / pictures
    whole = sum(path.stat().st_size for path in shards) / pictures
    print(f"\nshards as they are: codes {written:.1f}, whole files {whole:.1f} bytes a picture")
    best = min(sizes, key=lambda way: sizes[way])
    # A file's length, and what it takes on a disk of blocks of 4 KiB.
    block = 4096
    on_disk = -(-npy // pictures // block) * block
    for name, size in (("as written", written), (f"best ({best})", sizes[best])):
        # The plug-in is too low, so that this bar is too hard rather than too easy.
        for kind in ("plug-in (too low)", "Chao-Shen"):
            over = 100 * (size / (bits[f"ids, {kind}"] * each) - 1)
            label = f"codes over the ids' entropy, {kind}, {name}"
            print(bar(label, over, 10, at_most=True, unit=" %"))
        share = size / (npy / pictures)
        print(bar(f"codes over .npy of int64 ids, {name}", share, 0.1, at_most=True))
    least = bits["ids, plug-in (too low)"] * each
    print(
        f"an .npy has {npy // pictures} bytes, {on_disk} on disk: the entropy alone is "
        f"{least / (npy / pictures):.3f} of the first, {least / on_disk:.3f} of the second, and "
        f"whole shards are {whole / on_disk:.3f} of the second"
    )


if __name__ == "__main__":
    main()
