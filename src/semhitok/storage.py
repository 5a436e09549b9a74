"""Files on this machine or in a store behind a URL (s3://, gs://, https://, ...), read and written
whole: a half file is never seen, and a store that stumbles is asked again."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from upath import UPath

from semhitok.errors import MissingExtraError, NotFoundError, StorageError
from semhitok.files import check_writable, write_file
from semhitok.images import reason

Place = Path | UPath
"""A file or folder: a `Path` where it is local, a `UPath` where it is not."""

ATTEMPTS = 5
"""Requests that a store may fail before the work stops."""

PAUSE_S = 0.5
"""Before the second request; doubled before each later one."""

BUFFER_BYTES = 1 << 20

_Result = TypeVar("_Result")
log = logging.getLogger(__name__)


def locate(text: str | Place) -> Place:
    """The place that a path or a URL of fsspec names; nothing is looked at.

    Raises:
        NotFoundError: a URL of a kind that fsspec does not know.
        MissingExtraError: the package for this kind of URL is not installed.
    """
    if isinstance(text, Path) or not is_url(text):
        return Path(str(text))
    try:
        place = UPath(text)
        if place.protocol in ("", "file", "local"):
            return Path(place.path)
        place.fs  # noqa: B018 - here a missing package shows
    except ImportError as error:
        raise MissingExtraError(f"{text}: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise NotFoundError(
            f"{text}: no such kind of URL ({reason(error)}); allowed: what fsspec reads, as "
            "s3://bucket/folder"
        ) from error
    return place


def is_url(text: str | Place) -> bool:
    """Whether it names a place by a URL, which `Path` would spoil."""
    return isinstance(text, UPath) or (isinstance(text, str) and ("://" in text or "::" in text))


def is_remote(place: Place) -> bool:
    """Whether it lies in a store rather than on this machine."""
    return isinstance(place, UPath) and not isinstance(place, Path)


# ------------------------------------------------------------------------------------- looking


def is_folder(place: Place) -> bool:
    """Whether there is a folder; in a store, whether anything lies below it.

    Raises:
        StorageError: the store does not tell.
    """
    if isinstance(place, Path):
        return place.is_dir()
    return _kind(place) == "directory"


def is_file(place: Place) -> bool:
    """Whether there is a file.

    Raises:
        StorageError: the store does not tell.
    """
    if isinstance(place, Path):
        return place.is_file()
    return _kind(place) == "file"


def _kind(place: UPath) -> str:
    """What a store has there; fsspec's own `isfile` says no where the store has failed."""
    try:
        return _ask(place, lambda fs, path: str(fs.info(path)["type"]))
    except FileNotFoundError:
        return "nothing"


def file_size(place: Place) -> int:
    """Bytes of a file.

    Raises:
        FileNotFoundError: there is none.
        StorageError: the store does not tell.
    """
    if isinstance(place, Path):
        return place.stat().st_size
    return _ask(place, lambda fs, path: int(fs.size(path)))


def list_names(folder: Place) -> set[str]:
    """Names of the files right in a folder; none where there is no folder.

    Raises:
        StorageError: the store does not tell.
    """
    if isinstance(folder, Path):
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    def look(fs: Any, path: str) -> set[str]:
        return {name.rsplit("/", 1)[-1] for name in fs.find(path, maxdepth=1)}

    return _ask(folder, look)


def find_files(root: Place, suffixes: Iterable[str]) -> dict[str, int]:
    """Files below a folder with one of the lower-case `suffixes`, and their bytes.

    Relative, with forward slashes, sorted. Names that begin with a dot are passed over, and so
    are linked folders.

    Raises:
        StorageError: the store does not tell.
    """
    wanted = frozenset(suffixes)
    if isinstance(root, Path):
        return dict(sorted(_walk(root, wanted)))

    def look(fs: Any, path: str) -> dict[str, int]:
        found = fs.find(path, detail=True)
        start = path.rstrip("/") + "/"
        sizes = {name.removeprefix(start): int(info["size"] or 0) for name, info in found.items()}
        return {name: sizes[name] for name in sorted(sizes) if _fits(name, wanted)}

    return _ask(root, look)


def _walk(root: Path, suffixes: frozenset[str]) -> Iterable[tuple[str, int]]:
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for file in files:
            path = Path(folder) / file
            name = path.relative_to(root).as_posix()
            if _fits(name, suffixes):
                yield name, path.stat().st_size if path.exists() else 0


def _fits(name: str, suffixes: frozenset[str]) -> bool:
    hidden = any(step.startswith(".") for step in name.split("/"))
    return not hidden and os.path.splitext(name)[1].lower() in suffixes


# ------------------------------------------------------------------------------------- reading


def read_file(place: Place, start: int = 0, end: int | None = None) -> bytes:
    """The bytes of a file from `start` up to `end`, by default to its end.

    Raises:
        FileNotFoundError: there is none.
        OSError: a local one that cannot be read.
        StorageError: the store does not give it.
    """
    if isinstance(place, Path):
        with open(place, "rb") as file:
            file.seek(start)
            return file.read(-1 if end is None else end - start)

    def fetch(fs: Any, path: str) -> bytes:
        data: bytes = fs.cat_file(path, start=start or None, end=end)
        if end is not None and len(data) != end - start:
            raise OSError(f"{len(data)} of {end - start} bytes came")
        return data

    return _ask(place, fetch)


def open_file(place: Place, buffer_bytes: int = BUFFER_BYTES) -> io.BufferedReader:
    """A file to read from at any offset; of one in a store only what is read is fetched.

    Raises:
        FileNotFoundError: there is none.
        OSError: a local one that cannot be opened.
        StorageError: here and while reading: the store does not give it.
    """
    if isinstance(place, Path):
        return open(place, "rb")
    return io.BufferedReader(_RangeFile(place), buffer_bytes)


class _RangeFile(io.RawIOBase):
    """A stored file by requests for ranges, each of which may be asked again."""

    def __init__(self, place: UPath) -> None:
        self._place, self._size, self._at = place, file_size(place), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), self._size - self._at)
        if count <= 0:
            return 0
        buffer[:count] = read_file(self._place, self._at, self._at + count)
        self._at += count
        return count


def remembered(
    kind: str, place: Place, told: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What `make` finds in a stored file, kept on this machine until the file changes.

    It is kept in SEMHITOK_CACHE, by default ~/.cache/semhitok, which may be deleted.

    Args:
        kind: what it is, a word.
        told: what else decides the result.

    Raises:
        StorageError: the store does not answer.
    """
    assert isinstance(place, UPath)
    state = _ask(place, lambda fs, path: str(fs.ukey(path)))
    name = hashlib.sha256("\0".join((kind, str(place), state, told)).encode()).hexdigest()
    folder = os.environ.get("SEMHITOK_CACHE") or os.path.expanduser("~/.cache/semhitok")
    path = Path(folder) / f"{kind}-{name}.npz"
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, zipfile.BadZipFile):
        log.warning("%s is damaged; made anew", path)
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = io.BytesIO()
        np.savez(data, **made)  # type: ignore[arg-type]
        write_bytes(path, data.getvalue())
    except (OSError, StorageError) as error:  # it only has to be found again
        log.warning("%s cannot be kept (%s); see SEMHITOK_CACHE", path, reason(error))
    return made


# ------------------------------------------------------------------------------------- writing


def write_bytes(place: Place, data: bytes) -> None:
    """Write a file, whole or not at all; one that is there is replaced.

    Raises:
        StorageError: the disk is full, the folder cannot be written, or the store does not take it.
    """
    if isinstance(place, Path):
        write_file(place, lambda temporary: temporary.write_bytes(data))
    else:  # an object shows once it is there as a whole
        _ask(place, lambda fs, path: fs.pipe_file(path, data))


def remove_file(place: Place) -> None:
    """Remove a file; that there is none is no error.

    Raises:
        StorageError: it cannot be removed.
    """
    try:
        if isinstance(place, Path):
            place.unlink(missing_ok=True)
        elif is_file(place):
            _ask(place, lambda fs, path: fs.rm_file(path))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StorageError(f"{place}: cannot be removed ({reason(error)})") from error


def check_folder(folder: Place, needed_bytes: int = 0) -> None:
    """Say before the work that a folder cannot be written after it; a local one is made.

    Raises:
        StorageError: it cannot be made or written, or has too little space.
    """
    if isinstance(folder, Path):
        check_writable(folder, needed_bytes)
        return
    probe = folder / ".writable"
    try:
        write_bytes(probe, b"\0")
        remove_file(probe)
    except FileNotFoundError as error:
        raise StorageError(
            f"{folder}: cannot be written ({reason(error)}); make the bucket first"
        ) from error


# -------------------------------------------------------------------------------------- asking


def _ask(place: UPath, request: Callable[[Any, str], _Result]) -> _Result:
    """What a store answers; a request that fails is made again, a few times.

    Credentials that are refused are not tried again, nor is what does not exist.
    """
    for attempt in range(ATTEMPTS):
        try:
            place.fs.invalidate_cache()  # others may have written since it was listed
            return request(place.fs, place.path)
        except FileNotFoundError:
            raise
        except Exception as error:  # noqa: BLE001 - each store's library has its own kinds
            if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
                raise StorageError(
                    f"{place}: the store refuses ({reason(error)}); check the credentials, then "
                    "start again: what is written stays"
                ) from error
            if attempt == ATTEMPTS - 1:
                raise StorageError(
                    f"{place}: the store failed {ATTEMPTS} times ({reason(error)}); see whether it "
                    "answers, then start again: what is written stays"
                ) from error
            log.warning("%s: %s; trying again", place, reason(error))
            time.sleep(PAUSE_S * 2**attempt)
    raise AssertionError("not reached")
