"""A file tree as a value: everything that two mounts of one image must agree on."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = 1 << 20
OVERLAY_PREFIX = "trusted.overlay."
_DIFFERENCES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as `lstat` and friends show it; the owner of names is the tree, `links` are the names of one inode."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    device: int
    target: bytes
    content: str
    xattrs: tuple[tuple[str, bytes], ...]
    links: tuple[bytes, ...]


def read_tree(root: Path) -> dict[bytes, Entry]:
    """Everything below *root*, by path relative to it; the root itself is b".".

    The size of directories is left out: it is a matter of the file system, not of the image.
    """
    raw = os.fsencode(root)
    names: dict[tuple[int, int], list[bytes]] = {}
    seen: list[tuple[bytes, os.stat_result]] = []
    for path in _walk(raw):
        status = os.lstat(path)
        relative = os.path.relpath(path, raw)
        seen.append((relative, status))
        if not stat.S_ISDIR(status.st_mode):
            names.setdefault((status.st_dev, status.st_ino), []).append(relative)
    return {
        relative: _entry(raw, relative, status, tuple(sorted(names.get((status.st_dev, status.st_ino), ()))))
        for relative, status in seen
    }


def differences(ours: dict[bytes, Entry], theirs: dict[bytes, Entry], unpacked_after_ns: int) -> list[str]:
    """Sentences that say where two trees differ, the first few of them.

    A directory that no layer names has no time in the image; *theirs* shows when it was unpacked, some time after
    *unpacked_after_ns*, and such times are not compared.
    """
    found = [f"only in the first: {path!r}" for path in sorted(ours.keys() - theirs.keys())]
    found += [f"only in the second: {path!r}" for path in sorted(theirs.keys() - ours.keys())]
    for path in sorted(ours.keys() & theirs.keys()):
        if ours[path] != theirs[path]:
            for name in Entry.__slots__:
                one, other = getattr(ours[path], name), getattr(theirs[path], name)
                unpack_time = name == "mtime_ns" and theirs[path].kind == "d" and other >= unpacked_after_ns
                if one != other and not unpack_time:
                    found.append(f"{path!r}: {name} {one!r} != {other!r}")
    return found[:_DIFFERENCES_SHOWN]


def _walk(root: bytes) -> Iterator[bytes]:
    yield root
    with os.scandir(root) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        else:
            yield entry.path


def _entry(root: bytes, relative: bytes, status: os.stat_result, links: tuple[bytes, ...]) -> Entry:
    path = os.path.join(root, relative)  # bytes, for names that are no UTF-8
    mode = status.st_mode
    is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    return Entry(
        kind=stat.filemode(mode)[0],
        mode=stat.S_IMODE(mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=0 if stat.S_ISDIR(mode) else status.st_size,
        device=status.st_rdev if is_device else 0,
        target=os.readlink(path) if stat.S_ISLNK(mode) else b"",
        content=_digest(path) if stat.S_ISREG(mode) else "",
        xattrs=_xattrs(path),
        links=links,
    )


def _digest(path: bytes) -> str:
    hasher = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123  # bytes, for names that are no UTF-8
        while block := file.read(BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = os.listxattr(path, follow_symlinks=False)
    kept = sorted(name for name in names if not name.startswith(OVERLAY_PREFIX))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in kept)


def drop_caches() -> None:
    """Make the machine forget clean cached pages, dentries and inodes, so that what follows is cold."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
