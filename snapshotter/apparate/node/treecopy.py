"""Copying the directory of an unpacked layer, so that overlayfs sees the same layer in the copy.

Everything that a layer can hold is kept: owners, modes, times, extended attributes (whiteouts of directories and file capabilities
among them), hard links, holes, devices (whiteouts of files). File systems that can share blocks share them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from apparate.errors import Unavailable

_FICLONE: Final = 0x40049409
"""ioctl_ficlone(2): share the blocks of one file with another."""
_COPY_BYTES: Final = 1 << 24
_FOREIGN_TO_A_COPY: Final = frozenset(
    {b"trusted.overlay.origin", b"trusted.overlay.impure", b"trusted.overlay.nlink", b"trusted.overlay.uuid"}
)
"""What overlayfs notes of the inodes and file handles below; they would be another file's in the copy."""
_NO_CLONE: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ENOSYS})


def copy_tree(source: Path, target: Path) -> None:
    """Make the existing, empty directory *target* equal to *source*.

    Raises:
        Unavailable: the disk does not take it, or *source* cannot be read; the target is not complete.
    """
    try:
        _Copier(os.fsencode(source), os.fsencode(target)).run()
    except OSError as error:
        raise Unavailable(f"layer cannot be copied: {error.strerror}: {error.filename or source}") from error


class _Copier:
    def __init__(self, source: bytes, target: bytes) -> None:
        self._source = source
        self._target = target
        self._linked: dict[tuple[int, int], bytes] = {}
        self._directories: list[tuple[bytes, bytes]] = []

    def run(self) -> None:
        pending = [(self._source, self._target)]
        while pending:
            source, target = pending.pop()
            self._directories.append((source, target))
            with os.scandir(source) as entries:
                for entry in entries:
                    there = os.path.join(target, entry.name)  # names in layers are bytes
                    if entry.is_dir(follow_symlinks=False):
                        os.mkdir(there)  # as above
                        pending.append((entry.path, there))
                    else:
                        self._copy(entry.path, there)
        for source, target in reversed(self._directories):  # children first: they change the times of their parents
            _copy_attributes(source, target, os.lstat(source))

    def _copy(self, source: bytes, target: bytes) -> None:
        status = os.lstat(source)
        if status.st_nlink > 1:
            first = self._linked.setdefault((status.st_dev, status.st_ino), target)
            if first != target:
                os.link(first, target, follow_symlinks=False)
                return
        if stat.S_ISREG(status.st_mode):
            _copy_data(source, target, status.st_size)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(source), target)
        else:
            os.mknod(target, status.st_mode, status.st_rdev)
        _copy_attributes(source, target, status)


def _copy_attributes(source: bytes, target: bytes, status: os.stat_result) -> None:
    os.lchown(target, status.st_uid, status.st_gid)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))  # as above; after chown, which clears setuid
    for name in os.listxattr(source, follow_symlinks=False):
        if os.fsencode(name) in _FOREIGN_TO_A_COPY:
            continue
        os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _copy_data(source: bytes, target: bytes, size: int) -> None:
    readable = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        writable = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if not _clone(readable, writable):
                _copy_extents(readable, writable, size)
        finally:
            os.close(writable)
    finally:
        os.close(readable)


def _clone(readable: int, writable: int) -> bool:
    try:
        fcntl.ioctl(writable, _FICLONE, readable)
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
        return False
    return True


def _copy_extents(readable: int, writable: int, size: int) -> None:
    os.ftruncate(writable, size)
    position = 0
    while position < size:
        try:
            position = os.lseek(readable, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        end = os.lseek(readable, position, os.SEEK_HOLE)
        os.lseek(writable, position, os.SEEK_SET)
        while position < end:
            copied = os.sendfile(writable, readable, position, min(_COPY_BYTES, end - position))
            if copied == 0:
                raise OSError(errno.EIO, "a file of a layer became shorter while it was copied")
            position += copied
