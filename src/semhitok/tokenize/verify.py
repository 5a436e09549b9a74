"""Is a folder of token shards what its manifest says, and do its ids come out again?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from semhitok.data.sources import ImageSource
from semhitok.data.tokens import read_tokens
from semhitok.errors import FormatError, SemHiTokError
from semhitok.images import ImagePolicy, to_tensor
from semhitok.model import SemHiTok
from semhitok.model.precision import PRECISIONS
from semhitok.storage import Place, is_file, list_names, read_file
from semhitok.tokenize.flips import sample_evenly
from semhitok.tokenize.job import file_sha256
from semhitok.tokenize.plan import MANIFEST, Plan, read_plan

BATCH_FLIPS = 0.1
"""Of a picture's ids: how many may come out otherwise alone than in its batch, in bfloat16."""


@dataclass(frozen=True)
class Verdict:
    """What was looked at, and what is wrong, a line each."""

    shards: int
    pictures: int
    compared: int
    """Pictures that were encoded again."""
    wrong: list[str]


def verify(folder: Place, again: Again | None = None, *, sample: int = 64) -> Verdict:
    """Check hashes, counts and every code's range; encode a sample again where that can be done.

    Raises:
        FormatError: the folder has no plan or manifest that can be read, or `again` is of other
            data or another model than the shards.
    """
    plan, manifest = read_plan(folder), read_manifest(folder)
    if again is not None:
        again.check(plan)
    wrong = list(_wrong_shards(plan, manifest, folder))
    compared = 0
    if again is not None and not wrong:
        compared, different = again.compare(plan, folder, sample)
        wrong += different
    return Verdict(plan.num_shards, int(manifest["pictures"]), compared, wrong)


@dataclass(frozen=True)
class Again:
    """What is needed to encode pictures again."""

    source: ImageSource
    policy: ImagePolicy
    model: SemHiTok
    model_hash: str

    def check(self, plan: Plan) -> None:
        """Raises:
        FormatError: these are other data or another model.
        """
        for what, ours, theirs in (
            ("data", self.source.fingerprint(), plan.fingerprint),
            ("model", self.model_hash, plan.tokens.hash),
            ("image policy", self.policy.describe(), plan.tokens.policy),
        ):
            if ours != theirs:
                raise FormatError(
                    f"the shards were made with another {what} ({theirs}, not {ours}); verify with "
                    "the same"
                )

    def compare(self, plan: Plan, folder: Place, sample: int) -> tuple[int, list[str]]:
        """Pictures encoded again, evenly spaced, and those that came out otherwise."""
        by_shard: dict[int, list[int]] = {}
        for index in sample_evenly(plan.pictures, sample):
            by_shard.setdefault(index // plan.shard_size, []).append(index)
        self.model.set_precision(PRECISIONS[plan.tokens.dtype])
        allowed = 0.0 if plan.tokens.dtype == "float32" else BATCH_FLIPS
        compared, wrong = 0, []
        for shard, indices in by_shard.items():
            tokens = read_tokens(folder / plan.shard_name(shard))
            records = {record.key: record for record in tokens}
            for index in indices:
                key = self.source.key(index)
                try:
                    image = to_tensor(self.policy.read(self.source.read_bytes(index), key))
                except SemHiTokError:
                    continue
                semantic, pixel = self.model.split(self.model.encode(image[None])[0].cpu())
                found = records.get(key)
                compared += 1
                if found is None:
                    wrong.append(f"{key}: can be read, but has no tokens")
                    continue
                flips = (found.semantic != semantic) | (found.pixel != pixel)
                share = float(flips.float().mean())
                if share > allowed:
                    wrong.append(f"{key}: {share:.2%} of its ids differ")
        return compared, wrong


def read_manifest(folder: Place) -> dict[str, Any]:
    """The manifest of a finished job.

    Raises:
        FormatError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(read_file(path))
        manifest["shards"], manifest["pictures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path} is missing or damaged ({error!r}); start the job again to finish it"
        ) from error
    return manifest


def _wrong_shards(plan: Plan, manifest: dict[str, Any], folder: Place) -> Iterator[str]:
    listed = {shard["name"]: shard for shard in manifest["shards"]}
    there = {name for name in list_names(folder) if fnmatch(name, "tokens-*.parquet")}
    expected = {plan.shard_name(number) for number in range(plan.num_shards)}
    yield from (f"{name}: is no shard of this job" for name in sorted(there - expected))
    rows = 0
    for name in sorted(expected):
        if name not in there:
            yield f"{name}: is missing; start the job again"
        elif name not in listed or file_sha256(folder / name) != listed[name]["sha256"]:
            yield f"{name}: is not the file that the manifest names; delete it and start again"
        else:
            try:
                rows += len(read_tokens(folder / name))
            except FormatError as error:
                yield str(error)
            if plan.webdataset and not _has_tar(folder / name, listed[name]):
                yield f"{name}: its tar file is not the one that the manifest names; delete both"
    if rows != manifest["pictures"] and there >= expected:
        yield f"{MANIFEST} tells {manifest['pictures']} pictures; the shards hold {rows}"


def _has_tar(shard: Place, listed: dict[str, Any]) -> bool:
    tar = shard.with_suffix(".tar")
    return is_file(tar) and file_sha256(tar) == listed.get("tar_sha256")
