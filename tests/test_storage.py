"""Places by path and by URL: the same verbs, and what a store's trouble looks like."""

from __future__ import annotations

import importlib.util
import pickle
import time
from pathlib import Path

import pytest
from s3 import BUCKET, Store

from semhitok.errors import MissingExtraError, NotFoundError, StorageError
from semhitok.storage import (
    Place,
    check_folder,
    file_size,
    find_files,
    is_file,
    is_folder,
    is_remote,
    list_names,
    locate,
    open_file,
    read_file,
    remove_file,
    write_bytes,
)


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty folder of each kind."""
    if request.param == "local":
        return tmp_path
    if request.param == "memory":
        return locate(f"memory://{tmp_path.name}")
    request.getfixturevalue("store")
    return locate(f"s3://{BUCKET}/{tmp_path.name}")


def test_what_is_written_is_found_and_read(root: Place) -> None:
    check_folder(root / "out")
    assert list_names(root / "out") == set()
    write_bytes(root / "out" / "a.bin", b"hello")
    write_bytes(root / "out" / "a.bin", b"hello again")
    assert is_file(root / "out" / "a.bin") and not is_file(root / "out")
    assert is_folder(root / "out") and not is_folder(root / "out" / "a.bin")
    assert not is_file(root / "none") and not is_folder(root / "none")
    assert list_names(root / "out") == {"a.bin"} and list_names(root / "none") == set()
    assert file_size(root / "out" / "a.bin") == 11
    assert read_file(root / "out" / "a.bin") == b"hello again"
    assert read_file(root / "out" / "a.bin", 6) == b"again"
    assert read_file(root / "out" / "a.bin", 1, 5) == b"ello"
    with pytest.raises(FileNotFoundError):
        read_file(root / "none")
    remove_file(root / "out" / "a.bin")
    remove_file(root / "out" / "a.bin")
    assert not is_file(root / "out" / "a.bin")


def test_files_are_found_below_a_folder_by_suffix(root: Place) -> None:
    for name in ("b/2.PNG", "a/1.png", "c.txt", ".hidden.png", ".git/3.png"):
        if isinstance(root, Path):
            (root / name).parent.mkdir(exist_ok=True)
        write_bytes(root / name, b"x" * len(name))
    assert find_files(root, {".png"}) == {"a/1.png": 7, "b/2.PNG": 7}
    assert list_names(root) == {"c.txt", ".hidden.png"} | ({"a", "b", ".git"} & list_names(root))


def test_a_file_is_read_at_any_offset(root: Place) -> None:
    content = bytes(range(256)) * 40
    write_bytes(root / "f", content)
    with open_file(root / "f", buffer_bytes=64) as file:
        assert file.read(3) == content[:3]
        assert file.seek(-5, 2) == len(content) - 5 and file.read() == content[-5:]
        assert file.seek(1000) == 1000 and file.read(600) == content[1000:1600]
        assert file.read(-1) == content[1600:] and file.read(1) == b""


def test_paths_stay_paths(tmp_path: Path) -> None:
    assert locate(str(tmp_path)) == tmp_path and not is_remote(locate("a/b"))
    assert locate(f"file://{tmp_path}/x") == tmp_path / "x"
    assert isinstance(locate(f"file://{tmp_path}/x"), Path)
    place = locate("memory://a/b.tar")
    assert is_remote(place) and place.name == "b.tar" and locate(place) == place
    assert pickle.loads(pickle.dumps(place)) == place


def test_urls_that_nobody_knows() -> None:
    with pytest.raises(NotFoundError, match="no such kind of URL"):
        locate("nosuch://a/b")


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(MissingExtraError, match="gs://bucket/x: .*install gcsfs"):
        locate("gs://bucket/x")


# ------------------------------------------------------------------------------------- trouble


def test_a_store_that_stumbles_is_asked_again(store: Store, tmp_path: Path) -> None:
    root = locate(f"s3://{BUCKET}/{tmp_path.name}")
    store.share = 0.3
    for number in range(20):
        write_bytes(root / str(number), bytes([number]) * 1000)
        assert read_file(root / str(number), 10, 500) == bytes([number]) * 490
    assert len(store.failures) > 8, "nothing was tried again"


def test_a_store_that_is_down_is_one_line(store: Store, tmp_path: Path) -> None:
    store.share = 1.0
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"the store failed 5 times .*start again") as caught:
        read_file(locate(f"s3://{BUCKET}/{tmp_path.name}/x"))
    assert "\n" not in str(caught.value) and time.monotonic() - started < 30


class NoCredentialsError(Exception):
    """What S3's library raises where there are none; no PermissionError."""


@pytest.mark.parametrize("kind", [PermissionError, NoCredentialsError])
def test_a_store_that_refuses_is_not_asked_again(
    kind: type[Exception], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, calls = locate(f"s3://{BUCKET}/x"), []

    def refuse(*_: object, **__: object) -> bytes:
        calls.append(1)
        raise kind("Access Denied")

    monkeypatch.setattr(place.fs, "cat_file", refuse)  # type: ignore[union-attr]
    with pytest.raises(StorageError, match="the store refuses .*Access Denied.*credentials"):
        read_file(place)
    assert len(calls) == 1


def test_a_bucket_that_is_not_there(store: Store) -> None:
    with pytest.raises(StorageError, match="cannot be written.*make the bucket first"):
        check_folder(locate("s3://no-such-bucket/out"))
