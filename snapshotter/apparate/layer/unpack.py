"""Writes the tar of a layer into a directory, as containerd's applier writes it into an upper directory.

The rules are those of containerd's `archive` package (`format.tree` states them for a mounted layer): whiteouts become
overlayfs' own, a later entry replaces an earlier one, the attributes of a hard link are those of its inode, entries of
the root itself are ignored, a missing parent directory is made with the attributes it has below. Unlike there, no path
is resolved through a symbolic link of the layer: every component is opened by itself, and such an entry is refused.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from apparate.errors import FormatError, Unavailable
from apparate.format.tar import EntryEnd, EntryHeader, Payload, TarParser
from apparate.format.toc import Entry, EntryType
from apparate.oci.digest import Digest

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_RESERVED: Final = b".wh..wh."
_OPAQUE_XATTR: Final = "trusted.overlay.opaque"
_TRUSTED: Final = "trusted."
_TIME_END_NS: Final = 1 << 63
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FORMATS: Final = {EntryType.CHAR: stat.S_IFCHR, EntryType.BLOCK: stat.S_IFBLK, EntryType.FIFO: stat.S_IFIFO}


def apply_tar(tar: Iterable[bytes], directory: Path, lowers: Sequence[Path]) -> Digest:
    """Unpack *tar* into the empty *directory* and return the digest of its bytes.

    *lowers* are the directories of the layers below, nearest first: a directory that the tar only implies gets
    its owner and mode from the first of them that has it.

    Raises:
        FormatError: this is no tar that can be unpacked.
        Unavailable: the disk does not take it.
    """
    hasher = hashlib.sha256()
    parser = TarParser()
    try:
        with _Tree(directory, lowers) as tree:
            for data in tar:
                hasher.update(data)
                for event in parser.feed(data):
                    if isinstance(event, EntryHeader):
                        tree.begin(event.entry)
                    elif isinstance(event, Payload):
                        tree.write(event.offset, event.data)
                    elif isinstance(event, EntryEnd):
                        tree.end()
            parser.finish()
    except OSError as error:
        raise Unavailable(f"the layer cannot be unpacked: {error.strerror}: {error.filename or directory}") from error
    return Digest("sha256", hasher.hexdigest())


class _Tree:
    """The directory under construction. Times of directories are set at the end, when nothing changes them any more."""

    def __init__(self, top: Path, lowers: Sequence[Path]) -> None:
        self._top = os.open(top, _DIRECTORY_FLAGS)
        self._lowers = lowers
        self._entry: Entry | None = None
        self._file = -1
        self._times: dict[bytes, int] = {}
        self._own: set[bytes] = set()

    def __enter__(self) -> _Tree:
        return self

    def __exit__(self, kind: object, *_exc: object) -> None:
        try:
            self._close_file()
            if kind is None:
                for path, mtime_ns in reversed(self._times.items()):
                    self._set_directory_time(path, mtime_ns)
        finally:
            os.close(self._top)

    def begin(self, entry: Entry) -> None:
        self._entry = entry
        parent, _, name = entry.path.rpartition(b"/")
        if name.startswith(_WHITEOUT):
            self._white_out(parent, name)
            self._entry = None
            return
        if not name:
            return
        if entry.type is EntryType.DIR:
            self._directory(entry, parent, name)
            return
        with self._parent(parent) as at:
            self._clear(at, entry.path, name)
            self._make(entry, at, name)
        self._own.add(entry.path)

    def write(self, offset: int, data: memoryview) -> None:
        while self._file >= 0 and len(data):
            written = os.pwrite(self._file, data, offset)
            offset, data = offset + written, data[written:]

    def end(self) -> None:
        if self._entry is not None and self._file >= 0:
            os.ftruncate(self._file, self._entry.size)  # a sparse file may end in a hole
            _set_attributes(f"/proc/self/fd/{self._file}", self._entry, follow=True)
        self._close_file()
        self._entry = None

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _white_out(self, parent: bytes, name: bytes) -> None:
        with self._parent(parent) as at:
            if name == _OPAQUE:
                os.setxattr(at, _OPAQUE_XATTR, b"y")
                return
            if name.startswith(_RESERVED):
                return  # AUFS' own bookkeeping
            hidden = name[len(_WHITEOUT) :]
            if hidden in (b"", b".", b".."):
                raise FormatError("tar", "name", f"a whiteout of {hidden!r}")
            path = parent + b"/" + hidden if parent else hidden
            if path in self._own:
                return  # the layer itself brings the name again: its own entry hides what is below
            self._clear(at, path, hidden)
            os.mknod(hidden, stat.S_IFCHR | 0o000, os.makedev(0, 0), dir_fd=at)

    def _directory(self, entry: Entry, parent: bytes, name: bytes) -> None:
        with self._parent(parent) as at:
            existing = _lstat(at, name)
            if existing is not None and not stat.S_ISDIR(existing.st_mode):
                self._clear(at, entry.path, name)
                existing = None
            if existing is None:
                os.mkdir(name, 0o700, dir_fd=at)
        with self._parent(entry.path) as own:
            _set_attributes(f"/proc/self/fd/{own}", entry, follow=True)
        self._times[entry.path] = _bounded(entry.mtime_ns)
        self._own.add(entry.path)

    def _make(self, entry: Entry, at: int, name: bytes) -> None:
        if entry.type is EntryType.REG:
            self._file = os.open(name, _FILE_FLAGS, 0o600, dir_fd=at)
            return
        if entry.type is EntryType.HARDLINK:
            self._hard_link(entry, at, name)
        elif entry.type is EntryType.SYMLINK:
            os.symlink(entry.link, name, dir_fd=at)
        else:
            device = os.makedev(entry.devmajor, entry.devminor) if entry.type is not EntryType.FIFO else 0
            os.mknod(name, _FORMATS[entry.type] | 0o600, device, dir_fd=at)
        _set_attributes(f"/proc/self/fd/{at}/".encode() + name, entry, follow=False)

    def _hard_link(self, entry: Entry, at: int, name: bytes) -> None:
        target_parent, _, target_name = entry.link.rpartition(b"/")
        with self._parent(target_parent, must_exist=True) as target_at:
            found = _lstat(target_at, target_name)
            if found is None or stat.S_ISDIR(found.st_mode):
                raise FormatError("tar", "linkname", f"{entry.link[:256]!r} names no file of the layer")
            os.link(target_name, name, src_dir_fd=target_at, dst_dir_fd=at, follow_symlinks=False)

    def _clear(self, at: int, path: bytes, name: bytes) -> None:
        """Remove what an earlier entry has put in the place of *name*."""
        existing = _lstat(at, name)
        if existing is None:
            return
        if stat.S_ISDIR(existing.st_mode):
            _remove_tree(at, name)
            self._times = {
                known: t for known, t in self._times.items() if known != path and not known.startswith(path + b"/")
            }
        else:
            os.unlink(name, dir_fd=at)

    @contextmanager
    def _parent(self, path: bytes, *, must_exist: bool = False) -> Iterator[int]:
        """Open the directory *path* without following links, making what is missing."""
        fd = os.dup(self._top)
        try:
            walked = b""
            for name in filter(None, path.split(b"/")):
                walked = walked + b"/" + name if walked else name
                fd = self._descend(fd, name, walked, must_exist=must_exist)
            yield fd
        finally:
            os.close(fd)

    def _descend(self, fd: int, name: bytes, path: bytes, *, must_exist: bool) -> int:
        """Return *name* opened as a directory below *fd*, which is closed if this succeeds."""
        try:
            child = os.open(name, _DIRECTORY_FLAGS, dir_fd=fd)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise FormatError("tar", "name", f"{path[:256]!r} is used as a directory and is none") from error
            if error.errno != errno.ENOENT or must_exist:
                if must_exist and error.errno == errno.ENOENT:
                    raise FormatError("tar", "linkname", f"{path[:256]!r} is not in the layer") from error
                raise
            child = self._make_implied(fd, name, path)
        os.close(fd)
        return child

    def _make_implied(self, fd: int, name: bytes, path: bytes) -> int:
        os.mkdir(name, 0o755, dir_fd=fd)
        child = os.open(name, _DIRECTORY_FLAGS, dir_fd=fd)
        os.fchmod(child, 0o755)  # whatever the umask is
        for lower in self._lowers:
            below = _Below(lower, path)
            if below.exists:
                below.copy_directory_to(child)
                break
        return child

    def _set_directory_time(self, path: bytes, mtime_ns: int) -> None:
        with self._parent(path) as own:
            os.utime(own, ns=(mtime_ns, mtime_ns))


def _lstat(at: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return None


class _Below:
    """What the layer at *lower* has at *path*, reached without following links."""

    def __init__(self, lower: Path, path: bytes) -> None:
        self._lower = lower
        self._components = path.split(b"/")
        self.exists = False
        with self._opened_parent() as parent:
            if parent is not None:
                self.exists = _lstat(parent, self._components[-1]) is not None

    @contextmanager
    def _opened_parent(self) -> Iterator[int | None]:
        with ExitStack() as opened:
            fd = os.open(self._lower, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            for name in self._components[:-1]:
                try:
                    fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=fd)
                except OSError:  # not there, or no directory there: this layer says nothing about the path
                    yield None
                    return
                opened.callback(os.close, fd)
            yield fd

    def copy_directory_to(self, fd: int) -> None:
        """Give the directory *fd* owner, attributes and mode of the directory here; anything else here hides, not describes."""
        with self._opened_parent() as parent:
            if parent is None:
                return
            try:
                own = os.open(self._components[-1], _DIRECTORY_FLAGS, dir_fd=parent)
            except (NotADirectoryError, FileNotFoundError):
                return
            try:
                status = os.fstat(own)
                os.fchown(fd, status.st_uid, status.st_gid)
                for name in os.listxattr(own):
                    if not name.startswith(_TRUSTED):
                        os.setxattr(fd, name, os.getxattr(own, name))
                os.fchmod(fd, stat.S_IMODE(status.st_mode))
            finally:
                os.close(own)


def _bounded(time_ns: int) -> int:
    """Return *time_ns* as containerd sets it."""
    return time_ns if 0 <= time_ns < _TIME_END_NS else 0


def _set_attributes(path: str | bytes, entry: Entry, *, follow: bool) -> None:
    """Owner first: changing it clears set-uid and capabilities, which come after it."""
    os.chown(path, entry.uid, entry.gid, follow_symlinks=follow)
    for name, value in entry.xattrs.items():
        _set_xattr(path, os.fsdecode(name), value, follow=follow)
    if follow or not os.path.islink(path):
        os.chmod(path, entry.mode)
    time_ns = _bounded(entry.mtime_ns)
    os.utime(path, ns=(time_ns, time_ns), follow_symlinks=follow)


def _set_xattr(path: str | bytes, name: str, value: bytes, *, follow: bool) -> None:
    if name.startswith(_TRUSTED):
        return  # overlayfs' own; a layer must not speak for it
    try:
        os.setxattr(path, name, value, follow_symlinks=follow)
    except OSError as error:
        # As containerd: what this file system, or this type of file, does not take is no reason to refuse a layer.
        if error.errno != errno.ENOTSUP and not (error.errno == errno.EPERM and name.startswith("user.")):
            raise


def _remove_tree(at: int, name: bytes) -> None:
    fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=at)
    try:
        for child in os.listdir(fd):
            encoded = os.fsencode(child)
            status = _lstat(fd, encoded)
            if status is not None and stat.S_ISDIR(status.st_mode):
                _remove_tree(fd, encoded)
            else:
                os.unlink(encoded, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=at)
