"""The data set that a path, a URL or a name stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from upath import UPath

from semhitok.data.sources.base import ACCEPTED, ConcatSource, ImageSource
from semhitok.data.sources.folder import FolderSource
from semhitok.data.sources.hub import hub_source
from semhitok.data.sources.jsonl import JsonlSource
from semhitok.data.sources.parquet import ParquetSource
from semhitok.data.sources.tar import TarSource
from semhitok.errors import DataError, NotFoundError
from semhitok.images import picture_suffixes
from semhitok.storage import Place, file_size, find_files, is_file, is_folder, is_remote, locate

REQUESTS = 16
"""Files of a store that are opened at once."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w./-]+)?")


def open_source(data: str | Place | Sequence[str | Place]) -> ImageSource:
    """The data set that a path, a URL or a Hub name stands for; of several, one behind the other.

    A folder counts as parquet files where it holds any, else as tar files, else as pictures;
    each is looked for in its subfolders too. What exists on disk is never taken for a Hub name.

    Raises:
        NotFoundError: neither a path nor a data set of the Hub.
        DataError: there, but of no kind that is read, or empty.
    """
    if not isinstance(data, (str, Path, UPath)):
        sources = [open_source(item) for item in data]
        return sources[0] if len(sources) == 1 else ConcatSource(sources)
    place = locate(data)
    if is_folder(place):
        return _open_folder(place)
    if is_file(place):
        return _open_file(place)
    text = str(data)
    if isinstance(data, str) and _HUB_NAME.fullmatch(text) and not _is_file_name(text):
        repo, _, split = text.partition(":")
        return hub_source(repo, split or None)
    raise NotFoundError(f"{data}: no such file or folder; accepted: {ACCEPTED}")


def _open_folder(folder: Place) -> ImageSource:
    found = find_files(folder, picture_suffixes() | {".parquet", ".tar"})
    kinds: tuple[tuple[str, type[ParquetSource | TarSource]], ...] = (
        (".parquet", ParquetSource),
        (".tar", TarSource),
    )
    for suffix, kind in kinds:
        files = [file for file in found if file.lower().endswith(suffix)]
        if files:
            # Each asks for its headers: in a store the waiting is done side by side.
            with ThreadPoolExecutor(REQUESTS if is_remote(folder) else 1) as pool:
                sources = list(pool.map(kind, [folder / file for file in files], files))
            return sources[0] if len(files) == 1 else ConcatSource(sources, folder.resolve().name)
    return FolderSource(folder, found)


def _open_file(path: Place) -> ImageSource:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return ParquetSource(path)
    if suffix == ".tar":
        return TarSource(path)
    if suffix == ".jsonl":
        return JsonlSource(path)
    if suffix in picture_suffixes():
        return FolderSource(path.parent, {path.name: file_size(path)})
    raise DataError(f"{path}: a {suffix or 'file without suffix'}; accepted: {ACCEPTED}")


def _is_file_name(text: str) -> bool:
    return Path(text).suffix.lower() in picture_suffixes() | {".parquet", ".tar", ".jsonl"}
