"""A tokenizing job on a Ray cluster: actors hold the model, numbers of shards go to them.

Plain actors rather than Ray Data. Nothing but a shard's number goes in and nothing comes out, so
there are no blocks to move; and a retry is of the shard, by whichever worker is free, a limited
number of times. Ray Data deals tasks to actors before they run, brings the same actor back for
them, and by default retries without an end a shard that kills whoever takes it.

Data and the job's folder must lie where every node sees them; each worker looks before it writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from semhitok.data.sources import open_source
from semhitok.errors import ClusterError, FormatError
from semhitok.extras import require
from semhitok.tokenize.job import TokenizeJob
from semhitok.tokenize.plan import read_plan

ATTEMPTS = 4
"""Workers that a shard may cost before it is the shard's fault."""

POLL_S = 10.0
"""How often the cluster is asked whether it has grown."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """What one worker takes of the cluster."""

    cpus: int
    gpus: int

    def places(self, nodes: Sequence[dict[str, Any]]) -> int:
        """For how many workers there is room, by `ray.nodes()`."""
        return sum(self._on(node["Resources"]) for node in nodes if node["Alive"])

    def _on(self, have: dict[str, float]) -> int:
        by_cpus = int(have.get("CPU", 0) // self.cpus)
        return min(by_cpus, int(have.get("GPU", 0) // self.gpus)) if self.gpus else by_cpus


def run_on_ray(
    job: TokenizeJob,
    data: Sequence[str],
    *,
    gpus: bool | None = None,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write every pending shard of a job whose plan its folder holds.

    Args:
        job: with the model on the CPU; each worker gets a copy.
        data: what `open_source` takes, as any node finds it.
        gpus: one for each worker; None where the cluster has some.
        workers: processes that read, of each worker; None as many as its share of CPUs allows.
        progress: called with the shards done, of this call.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: no cluster, no room in it, or a shard has cost too many workers.
        SemHiTokError: what `TokenizeJob.run_shards` raises, in any of the workers.
    """
    with _cluster() as ray:
        _deal(ray, job, data, gpus, workers, progress or (lambda done: None))


def _deal(
    ray: Any,
    job: TokenizeJob,
    data: Sequence[str],
    gpus: bool | None,
    workers: int | None,
    progress: Callable[[int], None],
) -> None:
    share = find_share(ray.nodes(), gpus, workers)
    reading = dataclasses.replace(job, workers=share.cpus - 1)
    # Held here, so that workers started later find it too.
    content = ray.put((reading, list(data), share.gpus > 0))
    actor_class = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus)(_Worker)
    todo, done = deque(job.pending()), 0
    busy: dict[Any, tuple[Any, int | None]] = {}  # without a shard: it prepares
    lost: Counter[int | None] = Counter()
    while todo or any(shard is not None for _, shard in busy.values()):
        places = share.places(ray.nodes())  # a cluster may grow
        while todo and len(busy) < min(places, len(todo) + _shards_in(busy)):
            worker = actor_class.remote()
            busy[worker.prepare.remote(content)] = (worker, None)
        if not busy:
            time.sleep(POLL_S)  # every node is gone; some may come back
            continue
        ready, _ = ray.wait(list(busy), timeout=POLL_S)
        for reference in ready:
            worker, shard = busy.pop(reference)
            try:
                ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                ray.kill(worker)  # where it only could not be reached
                _count_loss(lost, shard, error)
                if shard is not None:
                    todo.appendleft(shard)
                continue
            lost.pop(shard, None)
            if shard is not None:
                done += 1
                progress(done)
            if todo:
                shard = todo.popleft()
                busy[worker.write.remote(shard)] = (worker, shard)


def _shards_in(busy: dict[Any, tuple[Any, int | None]]) -> int:
    return sum(shard is not None for _, shard in busy.values())


def _count_loss(lost: Counter[int | None], shard: int | None, error: Exception) -> None:
    lost[shard] += 1
    what = "before it had one" if shard is None else f"at shard {shard}"
    why = str(error).strip().splitlines()[-1].split(". ")[0]
    if lost[shard] == ATTEMPTS:
        raise ClusterError(
            f"{ATTEMPTS} workers died {what} ({why}); see Ray's logs: too little memory for "
            "--batch-size is the usual cause. The same command goes on"
        ) from error
    log.warning("a worker died %s, another takes its place (%s)", what, why)


def find_share(nodes: Sequence[dict[str, Any]], gpus: bool | None, workers: int | None) -> Share:
    """What each worker takes of a cluster that `ray.nodes()` describes.

    Raises:
        ClusterError: no node has room for one.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpus = [have for have in alive if have.get("GPU", 0) >= 1]
    need = int(bool(with_gpus) if gpus is None else gpus)
    if workers is None:
        shares = [int(have.get("CPU", 0) // have["GPU"]) for have in with_gpus] if need else []
        workers = max(0, min(shares, default=1) - 1)
    share = Share(workers + 1, need)
    if not share.places(nodes):
        wanted = f"{workers + 1} CPUs" + (" and a GPU" if need else "")
        raise ClusterError(
            f"none of the cluster's {len(alive)} nodes has {wanted}, which a worker with "
            f"{workers} reading processes takes; give fewer --workers or another --device"
        )
    return share


class _Worker:
    """One process of the cluster, with the job as it was opened there."""

    job: TokenizeJob

    def prepare(self, content: tuple[TokenizeJob, list[str], bool]) -> None:
        """Open the data again, as this node sees them.

        Raises:
            FormatError: other data, or another folder, than the plan's.
        """
        job, data, on_gpu = content
        source, host = open_source(data), socket.gethostname()
        if source.fingerprint() != job.plan.fingerprint:
            raise FormatError(
                f"{', '.join(data)}: other data on {host} than where the job was started; they "
                "must lie where every node sees them"
            )
        try:
            same = read_plan(job.folder) == job.plan
        except FormatError:
            same = False
        if not same:
            raise FormatError(
                f"{job.folder} on {host} is not the job's folder; --out must lie where every node "
                "sees it"
            )
        model = job.model.to(torch.device("cuda" if on_gpu else "cpu"))
        self.job = dataclasses.replace(job, source=source, model=model)

    def write(self, shard: int) -> None:
        """Write one shard."""
        self.job.run_shards([shard])


@contextlib.contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected to the cluster that RAY_ADDRESS names, or to one on this machine.

    What Ray prints goes to stderr: results have stdout for themselves.
    """
    ray = require("ray", extra="ray")
    with contextlib.redirect_stdout(sys.stderr):
        ours = not ray.is_initialized()
        if ours:
            # Left to itself Ray would look for whatever cluster this machine had last.
            address = os.environ.get("RAY_ADDRESS") or "local"
            alone = {"include_dashboard": False} if address == "local" else {}
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **alone)
            except (OSError, RuntimeError, ValueError) as error:
                why = " ".join(str(error).split())
                raise ClusterError(
                    f"no Ray cluster at {address} ({why}); see RAY_ADDRESS"
                ) from error
        try:
            yield ray
        finally:
            if ours:
                ray.shutdown()
