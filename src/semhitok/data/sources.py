"""Data sets as pictures that can be read in any order: folders, parquet, tar, the Hub."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from semhitok.errors import DataError, ImageError, NotFoundError, SemHiTokError
from semhitok.images import picture_suffixes, read_image, reason

ACCEPTED = (
    "a picture, a folder of pictures, .parquet files with an image column, WebDataset .tar files, "
    "or a Hub data set as owner/name or owner/name:split"
)
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "bytes")
CACHED_ROW_GROUPS = 4
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w./-]+)?")


class ImageSource(ABC):
    """Pictures by number, 0 to len - 1, always in the same order. May be pickled."""

    name: str
    """What reports call the data set."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, index: int) -> str:
        """A name of the picture that stays the same wherever the data set lies."""

    @abstractmethod
    def read_bytes(self, index: int) -> bytes | Path:
        """The picture as stored: a file's bytes, or the path to it.

        Raises:
            ImageError: it cannot be got at; the message begins with its key.
        """

    def read(self, index: int) -> Image.Image:
        """The picture as `read_image` gives it; errors begin with its key."""
        return read_image(self.read_bytes(index), name=self.key(index))

    def meta(self, index: int) -> dict[str, Any]:
        """What the data set says about the picture: `label`, `class_name`, `captions`, ..."""
        return {}

    def labels(self) -> np.ndarray | None:
        """One int64 class a picture, -1 where it has none; None without any."""
        return None

    def class_names(self) -> list[str] | None:
        """The name of each class, by label; None where the data set tells none."""
        return None

    def fingerprint(self) -> str:
        """SHA-256, in hex, over keys and sizes: another data set gives another one."""
        digest = hashlib.sha256(type(self).__name__.encode())
        for part in self._identity():
            digest.update(b"\0" + part.encode())
        return digest.hexdigest()

    @abstractmethod
    def _identity(self) -> Iterable[str]:
        """What `fingerprint` is taken over."""


class FolderSource(ImageSource):
    """The picture files below a folder, sorted by their relative path.

    Names that begin with a dot are passed over, and so are linked folders.
    """

    def __init__(self, root: Path, files: Sequence[str] | None = None) -> None:
        """Args:
            root: the folder.
            files: relative paths with forward slashes; None looks for all pictures.

        Raises:
            DataError: no picture below `root`.
        """
        self.root = root
        self.name = root.resolve().name
        self._files = list(files) if files is not None else _find(root, picture_suffixes())
        if not self._files:
            raise DataError(f"{root}: holds no pictures; accepted: {ACCEPTED}")

    def __len__(self) -> int:
        return len(self._files)

    def key(self, index: int) -> str:
        return self._files[index]

    def read_bytes(self, index: int) -> Path:
        return self.root / self._files[index]

    def _identity(self) -> Iterable[str]:
        for file in self._files:
            path = self.root / file
            yield f"{file} {path.stat().st_size if path.exists() else 'missing'}"


class ParquetSource(ImageSource):
    """The rows of one parquet file in the Hugging Face layout.

    The picture is a struct of `bytes` and `path`, or plain bytes; every other column is its
    meta. Rows are read a row group at a time, and the last few groups are kept.
    """

    _lock: threading.Lock
    _cache: OrderedDict[tuple[int, str], pa.Table]
    _file: pq.ParquetFile | None

    def __init__(self, path: Path, name: str | None = None) -> None:
        """Args:
            path: the file.
            name: begins the keys; by default the file's name.

        Raises:
            DataError: not a parquet file, or one without a column of pictures or without rows.
        """
        self.path = path
        self.name = name or path.name
        self._reset()
        try:
            file = self._open()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: cannot be read as parquet ({reason(error)})") from error
        schema = file.schema_arrow
        self._column = _image_column(schema, path)
        self._others = [name for name in schema.names if name != self._column]
        self._class_names = _class_names(schema)
        groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(groups)]).astype(np.int64)
        if len(self) == 0:
            raise DataError(f"{path}: has no rows; accepted: {ACCEPTED}")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def key(self, index: int) -> str:
        return f"{self.name}:{index}"

    def read_bytes(self, index: int) -> bytes | Path:
        value = self._cell(index, [self._column])[self._column]
        if not isinstance(value, dict):
            value = {"bytes": value}
        if isinstance(value.get("bytes"), bytes):
            return bytes(value["bytes"])
        if value.get("path"):
            return self.path.parent / str(value["path"])
        raise ImageError(f"{self.key(index)}: the row has no picture; leave it out")

    def meta(self, index: int) -> dict[str, Any]:
        row = self._cell(index, self._others) if self._others else {}
        label = row.get("label")
        if self._class_names and isinstance(label, int) and 0 <= label < len(self._class_names):
            row.setdefault("class_name", self._class_names[label])
        return row

    def labels(self) -> np.ndarray | None:
        if "label" not in self._others:
            return None
        with self._lock:
            column = self._open().read(columns=["label"]).column("label")
        if not pa.types.is_integer(column.type) or column.null_count == len(column):
            return None
        return np.asarray(column.cast(pa.int64()).fill_null(-1))

    def class_names(self) -> list[str] | None:
        return self._class_names or None

    def _identity(self) -> Iterable[str]:
        return [self.name, str(len(self)), str(self.path.stat().st_size)]

    def _cell(self, index: int, columns: list[str]) -> dict[str, Any]:
        index = range(len(self))[index]
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        try:
            table = self._group(group, columns)
        except (OSError, pa.ArrowException) as error:
            raise ImageError(f"{self.key(index)}: cannot be read ({reason(error)})") from error
        row: dict[str, Any] = table.slice(index - int(self._starts[group]), 1).to_pylist()[0]
        return row

    def _group(self, group: int, columns: list[str]) -> pa.Table:
        """Row group `group`, from the cache where it is there."""
        place = (group, columns[0])
        with self._lock:  # one parquet reader must not be used by two threads at once
            if place not in self._cache:
                self._cache[place] = self._open().read_row_group(
                    group, columns=columns, use_threads=False
                )
                while len(self._cache) > CACHED_ROW_GROUPS:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(place)
            return self._cache[place]

    def _open(self) -> pq.ParquetFile:
        if self._file is None:
            self._file = pq.ParquetFile(self.path, memory_map=True)
        return self._file

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._cache = OrderedDict()
        self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("_lock", "_cache", "_file")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()


class TarSource(ImageSource):
    """The samples of one WebDataset shard: files that share their name up to its first dot.

    The headers are read once; a picture is then one seek and one read. `.json` is spread over
    the meta, `.txt` gives `captions` (a line each), `.cls` the `label`.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        """Args:
            path: the uncompressed tar file.
            name: begins the keys; by default the file's name.

        Raises:
            DataError: not a whole tar file, or one without pictures.
        """
        self.path = path
        self.name = name or path.name
        samples = self._index()
        suffixes = {suffix[1:] for suffix in picture_suffixes()}
        self._samples: list[tuple[str, tuple[int, int], dict[str, tuple[int, int]]]] = []
        for key, parts in samples.items():
            pictures = [kind for kind in parts if kind in suffixes]
            if pictures:
                self._samples.append((key, parts[pictures[0]], parts))
        if not self._samples:
            raise DataError(f"{path}: holds no pictures; accepted: {ACCEPTED}")

    def __len__(self) -> int:
        return len(self._samples)

    def key(self, index: int) -> str:
        return f"{self.name}:{self._samples[index][0]}"

    def read_bytes(self, index: int) -> bytes:
        try:
            return self._read(self._samples[index][1])
        except OSError as error:
            raise ImageError(f"{self.key(index)}: cannot be read ({reason(error)})") from error

    def meta(self, index: int) -> dict[str, Any]:
        """Raises:
        DataError: a `.json`, `.txt` or `.cls` that does not hold what its name says.
        """
        parts = self._samples[index][2]
        meta: dict[str, Any] = {}
        try:
            if "json" in parts:
                content = json.loads(self._read(parts["json"]))
                meta.update(content if isinstance(content, dict) else {"json": content})
            if "txt" in parts:
                lines = self._read(parts["txt"]).decode("utf-8").splitlines()
                meta["captions"] = [line.strip() for line in lines if line.strip()]
            if "cls" in parts:
                meta["label"] = int(self._read(parts["cls"]))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.key(index)}: broken .json, .txt or .cls ({reason(error)})"
            ) from error
        return meta

    def labels(self) -> np.ndarray | None:
        if not any("cls" in parts for _, _, parts in self._samples):
            return None
        found = [self.meta(i).get("label", -1) for i in range(len(self))]
        return np.array(found, dtype=np.int64)

    def _identity(self) -> Iterable[str]:
        return [f"{self.name}:{key} {size}" for key, (_, size), _ in self._samples]

    def _read(self, place: tuple[int, int]) -> bytes:
        offset, size = place
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def _index(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Sample key -> kind ("jpg") -> (offset, size) of its bytes."""
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(self.path, "r:") as tar:
                for member in tar:
                    if not member.isreg() or member.issparse():
                        continue
                    folder, _, file = member.name.rpartition("/")
                    stem, _, kind = file.partition(".")
                    if stem:  # a hidden file has none
                        key = f"{folder}/{stem}" if folder else stem
                        place = (member.offset_data, member.size)
                        samples.setdefault(key, {}).setdefault(kind.lower(), place)
        except (tarfile.TarError, OSError, ValueError) as error:
            raise DataError(
                f"{self.path}: not a whole, uncompressed tar file ({reason(error)})"
            ) from error
        return samples


class ConcatSource(ImageSource):
    """Several sources, one behind the other."""

    def __init__(self, sources: Sequence[ImageSource], name: str | None = None) -> None:
        """Raises:
        DataError: no sources.
        """
        if not sources:
            raise DataError(f"no data given; accepted: {ACCEPTED}")
        self.sources = list(sources)
        self.name = name or " + ".join(source.name for source in sources)
        self._starts = np.concatenate([[0], np.cumsum([len(s) for s in sources])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def key(self, index: int) -> str:
        source, inner = self._place(index)
        return source.key(inner)

    def read_bytes(self, index: int) -> bytes | Path:
        source, inner = self._place(index)
        return source.read_bytes(inner)

    def meta(self, index: int) -> dict[str, Any]:
        source, inner = self._place(index)
        return source.meta(inner)

    def labels(self) -> np.ndarray | None:
        """None unless every source has labels, and all mean the same classes by them."""
        parts = [labels for source in self.sources if (labels := source.labels()) is not None]
        names = [source.class_names() for source in self.sources]
        if len(parts) < len(self.sources) or any(n != names[0] for n in names):
            return None
        return np.concatenate(parts)

    def class_names(self) -> list[str] | None:
        return None if self.labels() is None else self.sources[0].class_names()

    def _identity(self) -> Iterable[str]:
        return [source.fingerprint() for source in self.sources]

    def _place(self, index: int) -> tuple[ImageSource, int]:
        index = range(len(self))[index]
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sources[which], index - int(self._starts[which])


class SubsetSource(ImageSource):
    """Some pictures of a source, in the order of `indices`."""

    def __init__(self, source: ImageSource, indices: Sequence[int] | np.ndarray) -> None:
        """Raises:
        DataError: an index outside the source.
        """
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.name = f"{source.name} ({len(self.indices)} of {len(source)})"
        outside = self.indices[(self.indices < 0) | (self.indices >= len(source))]
        if outside.size:
            raise DataError(
                f"index {outside[0]} is outside {source.name}; allowed: 0 to {len(source) - 1}"
            )

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        return self.source.key(int(self.indices[index]))

    def read_bytes(self, index: int) -> bytes | Path:
        return self.source.read_bytes(int(self.indices[index]))

    def meta(self, index: int) -> dict[str, Any]:
        return self.source.meta(int(self.indices[index]))

    def labels(self) -> np.ndarray | None:
        labels = self.source.labels()
        return None if labels is None else labels[self.indices]

    def class_names(self) -> list[str] | None:
        return self.source.class_names()

    def _identity(self) -> Iterable[str]:
        return [self.source.fingerprint(), hashlib.sha256(self.indices.tobytes()).hexdigest()]


# -------------------------------------------------------------------------------------- opening


def open_source(data: str | Path | Sequence[str | Path]) -> ImageSource:
    """The data set that a path or a Hub name stands for; of several, one behind the other.

    A folder counts as parquet files where it holds any, else as tar files, else as pictures;
    each is looked for in its subfolders too. What exists on disk is never taken for a Hub name.

    Raises:
        NotFoundError: neither a path nor a data set of the Hub.
        DataError: there, but of no kind that is read, or empty.
    """
    if not isinstance(data, (str, Path)):
        sources = [open_source(item) for item in data]
        return sources[0] if len(sources) == 1 else ConcatSource(sources)
    path = Path(data)
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_file(path)
    text = str(data)
    if isinstance(data, str) and _HUB_NAME.fullmatch(text) and not _is_file_name(text):
        repo, _, split = text.partition(":")
        return hub_source(repo, split or None)
    raise NotFoundError(f"{data}: no such file or folder; accepted: {ACCEPTED}")


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


def _open_folder(path: Path) -> ImageSource:
    for suffix, kind in ((".parquet", ParquetSource), (".tar", TarSource)):
        files = _find(path, frozenset({suffix}))
        if files:
            sources = [kind(path / file, name=file) for file in files]
            return sources[0] if len(files) == 1 else ConcatSource(sources, path.resolve().name)
    return FolderSource(path)


def _open_file(path: Path) -> ImageSource:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return ParquetSource(path)
    if suffix == ".tar":
        return TarSource(path)
    if suffix in picture_suffixes():
        return FolderSource(path.parent, files=[path.name])
    raise DataError(f"{path}: a {suffix or 'file without suffix'}; accepted: {ACCEPTED}")


def _is_file_name(text: str) -> bool:
    return Path(text).suffix.lower() in picture_suffixes() | {".parquet", ".tar"}


def _find(root: Path, suffixes: frozenset[str]) -> list[str]:
    """Relative paths, with forward slashes and sorted, of the files with one of `suffixes`."""
    found = []
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for file in files:
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in suffixes:
                found.append((Path(folder) / file).relative_to(root).as_posix())
    return sorted(found)


def _image_column(schema: pa.Schema, path: Path) -> str:
    """The column of pictures: one of the usual names first, else the first that fits."""
    fitting = [field.name for field in schema if _holds_pictures(field.type)]
    usual = [name for name in IMAGE_COLUMNS if name in fitting]
    if not fitting:
        raise DataError(
            f"{path}: no column holds pictures (bytes, or a struct of bytes and path); "
            f"its columns: {', '.join(schema.names)}"
        )
    return (usual or fitting)[0]


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: pa.Schema) -> list[str]:
    """Names of the labels, from what `datasets` writes into the schema; empty without."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"].get("names") or []]
    except (KeyError, ValueError, TypeError, AttributeError):
        return []
