"""Trees for tests of the EROFS writer, the image of a tree as a file, and what the kernel must show of it."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import random
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.support.processes import run
from tests.support.torture import ACL, CAPABILITY

from apparate.format.erofs.writer import ErofsLayout
from apparate.format.toc import Chunk, Compression, Entry, EntryType, Member, TableOfContents
from apparate.format.tree import Node, Tree

MS_RDONLY: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
SECOND_NS: Final = 10**9
TIME_NS: Final = 1_700_000_000 * SECOND_NS
KINDS: Final = {
    EntryType.DIR: stat.S_IFDIR,
    EntryType.REG: stat.S_IFREG,
    EntryType.SYMLINK: stat.S_IFLNK,
    EntryType.CHAR: stat.S_IFCHR,
    EntryType.BLOCK: stat.S_IFBLK,
    EntryType.FIFO: stat.S_IFIFO,
}


@dataclass(frozen=True)
class Sample:
    """A TOC, and the content of the regular files it names."""

    toc: TableOfContents
    contents: dict[bytes, bytes]


def sample(entries: Sequence[Entry], contents: dict[bytes, bytes], *, chunk_bytes: int = 1 << 20) -> Sample:
    """Return a TOC of *entries*, sizes and chunks filled in: a member for each chunk, as if nothing were compressed."""
    made: list[Entry] = []
    members: list[Member] = []
    offset = 0
    for entry in entries:
        content = contents.get(entry.path, b"")
        chunks = []
        for start in range(0, len(content), chunk_bytes):
            part = content[start : start + chunk_bytes]
            chunks.append(Chunk(start, len(part), hashlib.sha256(part).digest(), len(members)))
            members.append(Member(offset, len(part), len(part)))
            offset += len(part)
        made.append(replace(entry, size=len(content), chunks=tuple(chunks)) if chunks else entry)
    return Sample(TableOfContents(made, members, Compression.GZIP), contents)


def torture() -> Sample:
    """Every type of file and every kind of attribute; names, links and directories of every awkward length."""
    entries, contents = [], {}

    def add(path: bytes, kind: EntryType = EntryType.REG, content: bytes = b"", **fields: object) -> None:
        base = Entry(path, kind, mode=0o644, mtime_ns=TIME_NS)
        entries.append(replace(base, **fields))  # type: ignore[arg-type]  # the caller names real fields
        if content:
            contents[path] = content

    rng = random.Random(7)
    for length in (1, 4095, 4096, 4097, 1_000_001):
        add(b"plain/%d" % length, content=rng.randbytes(length))
    add(b"plain/empty")
    add(b"plain/link", EntryType.HARDLINK, link=b"plain/4097")
    add(b"other/link", EntryType.HARDLINK, link=b"plain/link")
    add(b"mode/suid", content=b"x", mode=0o4755)
    add(b"mode/sgid", EntryType.DIR, mode=0o2775)
    add(b"mode/sticky", EntryType.DIR, mode=0o1777)
    add(b"mode/none", mode=0)
    _add_devices(add)
    _add_times_and_owners(add)
    _add_xattrs(add)
    _add_names(add)
    return sample(entries, contents)


def _add_devices(add: object) -> None:
    assert callable(add)
    add(b"dev/null", EntryType.CHAR, devmajor=1, devminor=3)
    add(b"dev/large", EntryType.CHAR, devmajor=4095, devminor=1_048_575)
    add(b"dev/middle", EntryType.BLOCK, devmajor=259, devminor=0x12345)
    add(b"dev/fifo", EntryType.FIFO)
    add(b"gone/.wh.file")
    add(b"opaque", EntryType.DIR)
    add(b"opaque/.wh..wh..opq")
    add(b"opaque/new", content=b"upper\n")


def _add_times_and_owners(add: object) -> None:
    assert callable(add)
    for number, mtime_ns in enumerate(
        (0, 1, SECOND_NS - 1, TIME_NS + 123_456_789, 2**32 * SECOND_NS, 9_000_000_000 * SECOND_NS + 7, 2**63 - 1)
    ):
        add(b"time/%d" % number, mtime_ns=mtime_ns)
    for number in (65_535, 65_536, 4_294_967_294):
        add(b"owner/%d" % number, uid=number, gid=number - 1)


def _add_xattrs(add: object) -> None:
    assert callable(add)
    add(b"xattr", EntryType.DIR, xattrs={b"system.posix_acl_access": ACL, b"system.posix_acl_default": ACL})
    add(b"xattr/capability", content=b"\x7fELF", mode=0o755, xattrs={b"security.capability": CAPABILITY})
    add(b"xattr/capability2", content=b"\x7fELF", mode=0o755, xattrs={b"security.capability": CAPABILITY})
    add(b"xattr/acl", mode=0o664, xattrs={b"system.posix_acl_access": ACL})
    add(b"xattr/one", xattrs={b"user.a": b""})
    add(b"xattr/large", xattrs={b"user.large": bytes(range(256)) * 250, b"user.b": b"b"})
    add(b"xattr/name", xattrs={b"user." + b"n" * 250: b"value"})
    many = {b"user.%d" % number: b"v%d" % number for number in range(300)}
    add(b"xattr/many", xattrs=many)
    add(b"xattr/many-again", EntryType.DIR, xattrs=many)
    add(b"xattr/many-again/child", xattrs={b"user.1": b"v1"})
    for length in range(3900, 4100, 16):
        add(b"xattr/edge-%d" % length, EntryType.DIR, xattrs={b"user.%d" % length: b"e" * length})
        add(b"xattr/edge-%d/child" % length)


def _add_names(add: object) -> None:
    assert callable(add)
    for name in (
        b"!",
        b"-",
        b"+",
        b"...",
        b"..a",
        b".a",
        b" ",
        b"\xff\xfe",
        b"\x01",
        b"a\nb",
        b"n" * 255,
        b"\xe9" * 255,
    ):
        add(b"names/" + name)
    add(b"/".join([b"deep"] * 100))
    for length in (1, 59, 60, 1000, 4000, 4031, 4032, 4063, 4064, 4065, 4095):
        add(b"links/%d" % length, EntryType.SYMLINK, link=(b"l" * 127 + b"/") * 32 if length == 4096 else b"t" * length)
        add(b"links/late-%d" % length, EntryType.SYMLINK, link=b"t" * length, mtime_ns=TIME_NS + 1)
    add(b"links/labelled", EntryType.SYMLINK, link=b"t", xattrs={b"security.label": b"l\0"})
    # directories whose entries end just before, at and behind the border of one and two blocks
    for border in (4096, 8192):
        for delta in range(-80, 81, 8):
            _fill(add, b"sizes/%d" % (border + delta), border + delta)


def _fill(add: object, path: bytes, size: int) -> None:
    assert callable(add)
    add(path, EntryType.DIR)
    used = 27
    number = 0
    while used + 12 + 40 < size - 60:
        add(path + b"/" + b"%040d" % number)
        used += 52
        number += 1
    add(path + b"/" + b"z" * (size - used - 12))


def write_image(path: Path, made: Sample, tree: Tree, layout: ErofsLayout) -> None:
    """Write the complete image of *tree* as a file."""
    by_node = {id(node): made.contents[name] for name, node in tree.walk() if name in made.contents}
    with path.open("wb") as file:
        file.write(layout.metadata)
        for node, address in zip(tree.files, layout.addresses, strict=True):
            file.seek(address)
            file.write(by_node[id(node)])
        file.truncate(layout.image_size)


@contextlib.contextmanager
def file_backed(image: Path, point: Path) -> Iterator[Path]:
    """Mount *image* with mount(2), source = the file itself: needs Linux 6.12."""
    point.mkdir(exist_ok=True)
    if _LIBC.mount(os.fsencode(image), os.fsencode(point), b"erofs", MS_RDONLY, None):
        raise OSError(ctypes.get_errno(), "mount(2) of EROFS", str(image))
    try:
        yield point
    finally:
        run(["umount", point])


@contextlib.contextmanager
def by_loop(image: Path, point: Path) -> Iterator[Path]:
    """Mount *image* through a loop device."""
    point.mkdir(exist_ok=True)
    device = run(["losetup", "--find", "--show", "--read-only", image]).strip()
    try:
        run(["mount", "-t", "erofs", "-o", "ro", device, point])
        try:
            yield point
        finally:
            run(["umount", point])
    finally:
        run(["losetup", "--detach", device])


def problems(point: Path, made: Sample, tree: Tree) -> list[str]:
    """Return where the tree mounted at *point* differs from *tree*, with the contents of *made*."""
    root = os.fsencode(point)
    contents = {id(node): made.contents[name] for name, node in tree.walk() if name in made.contents}
    found, wanted = [], dict(tree.walk())
    for path, node in wanted.items():
        full = root + b"/" + path if path else root
        found += [f"{path[:100]!r}: {problem}" for problem in _differences(full, node, contents.get(id(node), b""))]
        if node.children is not None:
            listed = {entry.name: entry for entry in os.scandir(full)}
            if listed.keys() != node.children.keys():
                found.append(f"{path[:100]!r}: names {sorted(listed.keys() ^ node.children.keys())[:10]!r}")
            found += [f"{name!r}: d_type" for name, entry in listed.items() if not _type_fits(entry, node, name)]
    return found


def _type_fits(entry: os.DirEntry[bytes], directory: Node, name: bytes) -> bool:
    assert directory.children is not None
    kind = directory.children[name].type
    return (
        entry.is_dir(follow_symlinks=False) == (kind is EntryType.DIR)
        and entry.is_file(follow_symlinks=False) == (kind is EntryType.REG)
        and entry.is_symlink() == (kind is EntryType.SYMLINK)
    )


def _differences(path: bytes, node: Node, content: bytes) -> list[str]:
    status = os.lstat(path)
    pairs: dict[str, tuple[object, object]] = {
        "mode": (status.st_mode, KINDS[node.type] | node.mode),
        "owner": ((status.st_uid, status.st_gid), (node.uid, node.gid)),
        "mtime": (status.st_mtime_ns, node.mtime_ns),
        "nlink": (status.st_nlink, node.nlink),
        "xattrs": (_xattrs(path), dict(node.xattrs)),
    }
    if node.type in (EntryType.CHAR, EntryType.BLOCK):
        pairs["device"] = (status.st_rdev, os.makedev(node.devmajor, node.devminor))
    if node.type is EntryType.SYMLINK:
        pairs["target"] = (os.readlink(path), node.link)
    if node.type is EntryType.REG:
        pairs["size"] = (status.st_size, node.size)
        pairs["content"] = (_digest(path), hashlib.sha256(content).digest())
    return [f"{what} {_short(is_)} is not {_short(wanted)}" for what, (is_, wanted) in pairs.items() if is_ != wanted]


def _xattrs(path: bytes) -> dict[bytes, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}


def _digest(path: bytes) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return hashlib.file_digest(file, "sha256").digest()
    finally:
        os.close(descriptor)


def _short(value: object) -> str:
    return repr(value)[:200]
