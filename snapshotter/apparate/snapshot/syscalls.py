"""The few calls of Linux that Python does not offer."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: Path) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))


def mount(source: str, target: Path, fstype: str, options: str) -> None:
    """mount(2) without flags."""
    _check(
        _libc.mount(source.encode(), os.fsencode(target), fstype.encode(), ctypes.c_ulong(0), options.encode()), target
    )


def unmount(target: Path) -> None:
    """umount2(2) without flags."""
    _check(_libc.umount2(os.fsencode(target), 0), target)


def sync_file_system(path: Path) -> None:
    """syncfs(2): return when everything written to the file system of *path* is on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check(_libc.syncfs(fd), path)
    finally:
        os.close(fd)
