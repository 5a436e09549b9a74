"""Data and shards in an object store: the same bytes, also from one that fails at random."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from s3 import BUCKET, Store
from twenty import contents

from semhitok.data.sources import open_source
from semhitok.data.token_dataset import TokenDataset
from semhitok.errors import StorageError
from semhitok.storage import Place, list_names, locate, read_file, write_bytes
from semhitok.tokenize.job import TokenizeJob
from semhitok.tokenize.verify import verify

Start = Callable[..., TokenizeJob]


@pytest.fixture
def folder(store: Store, tmp_path: Path) -> Place:
    return locate(f"s3://{BUCKET}/{tmp_path.name}")


def stored(folder: Place) -> dict[str, bytes]:
    return {name: read_file(folder / name) for name in list_names(folder)}


@pytest.mark.parametrize("workers", [0, 2])
def test_from_a_store_into_a_store_that_stumbles(
    workers: int, store: Store, folder: Place, data: Path, whole: Path, start: Start
) -> None:
    write_bytes(folder / "in" / data.name, data.read_bytes())
    store.share = 0.2
    source = open_source(f"{folder}/in/{data.name}")
    assert source.remote
    job = dataclasses.replace(start(folder / "out", workers=workers), source=source)
    job.run_rank()
    job.finish()
    assert len(store.failures) > 5, "nothing was tried again"
    store.share = 0.0
    # The fingerprint is of the source's name, rows and size, wherever it lies.
    assert stored(folder / "out") == contents(whole)
    assert verify(folder / "out").wrong == []
    assert len(TokenDataset(f"{folder}/out")) == 18


def test_a_store_that_goes_away_stops_the_job_and_blames_no_picture(
    store: Store, folder: Place, data: Path, whole: Path, start: Start
) -> None:
    write_bytes(folder / "in" / data.name, data.read_bytes())
    job = dataclasses.replace(start(folder / "out"), source=open_source(f"{folder}/in/{data.name}"))
    job.run_shards([0])
    store.share = 1.0
    for failing in (job, start_again(job, data)):
        with pytest.raises(StorageError, match="the store failed 5 times.*start again"):
            failing.run_shards([1])
    store.share = 0.0
    assert job.pending() == [1, 2, 3]
    job.run_rank()
    job.finish()
    assert stored(folder / "out") == contents(whole)


def start_again(job: TokenizeJob, data: Path) -> TokenizeJob:
    """The same job over data on this machine: only its shards lie in the store."""
    return dataclasses.replace(job, source=open_source(data))


def test_pictures_that_are_gone_from_a_store_are_named(store: Store, folder: Place) -> None:
    lines = [{"image": "a.png", "label": 1}, {"image": "gone.png", "label": 2}]
    write_bytes(folder / "list.jsonl", "\n".join(map(json.dumps, lines)).encode())
    source = open_source(f"{folder}/list.jsonl")
    with pytest.raises(Exception, match=r"list.jsonl:1: gone.png is not there"):
        source.read(1)
