"""Data sets of every kind, opened by what they look like."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from s3 import BUCKET, Store

from semhitok.data.sources import (
    ConcatSource,
    FolderSource,
    ImageSource,
    JsonlSource,
    ParquetSource,
    SubsetSource,
    TarSource,
    open_source,
)
from semhitok.data.sources import tar as tar_module
from semhitok.errors import DataError, ImageError, NotFoundError, StorageError
from semhitok.storage import Place, locate, remove_file, write_bytes

KINDS = ("png", "cls")


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def levels(source: ImageSource) -> list[int]:
    """The grey level of each picture: which one it is."""
    return [source.read(i).getpixel((0, 0))[0] for i in range(len(source))]  # type: ignore[index]


def write_folder(root: Path, names: list[str]) -> Path:
    for level, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(level))
    return root


def write_parquet(path: Path, count: int = 7, first: int = 0, **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(first + i), "path": f"{i}.png"} for i in range(count)]
    table = pa.table({"image": images, **columns})
    info = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=2)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


# ------------------------------------------------------------------------------------- folders


def test_folder_is_sorted_and_keeps_to_pictures(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", ["b/2.PNG", "a/1.png", "c.jpeg", ".hidden.png", ".git/3.png"])
    (tmp_path / "set" / "notes.txt").write_text("no picture")
    source = open_source(tmp_path / "set")
    assert isinstance(source, FolderSource) and source.name == "set"
    assert [source.key(i) for i in range(len(source))] == ["a/1.png", "b/2.PNG", "c.jpeg"]
    assert levels(source) == [1, 0, 2]
    assert source.labels() is None and source.meta(0) == {}


def test_broken_pictures_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path, ["a/1.png"])
    (tmp_path / "a" / "2.png").write_bytes(b"nonsense")
    with pytest.raises(ImageError, match=r"^a/2.png: is not a picture"):
        open_source(tmp_path).read(1)


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    one = open_source(write_folder(tmp_path / "x" / "set", ["1.png", "2.png"]))
    two = open_source(write_folder(tmp_path / "y" / "set", ["1.png", "2.png"]))
    assert one.fingerprint() == two.fingerprint() and len(one.fingerprint()) == 64
    (tmp_path / "y" / "set" / "2.png").write_bytes(b"longer or shorter")
    two = open_source(tmp_path / "y" / "set")
    assert one.fingerprint() != two.fingerprint()
    assert SubsetSource(one, [0]).fingerprint() != SubsetSource(one, [1]).fingerprint()


# ------------------------------------------------------------------------------------- parquet


def test_parquet_rows(tmp_path: Path) -> None:
    labels = [0, 1, None, 1, 0, 0, 1]
    captions = [[f"number {i}"] for i in range(7)]
    source = open_source(write_parquet(tmp_path / "p.parquet", label=labels, captions=captions))
    assert isinstance(source, ParquetSource) and len(source) == 7
    assert [source.key(i) for i in (0, 6)] == ["p.parquet:0", "p.parquet:6"]
    assert levels(source) == list(range(7))
    assert source.read(5).getpixel((0, 0)) == (5, 5, 5)
    assert source.meta(3) == {"label": 1, "captions": ["number 3"], "class_name": "dog"}
    assert source.meta(2) == {"label": None, "captions": ["number 2"]}
    found = source.labels()
    assert found is not None and found.dtype == np.int64
    assert found.tolist() == [0, 1, -1, 1, 0, 0, 1]


def test_parquet_survives_pickling_and_threads(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "p.parquet"))
    assert levels(source) == list(range(7))
    copy = pickle.loads(pickle.dumps(source))
    order = np.random.default_rng(0).integers(0, 7, 200).tolist()
    with ThreadPoolExecutor(8) as pool:
        seen = [im.getpixel((0, 0))[0] for im in pool.map(copy.read, order)]
    assert seen == order


def test_parquet_of_plain_bytes_and_of_paths(tmp_path: Path) -> None:
    pq.write_table(pa.table({"name": ["x"], "jpg": [png(9)]}), tmp_path / "bytes.parquet")
    assert levels(open_source(tmp_path / "bytes.parquet")) == [9]
    write_folder(tmp_path / "files", ["0.png"])
    rows = [{"bytes": None, "path": "files/0.png"}, {"bytes": None, "path": "gone.png"}, None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "paths.parquet")
    source = open_source(tmp_path / "paths.parquet")
    assert source.read(0).size == (4, 4)
    with pytest.raises(NotFoundError, match=r"^paths.parquet:1: no such file"):
        source.read(1)
    with pytest.raises(ImageError, match=r"^paths.parquet:2: the row has no picture"):
        source.read(2)


def test_unusable_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        open_source(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="no column holds pictures.*its columns: text"):
        open_source(tmp_path / "b.parquet")
    write_parquet(tmp_path / "c.parquet", count=0, label=[])
    with pytest.raises(DataError):
        open_source(tmp_path / "c.parquet")


@pytest.mark.shared
def test_packs(shared: Path) -> None:
    data = shared / "data"
    source = open_source([data / "kodak-test.parquet", str(data / "flickr8k-val.parquet")])
    assert len(source) == 1024 and source.labels() is None
    assert source.read(0).size == (768, 512)
    assert source.key(24) == "flickr8k-val.parquet:0"
    assert len(source.meta(24)["captions"]) == 5
    birds = open_source(data / "imagenet1k-dev.parquet").labels()
    assert birds is not None and sorted(birds.tolist()) == list(range(1000))


# ----------------------------------------------------------------------------------------- tar


def test_tar_samples(tmp_path: Path) -> None:
    files = {
        "d/a.jpg": png(1),
        "d/a.txt": b"A cat.\nOn a mat.\n",
        "d/a.cls": b"3",
        "d/b.json": b'{"source": "web"}',
        "d/b.png": png(2),
        "d/b.seg.png": png(9),
        "d/only.txt": b"no picture",
    }
    source = open_source(write_tar(tmp_path / "s.tar", files))
    assert isinstance(source, TarSource)
    assert [source.key(i) for i in range(len(source))] == ["s.tar:d/a", "s.tar:d/b"]
    assert levels(pickle.loads(pickle.dumps(source))) == [1, 2]
    assert source.meta(0) == {"captions": ["A cat.", "On a mat."], "label": 3}
    assert source.meta(1) == {"source": "web"}
    found = source.labels()
    assert found is not None and found.tolist() == [3, -1]


def test_unusable_tar(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", {"a.png": png(1), "b.png": png(2) * 20}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:2000])
    with pytest.raises(DataError, match="cut.tar: not a whole, uncompressed tar file"):
        open_source(tmp_path / "cut.tar")
    (tmp_path / "zip.tar").write_bytes(b"PK" * 3000)
    with pytest.raises(DataError, match="zip.tar: not a whole"):
        open_source(tmp_path / "zip.tar")
    with pytest.raises(DataError, match="holds no pictures"):
        open_source(write_tar(tmp_path / "n.tar", {"a.txt": b"x"}))
    bad = open_source(write_tar(tmp_path / "m.tar", {"a.png": png(1), "a.cls": b"cat"}))
    with pytest.raises(DataError, match=r"^m.tar:a: broken"):
        bad.meta(0)


# -------------------------------------------------------------------------------------- joining


# --------------------------------------------------------------------------------------- jsonl


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def test_jsonl_of_paths(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", ["a.png", "b.png"])
    rows: list[Any] = [
        {"image": "pictures/b.png", "captions": ["dark"], "label": 7},
        {"image": str(tmp_path / "pictures" / "a.png")},
        {"image": (tmp_path / "pictures" / "a.png").as_uri(), "label": 2},
        {"image": "pictures/gone.png"},
        {"captions": ["no picture"]},
        ["a list"],
    ]
    source = open_source(write_jsonl(tmp_path / "list.jsonl", rows))
    assert isinstance(source, JsonlSource) and len(source) == 6 and source.key(1) == "list.jsonl:1"
    assert [source.read(n).getpixel((0, 0))[0] for n in range(3)] == [1, 0, 0]  # type: ignore[index]
    assert source.meta(0) == rows[0]
    with pytest.raises(NotFoundError, match="list.jsonl:3: no such file"):
        source.read(3)
    with pytest.raises(ImageError, match="list.jsonl:4: has no 'image'; leave the line out"):
        source.read(4)
    with pytest.raises(ImageError, match="list.jsonl:5: is list, not a JSON object"):
        source.read(5)
    labels = source.labels()
    assert labels is not None and labels.tolist() == [7, -1, 2, -1, -1, -1]
    assert open_source(write_jsonl(tmp_path / "none.jsonl", rows[3:5])).labels() is None


def test_unusable_jsonl(tmp_path: Path) -> None:
    for text, match in (
        ("", "has no lines"),
        ("no json\n", "is no line of JSON"),
        ('{"text": 1}\n', "names no picture; one of image, path.*it has: text"),
    ):
        (tmp_path / "list.jsonl").write_text(text)
        with pytest.raises(DataError, match=match):
            open_source(tmp_path / "list.jsonl")


# --------------------------------------------------------------------------------------- stores


def fill(store_folder: Place, local: Path) -> None:
    for path in local.rglob("*"):
        if path.is_file():
            write_bytes(store_folder / path.relative_to(local).as_posix(), path.read_bytes())


def test_every_kind_of_data_in_a_store(store: Store, tmp_path: Path) -> None:
    local = tmp_path / "local"
    write_folder(local / "folder", ["x/1.png", "2.png"])
    write_parquet(local / "rows" / "a.parquet", 4)
    (local / "tars").mkdir()
    write_tar(local / "tars" / "a.tar", {"1.png": png(1), "1.txt": b"one", "2.png": png(2)})
    write_jsonl(local / "list.jsonl", [{"image": "folder/2.png", "label": 3}])
    root = locate(f"s3://{BUCKET}/{tmp_path.name}")
    fill(root, local)
    for name in ("folder", "rows", "tars", "list.jsonl"):
        here, there = open_source(local / name), open_source(f"{root}/{name}")
        assert there.remote and not here.remote and there.fingerprint() == here.fingerprint()
        there = pickle.loads(pickle.dumps(there))
        assert levels(there) == levels(here)
        every = range(len(here))
        assert [there.key(n) for n in every] == [here.key(n) for n in every]
        assert [there.meta(n) for n in every] == [here.meta(n) for n in every]
        there = pickle.loads(pickle.dumps(there))  # nothing is kept of what was read
        store.share = 1.0
        with pytest.raises(StorageError, match="the store failed 5 times"):
            there.read(0)
        store.share = 0.0
    with pytest.raises(NotFoundError, match="no such file or folder"):
        open_source(f"{root}/nothing")
    write_bytes(root / "empty" / "notes.txt", b"x")
    with pytest.raises(DataError, match="holds no pictures"):
        open_source(f"{root}/empty")


def test_a_tar_in_a_store_is_read_through_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{n}.{kind}": png(n) if kind == "png" else b"7" for n in (1, 2) for kind in KINDS}
    (tmp_path / "local").mkdir()
    local = write_tar(tmp_path / "local" / "a.tar", files)
    root = locate(f"s3://{BUCKET}/{tmp_path.name}")
    fill(root, tmp_path / "local")
    first = open_source(f"{root}/a.tar")
    opened: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(tar_module, "open_file", lambda place: opened.append(place))
        again = open_source(f"{root}/a.tar")
    assert not opened and again.fingerprint() == first.fingerprint()
    assert levels(again) == [1, 2] and again.meta(1) == {"label": 7}
    labels = again.labels()
    assert labels is not None and labels.tolist() == [7, 7]
    write_bytes(root / "a.tar", write_tar(local, {**files, "3.png": png(3)}).read_bytes())
    assert len(open_source(f"{root}/a.tar")) == 3, "a changed tar is read anew"
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(b"damaged")
    assert len(open_source(f"{root}/a.tar")) == 3
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEMHITOK_CACHE", str(tmp_path / "file" / "cache"))
    assert len(open_source(f"{root}/a.tar")) == 3, "without a place to keep it, it works too"


def test_a_picture_that_is_gone_from_a_store(store: Store, tmp_path: Path) -> None:
    root = locate(f"s3://{BUCKET}/{tmp_path.name}")
    fill(root, write_folder(tmp_path / "local", ["1.png", "2.png"]))
    source = open_source(str(root))
    remove_file(root / "2.png")
    assert source.read(0).size == (4, 4)
    with pytest.raises(ImageError, match="2.png: is gone"):
        source.read(1)


# --------------------------------------------------------------------------------- of several


def test_concat_and_subset(tmp_path: Path) -> None:
    one = open_source(write_parquet(tmp_path / "1.parquet", count=3, label=[0, 1, 0]))
    two = open_source(write_parquet(tmp_path / "2.parquet", count=2, first=10, label=[1, 1]))
    both = ConcatSource([one, two])
    assert levels(both) == [0, 1, 2, 10, 11]
    assert both.key(3) == "2.parquet:0" and both.meta(4)["label"] == 1
    part = SubsetSource(both, [4, 0])
    assert levels(part) == [11, 0] and part.key(0) == "2.parquet:1"
    found = part.labels()
    assert found is not None and found.tolist() == [1, 0]
    with pytest.raises(IndexError):
        both.read(5)
    with pytest.raises(DataError, match="index 5 is outside"):
        SubsetSource(both, [0, 5])
    unlabelled = open_source(write_parquet(tmp_path / "3.parquet"))
    assert ConcatSource([one, unlabelled]).labels() is None


@pytest.mark.shared
def test_labels_that_mean_other_classes_are_not_mixed(shared: Path) -> None:
    data = shared / "data"
    train, val, other = (
        open_source(data / f"{name}.parquet")
        for name in ("caltech101-train", "caltech101-val", "imagenette-val")
    )
    names = ConcatSource([train, val]).class_names()
    assert names is not None and len(names) == 100 and names == val.class_names()
    mixed = ConcatSource([val, other])
    assert mixed.labels() is None and mixed.class_names() is None


def test_folders_of_shards(tmp_path: Path) -> None:
    write_parquet(tmp_path / "p" / "train" / "0.parquet", count=2)
    write_parquet(tmp_path / "p" / "val" / "0.parquet", count=1, first=5)
    source = open_source(tmp_path / "p")
    assert [source.key(i) for i in (0, 2)] == ["train/0.parquet:0", "val/0.parquet:0"]
    (tmp_path / "t").mkdir()
    for name, level in (("1.tar", 7), ("0.tar", 3)):
        write_tar(tmp_path / "t" / name, {"x.png": png(level)})
    assert levels(open_source(tmp_path / "t")) == [3, 7]
    assert levels(open_source([tmp_path / "t" / "1.tar", tmp_path / "p"])) == [7, 0, 1, 5]


def test_one_picture_is_a_data_set(tmp_path: Path) -> None:
    write_folder(tmp_path, ["x.png"])
    source = open_source(str(tmp_path / "x.png"))
    assert len(source) == 1 and source.key(0) == "x.png"


def test_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures; accepted: a picture"):
        open_source(tmp_path)
    with pytest.raises(DataError, match="no data given; accepted"):
        open_source([])
    for gone in (tmp_path / "gone", "gone", "folder/gone.png", "folder/gone.parquet"):
        with pytest.raises(NotFoundError, match="no such file or folder; accepted: a picture"):
            open_source(gone)
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"x.zip: a .zip; accepted"):
        open_source(tmp_path / "x.zip")


# ----------------------------------------------------------------------------------------- Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A Hub whose files, by revision, a test fills in."""
    files: dict[str, list[str]] = {"main": [], "refs/convert/parquet": []}

    def list_repo_files(self: object, repo: str, *, repo_type: str, revision: str) -> list[str]:
        if repo != "owner/set" or repo_type != "dataset":
            raise huggingface_hub.errors.OfflineModeIsEnabled("no network")
        return files[revision]

    def download(repo: str, file: str, *, repo_type: str, revision: str) -> str:
        assert file in files[revision]
        return str(write_parquet(tmp_path / revision / file, count=2, first=len(file)))

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return files


def test_hub_split(hub: dict[str, list[str]]) -> None:
    names = [
        "data/train-00001-of-2.parquet",
        "data/train-00000-of-2.parquet",
        "data/test-0.parquet",
    ]
    hub["main"] = ["README.md", *names]
    source = open_source("owner/set")
    assert source.name == "owner/set:train" and len(source) == 4
    assert source.key(0) == "data/train-00000-of-2.parquet:0"
    assert len(open_source("owner/set:test")) == 2
    with pytest.raises(NotFoundError, match="no split 'val'; its files: data/test-0.parquet"):
        open_source("owner/set:val")


def test_hub_conversion_branch_and_configurations(hub: dict[str, list[str]]) -> None:
    hub["main"] = ["photos.zip"]
    hub["refs/convert/parquet"] = ["a/train/0000.parquet", "b/train/0000.parquet"]
    with pytest.raises(DataError, match="stands in a/train, b/train; give owner/set:a/train"):
        open_source("owner/set")
    assert open_source("owner/set:b/train").key(0) == "b/train/0000.parquet:0"


def test_hub_out_of_reach(hub: dict[str, list[str]]) -> None:
    with pytest.raises(NotFoundError, match="neither a local path nor a Hub data set.*no network"):
        open_source("other/set")
    with pytest.raises(NotFoundError, match="no parquet files"):
        open_source("owner/set")
