"""The shards of a cluster are those of one process, whoever dies on the way."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from twenty import contents

from semhitok.errors import ClusterError, FormatError
from semhitok.tokenize.job import TokenizeJob
from semhitok.tokenize.ray_engine import ATTEMPTS, Share, find_share, run_on_ray

Start = Callable[..., TokenizeJob]


def node(cpus: int, gpus: int = 0, alive: bool = True) -> dict[str, Any]:
    have = {"CPU": float(cpus), "memory": 1e9} | ({"GPU": float(gpus)} if gpus else {})
    return {"Alive": alive, "Resources": have}


@pytest.mark.parametrize(
    ("nodes", "gpus", "workers", "share", "places"),
    [
        ([node(2)], None, None, Share(1, 0), 2),
        ([node(8), node(3)], None, 1, Share(2, 0), 5),
        ([node(8), node(8, alive=False)], None, None, Share(1, 0), 8),
        ([node(0), node(16, 4), node(8, 1)], None, None, Share(4, 1), 5),
        ([node(16, 4)], False, None, Share(1, 0), 16),
        ([node(4, 4)], None, 3, Share(4, 1), 1),
    ],
)
def test_a_worker_takes_its_share_of_the_cluster(
    nodes: list[dict[str, Any]], gpus: bool | None, workers: int | None, share: Share, places: int
) -> None:
    assert find_share(nodes, gpus, workers) == share
    assert share.places(nodes) == places


@pytest.mark.parametrize(
    ("nodes", "gpus", "workers", "message"),
    [
        ([node(2), node(3)], None, 3, "none of the cluster's 2 nodes has 4 CPUs, which"),
        ([node(8)], True, None, "none of the cluster's 1 nodes has 1 CPUs and a GPU"),
    ],
)
def test_no_room_is_said_at_once(
    nodes: list[dict[str, Any]], gpus: bool | None, workers: int | None, message: str
) -> None:
    with pytest.raises(ClusterError, match=message):
        find_share(nodes, gpus, workers)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray with room for two workers."""
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def writers() -> list[int]:
    """Processes below this one that write a shard now; Ray names them by what they do."""
    parents, busy = {}, []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (place / "stat").read_text(), (place / "cmdline").read_bytes()
        except OSError:
            continue  # it has just ended
        parents[int(place.name)] = int(status.rpartition(")")[2].split()[1])
        if command.startswith(b"ray::_Worker.write"):
            busy.append(int(place.name))

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return [pid for pid in busy if is_ours(pid)]


class Killer:
    """SIGKILL for whoever writes, up to `limit` times."""

    def __init__(self, limit: int) -> None:
        self.limit, self.killed, self.over = limit, set[int](), threading.Event()
        self.thread = threading.Thread(target=self.hunt)

    def hunt(self) -> None:
        while not self.over.is_set() and len(self.killed) < self.limit:
            for pid in writers()[: self.limit - len(self.killed)]:
                if pid not in self.killed:
                    self.killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def __enter__(self) -> Killer:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_two_workers_change_no_byte(whole: Path, start: Start, data: Path, tmp_path: Path) -> None:
    """The data have two broken pictures; they are in `whole` as failures."""
    job, seen = start(tmp_path), list[int]()
    run_on_ray(job, [str(data)], progress=seen.append)
    job.finish()
    assert contents(tmp_path) == contents(whole)
    assert seen == [1, 2, 3, 4]
    (tmp_path / job.plan.shard_name(2)).unlink()
    run_on_ray(job, [str(data)], progress=seen.append)  # what is there is not done again
    assert seen[4:] == [1]
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_costs_a_retry(
    start: Start, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = start(tmp_path / "here", shard_size=2), start(tmp_path / "there", shard_size=2)
    here.run_rank()
    here.finish()
    with caplog.at_level(logging.WARNING, "semhitok"), Killer(1) as killer:
        run_on_ray(there, [str(data)])
    there.finish()
    assert len(killer.killed) == 1
    assert caplog.text.count("a worker died at shard") == 1
    assert contents(there.folder) == contents(here.folder)
    assert not [p for p in there.folder.iterdir() if p.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_shard_that_kills_every_worker_ends_the_job(
    start: Start, data: Path, tmp_path: Path
) -> None:
    job = start(tmp_path, shard_size=20)
    with (
        Killer(ATTEMPTS) as killer,
        pytest.raises(ClusterError, match=f"{ATTEMPTS} workers died at shard 0 .*goes on"),
    ):
        run_on_ray(job, [str(data)])
    assert len(killer.killed) == ATTEMPTS
    assert job.pending() == [0]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_node_that_sees_other_data_writes_nothing(
    start: Start, data: Path, tmp_path: Path
) -> None:
    job, other = start(tmp_path / "job"), tmp_path / "twenty.parquet"
    pq.write_table(pq.read_table(data).slice(1), other)
    with pytest.raises(FormatError, match="other data on .* they must lie where every node sees"):
        run_on_ray(job, [str(other)])
    (job.folder / "plan.json").unlink()
    with pytest.raises(FormatError, match="is not the job's folder; --out must lie where every"):
        run_on_ray(job, [str(data)])
    assert job.pending() == [0, 1, 2, 3]
