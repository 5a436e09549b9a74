"""Files that are whole or not there, and what a disk can do to them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from semhitok import files
from semhitok.errors import StorageError
from semhitok.files import check_writable, storage_error, write_file


def test_a_file_gets_its_name_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"new")
        assert temporary.parent == tmp_path and temporary != path
        assert path.read_bytes() == b"old"

    write_file(path, write)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_flushed_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    write_file(tmp_path / "a", lambda temporary: temporary.write_text("x"))
    assert order == ["fsync", "replace", "fsync"]  # file, name, folder


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (SafetensorError("something else"), "something else"),
    ],
)
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, error: Exception, message: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise error

    expected = f"^cannot write {path}: {message}; free space or choose another folder$"
    with pytest.raises(StorageError, match=expected) as caught:
        write_file(path, write)
    assert caught.value.__cause__ is error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_nothing_and_goes_on(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise error

    with pytest.raises(error):
        write_file(tmp_path / "a", write)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_device_that_is_full() -> None:
    with pytest.raises(OSError) as caught, open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    assert "the disk is full" in str(storage_error(Path("out"), caught.value))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write .*No such file or directory"):
        write_file(tmp_path / "none" / "a", lambda temporary: temporary.write_text("x"))


def test_check_writable_makes_the_folder_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", 1)
    assert not list((tmp_path / "a" / "b").iterdir())
    check_writable(tmp_path / "a" / "b", 1)


def test_check_writable_names_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match=f"^cannot write {place}: "):
            check_writable(place, 1)


def test_check_writable_asks_for_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=1_500_000_000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    check_writable(tmp_path, 1_500_000_000)
    message = r"has 1.50 GB free; this run writes about 2.00 GB: free space or choose another"
    with pytest.raises(StorageError, match=message):
        check_writable(tmp_path, 2_000_000_000)
