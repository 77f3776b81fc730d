"""What can go wrong with the folder that is written: somebody else writes it too, or the disk is full."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from roboalign.sdk.errors import ConfigError, DataError

__all__ = ["one_writer", "told_when_full"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Holds `.<name>.lock` beside the folder; it names our process, and goes when we are done.

    A lock of a process that was killed is free: it is the open file that locks, not its name.

    Raises:
        ConfigError: somebody else is writing this folder; says who.
    """
    import fcntl

    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(lock, 64, 0).decode("ascii", "replace").strip()
            os.close(lock)
            raise ConfigError(
                f"{folder} is being written by another process (pid {owner or 'unknown'}); wait until it is done, or "
                "choose another folder"
            ) from None
        if _is_at(lock, path):
            break
        # The former owner removed the file between our opening and locking it.
        os.close(lock)
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


@contextmanager
def told_when_full(folder: Path, next_step: str) -> Iterator[None]:
    """Turns the error of a full disk (or of a limit on it) into a DataError that says what is left and what to do."""
    try:
        yield
    except OSError as err:
        if err.errno not in _FULL:
            raise
        place = folder if folder.exists() else folder.parent
        free_mb = shutil.disk_usage(place).free / 1e6
        raise DataError(
            f"{folder} could not be written: {os.strerror(err.errno or 0)} ({free_mb:.0f} MB free); {next_step}"
        ) from err


def _is_at(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False
