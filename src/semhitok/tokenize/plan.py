"""What a job will do, written down before it starts: who goes on with it must mean the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from semhitok.data.columns import Columns
from semhitok.data.sources import ImageSource
from semhitok.data.tokens import TokenMetadata
from semhitok.errors import FormatError, RangeError, StorageError
from semhitok.storage import Place, check_folder, is_file, list_names, read_file, write_bytes

PLAN = "plan.json"
MANIFEST = "manifest.json"
FAILURES = "failures.jsonl"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides the bytes of the shards."""

    source: str
    fingerprint: str
    """Of the source: another data set has another one."""
    pictures: int
    shard_size: int
    """Pictures of a shard, those that fail included."""
    tokens: TokenMetadata
    columns: dict[str, str]
    """Name and kind of what travels along, the same in every shard."""
    batch_size: int | None = None
    """Where ids may depend on it: in reduced precision."""
    webdataset: bool = False
    """Whether a tar file stands beside each shard."""
    format: int = FORMAT_VERSION

    @classmethod
    def make(
        cls,
        source: ImageSource,
        tokens: TokenMetadata,
        shard_size: int,
        *,
        batch_size: int | None = None,
        webdataset: bool = False,
    ) -> Plan:
        """The plan for a source; of what `Columns` finds in it, too.

        Raises:
            RangeError: shard_size below 1.
        """
        if shard_size < 1:
            raise RangeError(f"shard_size is {shard_size}; it must be at least 1")
        return cls(
            source=source.name,
            fingerprint=source.fingerprint(),
            pictures=len(source),
            shard_size=shard_size,
            tokens=tokens,
            columns=dict(Columns.of(source).kinds),
            batch_size=None if tokens.dtype == "float32" else batch_size,
            webdataset=webdataset,
        )

    @property
    def num_shards(self) -> int:
        """Enough for all pictures; the last may be smaller."""
        return -(-self.pictures // self.shard_size)

    def pictures_of(self, shard: int) -> range:
        """Indices of the pictures of a shard."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.pictures))

    def shard_name(self, shard: int) -> str:
        """File name; names sort as the pictures do."""
        return f"tokens-{shard:06d}-of-{self.num_shards:06d}.parquet"

    def claim(self, folder: Place) -> None:
        """Write the plan into the job's folder, or see that it is the one that is there.

        Raises:
            StorageError: the folder cannot be written, or holds what no job wrote.
            FormatError: it holds another job.
        """
        check_folder(folder)
        path = folder / PLAN
        if not is_file(path):
            strangers = sorted(n for n in list_names(folder) if not n.startswith("."))
            if strangers:
                raise StorageError(
                    f"{folder} has files that no tokenizing wrote ({strangers[0]}); choose an "
                    "empty or new folder"
                )
            write_bytes(path, (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode())
            return
        before = read_plan(folder)
        different = ", ".join(_differences(before, self))
        if different:
            raise FormatError(
                f"{folder} holds the tokens of another job, with another {different}; use the same "
                "data, model and options to go on with it, or another --out"
            )


def read_plan(folder: Place) -> Plan:
    """The plan of the job in a folder.

    Raises:
        FormatError: there is none, it is damaged, or another version wrote it.
    """
    path = folder / PLAN
    try:
        data: dict[str, Any] = json.loads(read_file(path))
        if data.get("format") != FORMAT_VERSION:
            raise FormatError(
                f"{path} has format {data.get('format')}; this version reads {FORMAT_VERSION}: "
                "use the version that wrote it, or another --out"
            )
        return Plan(**{**data, "tokens": TokenMetadata(**data["tokens"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError(f"{path} is no plan of a tokenizing ({error!r}); see --out") from error


def _differences(before: Plan, now: Plan) -> Iterator[str]:
    for field in dataclasses.fields(Plan):
        if field.name != "tokens" and getattr(before, field.name) != getattr(now, field.name):
            yield field.name
    for field in dataclasses.fields(TokenMetadata):
        if getattr(before.tokens, field.name) != getattr(now.tokens, field.name):
            yield field.name
