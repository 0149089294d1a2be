"""The few things the layer store asks of a file system, so that a test can lose what was not synced."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from typing_extensions import Buffer

# fallocate(2): free the range's blocks and read it as zeros from then on, leave the file's length.
_KEEP_SIZE_AND_PUNCH: Final = 0x01 | 0x02
_FILE_MODE: Final = 0o600


class Disk(Protocol):
    """File operations in the order in which the store relies on them. Errors are OSError."""

    def open(self, path: Path, size: int) -> int:
        """Open a file for reading and writing, made and set to *size* bytes if it has another length; return its fd."""
        ...

    def write(self, fd: int, data: Buffer, offset: int) -> None:
        """Write all of *data*; it is durable after `sync`."""
        ...

    def sync(self, fd: int) -> None:
        """Return when everything written to the file is durable."""
        ...

    def punch(self, fd: int, offset: int, length: int) -> None:
        """Free the blocks of a range; it reads as zeros."""
        ...

    def replace(self, path: Path, content: Buffer) -> None:
        """Give a file new content: after a crash it has the old or the new one, after the return the new one."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a file durably; a missing one is success."""
        ...


class OsDisk:
    """The operating system's file systems."""

    def __init__(self) -> None:
        self._fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        self._fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    def open(self, path: Path, size: int) -> int:
        """Open or make a sparse file."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            if os.fstat(fd).st_size != size:
                os.ftruncate(fd, size)
        except OSError:
            os.close(fd)
            raise
        return fd

    def write(self, fd: int, data: Buffer, offset: int) -> None:
        """Write everything at an offset."""
        view = memoryview(data)
        while view:
            count = os.pwrite(fd, view, offset)
            view = view[count:]
            offset += count

    def sync(self, fd: int) -> None:
        """Sync a file's data."""
        os.fdatasync(fd)

    def punch(self, fd: int, offset: int, length: int) -> None:
        """Punch a hole."""
        if self._fallocate(fd, _KEEP_SIZE_AND_PUNCH, offset, length) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def replace(self, path: Path, content: Buffer) -> None:
        """Write a new file, sync it, rename it over the old one, sync the directory."""
        fresh = path.with_name(path.name + ".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _FILE_MODE)
        try:
            self.write(fd, content, 0)
            os.fsync(fd)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        fresh.replace(path)
        sync_directory(path.parent)

    def unlink(self, path: Path) -> None:
        """Remove a file and sync its directory."""
        try:
            path.unlink()
        except FileNotFoundError:  # each removal is synced, so there is nothing to sync
            return
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of space or quota rather than because the disk is broken."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
