"""Pictures that the lines of a file name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from semhitok.data.sources.base import ACCEPTED, ImageSource
from semhitok.errors import DataError, ImageError
from semhitok.images import reason
from semhitok.storage import Place, is_remote, is_url, locate, open_file, read_file

PATH_KEYS = ("image", "path", "file_name", "filename", "file", "url")


class JsonlSource(ImageSource):
    """A JSON object a line: the path or URL of a picture, and what is said of it.

    Paths are taken from the file's folder. Every key is kept as meta. Of the file only the place
    of each line is held; a line is read when its picture's turn comes.
    """

    def __init__(self, path: Place, name: str | None = None) -> None:
        """Args:
            path: the file, local or in a store.
            name: begins the keys; by default the file's name.

        Raises:
            DataError: no lines, or a first line that names no picture.
        """
        self.path = path
        self.name = name or path.name
        # One in a store is held whole: a request for each line would take longer than its picture.
        self._text = read_file(path) if is_remote(path) else None
        self._starts = _line_starts(path)
        if len(self) == 0:
            raise DataError(f"{path}: has no lines; accepted: {ACCEPTED}")
        try:
            first = self.meta(0)
        except ImageError as error:
            raise DataError(f"{path}: {error}") from error
        self._path_key = next((key for key in PATH_KEYS if isinstance(first.get(key), str)), "")
        if not self._path_key:
            raise DataError(
                f"{path}: its first line names no picture; one of {', '.join(PATH_KEYS)} is "
                f"needed, it has: {', '.join(first) or 'none'}"
            )
        self.remote = is_remote(path) or is_url(first[self._path_key])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def key(self, index: int) -> str:
        return f"{self.name}:{range(len(self))[index]}"

    def read_bytes(self, index: int) -> bytes | Path:
        named = self.meta(index).get(self._path_key)
        if not isinstance(named, str) or not named:
            raise ImageError(f"{self.key(index)}: has no {self._path_key!r}; leave the line out")
        place = locate(named) if is_url(named) else self.path.parent / named
        if isinstance(place, Path):
            return place
        try:
            return read_file(place)
        except FileNotFoundError as error:
            raise ImageError(f"{self.key(index)}: {named} is not there") from error

    def meta(self, index: int) -> dict[str, Any]:
        """Raises:
        ImageError: the line is no JSON object.
        """
        index = range(len(self))[index]
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        try:
            held = self._text
            row = json.loads(held[start:end] if held else read_file(self.path, start, end))
        except (OSError, ValueError) as error:
            raise ImageError(f"{self.key(index)}: is no line of JSON ({reason(error)})") from error
        if not isinstance(row, dict):
            raise ImageError(f"{self.key(index)}: is {type(row).__name__}, not a JSON object")
        return row

    def labels(self) -> np.ndarray | None:
        found = [self._label(index) for index in range(len(self))]
        return None if max(found) < 0 else np.array(found, dtype=np.int64)

    def _label(self, index: int) -> int:
        """-1 where the line tells none, or cannot be read."""
        try:
            label = self.meta(index).get("label")
        except ImageError:
            return -1
        return label if isinstance(label, int) else -1

    def _identity(self) -> Iterable[str]:
        return [self.name, str(len(self)), str(int(self._starts[-1]))]


def _line_starts(path: Place) -> np.ndarray:
    """(lines + 1,) int64: where each line that holds something begins, and the end of the last."""
    starts, at = [], 0
    try:
        with open_file(path) as file:
            for line in file:
                if line.strip():
                    starts.append(at)
                at += len(line)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from error
    return np.array([*starts, at], dtype=np.int64)
