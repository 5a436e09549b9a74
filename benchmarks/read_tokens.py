"""Ids a second that one process reads back shuffled from token shards, alone and in batches.

python benchmarks/read_tokens.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from protocol import bar, protocol, race, show
from torch import Tensor
from torch.utils.data import DataLoader

from semhitok.data.token_dataset import TokenDataset, TokenSample
from semhitok.data.tokens import TokenMetadata, TokenRecord, write_tokens

K, M, SIDE = 16384, 12, 16


def records(rng: np.random.Generator, first: int, count: int) -> Iterator[TokenRecord]:
    """Codes as skewed as a trained model's: of the semantic ones a tenth makes up most."""
    # An exponent of 0.7 gives about the entropy of real codes: 12 of 14 bits.
    weights = np.arange(1, K + 1) ** -0.7
    semantic = rng.choice(K, (count, SIDE, SIDE), p=weights / weights.sum())
    pixel = rng.integers(0, M, (count, SIDE, SIDE))
    for n in range(count):
        yield TokenRecord(
            f"train/{first + n:08d}.jpg",
            torch.from_numpy(semantic[n]),
            torch.from_numpy(pixel[n]),
            {"label": n % 1000},
        )


def write(folder: Path, shards: int, pictures: int) -> int:
    """Bytes of the shards."""
    rng = np.random.default_rng(0)
    metadata = TokenMetadata(
        model="synthetic", hash="0" * 64, num_semantic=K, num_pixel=M, patch_size=16,
        policy="", dtype="float32", version="0",
    )  # fmt: skip
    for number in range(shards):
        path = folder / f"tokens-{number:05d}.parquet"
        write_tokens(path, records(rng, number * pictures, pictures), metadata)
    return sum(path.stat().st_size for path in folder.iterdir())


def stack(samples: list[TokenSample]) -> Tensor:
    return torch.stack([sample.ids for sample in samples])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--pictures", type=int, default=4096, help="of each shard")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    o = parser.parse_args()
    if o.quick:
        o.shards, o.pictures, o.repeats = 5, 64, 1
    total = o.shards * o.pictures
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write(folder, o.shards, o.pictures)
        sizes = (
            f"{o.shards} shards of {o.pictures:,} pictures of {SIDE**2} ids, {size / 1e6:.1f} MB, "
            "files in the page cache; one epoch from a fresh TokenDataset, shards read in it"
        )
        print(protocol(o.repeats, sizes))

        def alone() -> None:
            for _ in islice(TokenDataset(folder).stream(), total):
                pass

        def with_labels() -> None:
            for _ in islice(TokenDataset(folder, columns=("label",)).stream(), total):
                pass

        def in_order() -> None:
            for _ in islice(TokenDataset(folder).stream(shuffle=False), total):
                pass

        def batches() -> None:
            loader = DataLoader(
                TokenDataset(folder).stream(), batch_size=o.batch_size, collate_fn=stack
            )
            for _ in islice(loader, total // o.batch_size):
                pass

        def files_only() -> None:
            dataset = TokenDataset(folder)
            for number in range(o.shards):
                dataset.shard(number)

        seconds = race(
            {
                "shuffled stream": alone,
                "shuffled, with labels": with_labels,
                "in the files' order": in_order,
                f"shuffled, batches of {o.batch_size} by DataLoader": batches,
                "the files alone, no pictures given": files_only,
            },
            o.repeats,
        )
        ids = total * SIDE**2
        rows = [
            [what, f"{took:.2f}", f"{total / took:,.0f}", f"{ids / took / 1e6:.1f}"]
            for what, took in seconds.items()
        ]
        show(["way", "s an epoch", "pictures/s", "million ids/s"], rows)
        print()
        rate = ids / seconds["shuffled stream"] / 1e6
        print(bar("shuffled stream, one process", rate, 5, unit=" million ids/s"))


if __name__ == "__main__":
    main()
