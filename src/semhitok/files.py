"""Files written so that a half one is never seen, and disks that are full said so."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from semhitok.errors import StorageError


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary)` make a file, flush it to the disk, and give it its name.

    Raises:
        StorageError: the disk is full or the folder cannot be written; the temporary is removed.
    """
    # Not the process's number: on a disk that machines share another one may have the same.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise storage_error(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def storage_error(path: Path, error: Exception) -> StorageError:
    """One line for a write that failed."""
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    reason = "the disk is full" if full else (getattr(error, "strerror", None) or str(error))
    return StorageError(f"cannot write {path}: {reason}; free space or choose another folder")


def check_writable(folder: Path, needed_bytes: int) -> None:
    """Make the folder, and say now what would go wrong later.

    Raises:
        StorageError: the folder cannot be made or written, or has too little space.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"\0")
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise storage_error(folder, error) from error
    if free < needed_bytes:
        raise StorageError(
            f"{folder} has {free / 1e9:.2f} GB free; this run writes about "
            f"{needed_bytes / 1e9:.2f} GB: free space or choose another folder"
        )


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """Permissions that new files go without; some writers make theirs for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
