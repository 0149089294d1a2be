"""One change of a node at a time, whoever makes it: role, agent or a person."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from apparate.errors import Unavailable

WAIT_S: Final = 300.0
"""A run waits this long for another one: long enough for a configuration with its images, and for its rollback."""
_POLL_S: Final = 0.1
_NAME: Final = "lock"


@contextmanager
def exclusive(directory: Path, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold the lock of *directory* meanwhile; the kernel frees it when its holder dies. An empty directory is removed at the end.

    Raises:
        Unavailable: another run holds it for longer than *wait_s*; or it cannot be made.
    """
    path = directory / _NAME
    try:
        handle = _acquire(path, time.monotonic() + wait_s)
    except OSError as error:
        raise Unavailable(f"{path} cannot be made: {error.strerror}") from error
    try:
        yield
    finally:
        _leave(directory, path)
        os.close(handle)


def _acquire(path: Path, deadline: float) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_current(handle, path):
                return handle
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(handle)
                raise Unavailable(f"another run of apparate node holds {path}: wait for its end") from None
            time.sleep(_POLL_S)
        os.close(handle)


def _is_current(handle: int, path: Path) -> bool:
    """Say whether *path* is still the file that was locked: its former holder may have removed it."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(handle)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _leave(directory: Path, path: Path) -> None:
    """Remove the lock, still held, and its directory where they are all that is left: a restored node keeps no file of ours."""
    if {entry.name for entry in directory.iterdir()} <= {_NAME}:
        path.unlink()
        try:
            directory.rmdir()
        except OSError:
            return  # another run has begun in it
