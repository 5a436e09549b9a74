"""Tokens as training data: every picture once an epoch, the same on resuming, dealt to ranks."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from semhitok.data.token_dataset import TokenDataset
from semhitok.data.tokens import TokenMetadata, TokenRecord, write_tokens
from semhitok.errors import FormatError, NotFoundError, RangeError

SIZES = (5, 4, 7, 1, 6)
COUNT = sum(SIZES)


def metadata(digest: str = "abc") -> TokenMetadata:
    return TokenMetadata(
        model="toy", hash=digest, num_semantic=300, num_pixel=700, patch_size=8, policy="",
        dtype="float32", version="1",
    )  # fmt: skip


def record(number: int) -> TokenRecord:
    generator = torch.Generator().manual_seed(number)
    grid = (2 + number % 3, 4)
    semantic, pixel = (torch.randint(n, grid, generator=generator) for n in (300, 700))
    return TokenRecord(f"{number:02d}", semantic, pixel, {"label": number})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    first = 0
    for number, size in enumerate(SIZES):
        rows = [record(n) for n in range(first, first + size)]
        write_tokens(tmp_path / f"tokens-{number}.parquet", rows, metadata())
        first += size
    return tmp_path


def test_samples_by_number(folder: Path) -> None:
    dataset = TokenDataset(folder, columns=("label",))
    assert len(dataset) == COUNT and dataset.vocab_size == 210_000
    for number in (0, 4, 5, 16, COUNT - 1, -1):
        sample, wanted = dataset[number], record(number % COUNT)
        assert sample.key == wanted.key and sample.extra == {"label": number % COUNT}
        assert sample.ids.dtype == torch.int64
        assert sample.ids.equal(wanted.semantic * 700 + wanted.pixel)
    with pytest.raises(IndexError):
        dataset[COUNT]


def keys(stream: object, count: int) -> list[str]:
    return [sample.key for sample in islice(stream, count)]  # type: ignore[call-overload]


def test_an_epoch_has_every_picture_once_and_the_next_has_another_order(folder: Path) -> None:
    drawn = keys(TokenDataset(folder).stream(seed=3, mixed_shards=2), 2 * COUNT)
    first, second = drawn[:COUNT], drawn[COUNT:]
    assert sorted(first) == sorted(second) == [f"{n:02d}" for n in range(COUNT)]
    assert first != second != sorted(first) != first
    assert first == keys(TokenDataset(folder).stream(seed=3, mixed_shards=2), COUNT)
    assert first != keys(TokenDataset(folder).stream(seed=4, mixed_shards=2), COUNT)
    plain = keys(TokenDataset(folder).stream(shuffle=False), COUNT)
    assert plain == sorted(plain)


def test_pictures_of_several_files_are_mixed(folder: Path) -> None:
    drawn = keys(TokenDataset(folder).stream(seed=0, mixed_shards=5), COUNT)
    files = [next(i for i in range(5) if int(k) < sum(SIZES[: i + 1])) for k in drawn]
    changes = sum(a != b for a, b in zip(files, files[1:], strict=False))
    assert changes > 8


@pytest.mark.parametrize("mixed", [1, 2, 5])
def test_ranks_get_as_many_and_nothing_twice(folder: Path, mixed: int) -> None:
    parts = [
        keys(TokenDataset(folder).stream(seed=1, mixed_shards=mixed, rank=r, world_size=3), 7)
        for r in range(3)
    ]
    drawn = [key for part in parts for key in part]
    assert len(set(drawn)) == len(drawn) == 21  # of 23: the last two do not go round


@pytest.mark.parametrize("stop", [0, 1, 6, 7, 8, 11, 15])
def test_a_stream_goes_on_exactly(folder: Path, stop: int) -> None:
    def stream() -> object:
        return TokenDataset(folder).stream(seed=5, mixed_shards=2, rank=1, world_size=2)

    straight = keys(stream(), 25)
    first = stream()
    assert keys(first, stop) == straight[:stop]
    second = stream()
    second.load_state_dict(first.state_dict())  # type: ignore[attr-defined]
    assert keys(second, 25 - stop) == straight[stop:]


def test_workers_of_a_loader_share_the_pictures(folder: Path) -> None:
    loader = torch.utils.data.DataLoader(
        TokenDataset(folder).stream(seed=2), batch_size=None, num_workers=2
    )
    drawn = keys(loader, 2 * (COUNT // 2))
    assert len(set(drawn)) == len(drawn)


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such token file or folder"):
        TokenDataset(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="holds no token files; make some"):
        TokenDataset(tmp_path / "empty")
    with pytest.raises(FormatError, match="has no column 'title'; it has: label"):
        _ = TokenDataset(folder, columns=("title",))[0]
    with pytest.raises(RangeError, match="rank 2 of 2"):
        TokenDataset(folder).stream(rank=2, world_size=2)
    with pytest.raises(RangeError, match="23 pictures for 50 ranks and workers"):
        next(iter(TokenDataset(folder).stream(world_size=50)))
    write_tokens(folder / "tokens-9.parquet", [record(99)], metadata("other"))
    with pytest.raises(FormatError, match=r"tokens-9.parquet was written by toy \(other\)"):
        TokenDataset(folder)
