"""Data sets of the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from semhitok.data.sources.base import ACCEPTED, ConcatSource, ImageSource
from semhitok.data.sources.parquet import ParquetSource
from semhitok.errors import DataError, NotFoundError, SemHiTokError
from semhitok.images import reason


def hub_source(repo: str, split: str | None = None) -> ImageSource:
    """The parquet files of one split of a data set of the Hugging Face Hub, downloaded once.

    Args:
        repo: owner/name.
        split: how the files' folder or name begins, "train" or "config/train"; None is "train".

    Raises:
        NotFoundError: no such data set, no such split, or the Hub cannot be reached.
        DataError: the split stands in several configurations.
    """
    from huggingface_hub import HfApi, hf_hub_download

    try:
        revision, files = _hub_parquets(HfApi(), repo)
        chosen = _of_split(files, split or "train", repo)
        paths = [
            hf_hub_download(repo, file, repo_type="dataset", revision=revision) for file in chosen
        ]
    except SemHiTokError:
        raise
    except Exception as error:  # noqa: BLE001 - the HTTP library's kinds change with its version
        raise NotFoundError(
            f"{repo}: neither a local path nor a Hub data set that can be had ({reason(error)}); "
            f"accepted: {ACCEPTED}"
        ) from error
    sources = [ParquetSource(Path(p), name=f) for p, f in zip(paths, chosen, strict=True)]
    name = f"{repo}:{split or 'train'}"
    return ConcatSource(sources, name=name)


def _hub_parquets(api: Any, repo: str) -> tuple[str, list[str]]:
    """Revision and parquet files; the Hub converts data sets of other kinds in a branch."""
    for revision in ("main", "refs/convert/parquet"):
        files = api.list_repo_files(repo, repo_type="dataset", revision=revision)
        parquets = sorted(file for file in files if file.endswith(".parquet"))
        if parquets:
            return revision, parquets
    raise ValueError("it has no parquet files")


def _of_split(files: list[str], split: str, repo: str) -> list[str]:
    pattern = re.compile(rf"(^|.*/){re.escape(split)}[-./].*")
    chosen = [file for file in files if pattern.fullmatch(file)]
    if not chosen:
        raise NotFoundError(f"{repo}: has no split {split!r}; its files: {', '.join(files[:5])}")
    parents = sorted({file.rpartition("/")[0] for file in chosen})
    if len(parents) > 1:
        raise DataError(
            f"{repo}: split {split!r} stands in {', '.join(parents)}; give {repo}:{parents[0]}"
        )
    return chosen
