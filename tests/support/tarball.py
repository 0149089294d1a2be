"""Tar streams for tests, written byte by byte so that odd ones are possible too.

A layer is a mapping (or a sequence of pairs, where a name may occur twice) from a path to a node:
`bytes` is a regular file, `None` a directory, anything else a `Node` made by the functions below.
The bytes depend on the arguments alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

BLOCK = 512
RECORD = 10240
EPOCH_NS = 1_600_000_000 * 10**9

_TYPE_FLAGS = {
    "file": b"0",
    "hardlink": b"1",
    "symlink": b"2",
    "char": b"3",
    "block": b"4",
    "directory": b"5",
    "fifo": b"6",
}
_OLD_GNU_SPARSE_FLAG = b"S"


@dataclass(frozen=True, slots=True)
class Node:
    """One entry of a tar stream. `form` chooses how long names are written: "pax" or "gnu"."""

    kind: str
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = EPOCH_NS
    link: bytes = b""
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    major: int = 0
    minor: int = 0
    form: str = "pax"
    sparse_size: int | None = None
    sparse_map: tuple[tuple[int, bytes], ...] = ()
    sparse_form: str = ""

    def with_(self, **changes: object) -> Node:
        """Return a copy with these fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]  # the caller names real fields

    @property
    def content(self) -> bytes:
        """What the file holds once unpacked."""
        if self.sparse_size is None:
            return self.data
        whole = bytearray(self.sparse_size)
        for offset, piece in self.sparse_map:
            whole[offset : offset + len(piece)] = piece
        return bytes(whole)


LayerItems = Mapping[str, "Node | bytes | None"] | Mapping[bytes, "Node | bytes | None"]
LayerPairs = Sequence[tuple["str | bytes", "Node | bytes | None"]]


def file(data: bytes = b"", **attributes: object) -> Node:
    """A regular file."""
    return Node("file", data=data).with_(**attributes)


def directory(**attributes: object) -> Node:
    """A directory, mode 0755 unless said otherwise."""
    return Node("directory", mode=0o755).with_(**attributes)


def symlink(target: str | bytes, **attributes: object) -> Node:
    """A symbolic link, its target verbatim."""
    return Node("symlink", mode=0o777, link=_raw(target)).with_(**attributes)


def hardlink(target: str | bytes, **attributes: object) -> Node:
    """A hard link to another path of the same layer."""
    return Node("hardlink", link=_raw(target)).with_(**attributes)


def char(major: int, minor: int, **attributes: object) -> Node:
    """A character device."""
    return Node("char", major=major, minor=minor, mode=0o660).with_(**attributes)


def block(major: int, minor: int, **attributes: object) -> Node:
    """A block device."""
    return Node("block", major=major, minor=minor, mode=0o660).with_(**attributes)


def fifo(**attributes: object) -> Node:
    """A named pipe."""
    return Node("fifo", mode=0o600).with_(**attributes)


def sparse(size: int, pieces: Sequence[tuple[int, bytes]], *, form: str = "pax-1.0", **attributes: object) -> Node:
    """A sparse file as GNU tar stores it; form is "gnu", "pax-0.0", "pax-0.1" or "pax-1.0"."""
    node = Node("file", sparse_size=size, sparse_map=tuple(pieces), sparse_form=form)
    return node.with_(**attributes)


def tar_bytes(layer: LayerItems | LayerPairs, *, end: bool = True) -> bytes:
    """Return the tar stream of *layer*, with its two zero blocks and record padding if *end*."""
    out = io.BytesIO()
    for path, node in _pairs(layer):
        write_entry(out, _raw(path), node)
    if end:
        out.write(bytes(2 * BLOCK))
        out.write(bytes(-out.tell() % RECORD))
    return out.getvalue()


def _pairs(layer: LayerItems | LayerPairs) -> Iterable[tuple[str | bytes, Node]]:
    pairs = layer.items() if isinstance(layer, Mapping) else layer
    for path, node in pairs:
        if node is None:
            yield path, directory()
        elif isinstance(node, bytes):
            yield path, file(node)
        else:
            yield path, node


def write_entry(out: io.BytesIO, path: bytes, node: Node) -> None:
    """Append one entry: extension headers as needed, header, payload, padding."""
    if node.kind == "directory" and not path.endswith(b"/"):
        path += b"/"
    pax = _pax_records(node)
    flag = _TYPE_FLAGS[node.kind]
    payload = node.data
    header_tail = b""
    if node.sparse_size is not None:
        flag, payload, path, header_tail = _sparse(node, path, pax)
    for value, keyword, gnu_flag in ((path, b"path", b"L"), (node.link, b"linkpath", b"K")):
        if len(value) > 100 and node.form == "gnu":
            _write_blocks(out, _header(b"././@LongLink", gnu_flag, len(value) + 1), value + b"\0")
        elif len(value) > 100 or (not value.isascii() and node.form == "pax"):
            pax.append((keyword, value))
    if pax:
        body = b"".join(_pax_record(keyword, value) for keyword, value in pax)
        _write_blocks(out, _header(b"PaxHeaders/x", b"x", len(body)), body)
    header = _header(path[:100], flag, len(payload), node=node, tail=header_tail)
    _write_blocks(out, header, payload)


def _raw(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _write_blocks(out: io.BytesIO, header: bytes, payload: bytes) -> None:
    out.write(header)
    out.write(payload)
    out.write(bytes(-len(payload) % BLOCK))


def _pax_record(keyword: bytes, value: bytes) -> bytes:
    length = len(keyword) + len(value) + 3
    total = length + len(str(length))
    if len(str(total)) > len(str(length)):
        total += 1
    return b"%d %s=%s\n" % (total, keyword, value)


def _pax_records(node: Node) -> list[tuple[bytes, bytes]]:
    records: list[tuple[bytes, bytes]] = []
    seconds, fraction = divmod(node.mtime_ns, 10**9)
    if fraction or not 0 <= seconds < 8**11:
        sign = b"-" if node.mtime_ns < 0 else b""
        whole, nanos = divmod(abs(node.mtime_ns), 10**9)
        text = b"%s%d" % (sign, whole)
        records.append((b"mtime", text + (b".%09d" % nanos if nanos else b"")))
    for keyword, number in ((b"uid", node.uid), (b"gid", node.gid)):
        if number >= 8**7:
            records.append((keyword, b"%d" % number))
    for name, value in sorted(node.xattrs.items()):
        records.append((b"SCHILY.xattr." + name.encode(), value))
    return records


def _octal(number: int, width: int) -> bytes:
    """Return *number* in octal, or zero where only a pax record can hold it."""
    if not 0 <= number < 8 ** (width - 1):
        number = 0
    return b"%0*o\0" % (width - 1, number)


def _header(name: bytes, flag: bytes, size: int, *, node: Node | None = None, tail: bytes = b"") -> bytes:
    # ustar header (POSIX.1-1988): name 100, mode 8, uid 8, gid 8, size 12, mtime 12, chksum 8,
    # typeflag 1, linkname 100, magic 6, version 2, uname 32, gname 32, devmajor 8, devminor 8, prefix 155
    node = node or Node("file", mtime_ns=0)
    magic = b"ustar  \0" if flag in (b"L", b"K", _OLD_GNU_SPARSE_FLAG) else b"ustar\x0000"
    head = b"".join(
        (
            name.ljust(100, b"\0"),
            _octal(node.mode, 8),
            _octal(node.uid, 8),
            _octal(node.gid, 8),
            _octal(size, 12),
            _octal(node.mtime_ns // 10**9, 12),
            b" " * 8,
            flag,
            node.link[:100].ljust(100, b"\0"),
            magic,
            bytes(64),
            _octal(node.major, 8),
            _octal(node.minor, 8),
            tail,
        )
    )
    return _with_checksum(head.ljust(BLOCK, b"\0"))


def _with_checksum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


def _sparse(node: Node, path: bytes, pax: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes, bytes, bytes]:
    """Return (type flag, payload, name to store, tail of the header) and add the pax records."""
    assert node.sparse_size is not None
    pieces = node.sparse_map
    if pieces and sum((pieces[-1][0], len(pieces[-1][1]))) < node.sparse_size:
        pieces = (*pieces, (node.sparse_size, b""))  # as GNU tar marks a hole at the end
    payload = b"".join(data for _, data in pieces)
    size = b"%d" % node.sparse_size
    numbers = [number for offset, data in pieces for number in (offset, len(data))]
    if node.sparse_form == "gnu":
        assert len(pieces) <= 4
        # Old GNU header, from byte 345: atime 12, ctime 12, offset 12, longnames 4, unused 1,
        # four (offset 12, numbytes 12), isextended 1, realsize 12
        table = b"".join(_octal(number, 12) for number in numbers).ljust(96, b"\0")
        return _OLD_GNU_SPARSE_FLAG, payload, path, bytes(41) + table + b"\0" + _octal(node.sparse_size, 12)
    if node.sparse_form == "pax-0.0":
        pax.append((b"GNU.sparse.size", size))
        pax.append((b"GNU.sparse.numblocks", b"%d" % len(pieces)))
        for offset, data in pieces:
            pax.append((b"GNU.sparse.offset", b"%d" % offset))
            pax.append((b"GNU.sparse.numbytes", b"%d" % len(data)))
        return b"0", payload, path, b""
    hidden = b"GNUSparseFile.0/" + path[-80:]
    if node.sparse_form == "pax-0.1":
        pax.append((b"GNU.sparse.size", size))
        pax.append((b"GNU.sparse.numblocks", b"%d" % len(pieces)))
        pax.append((b"GNU.sparse.map", b",".join(b"%d" % number for number in numbers)))
        pax.append((b"GNU.sparse.name", path))
        return b"0", payload, hidden, b""
    pax.append((b"GNU.sparse.major", b"1"))
    pax.append((b"GNU.sparse.minor", b"0"))
    pax.append((b"GNU.sparse.name", path))
    pax.append((b"GNU.sparse.realsize", size))
    table = b"".join(b"%d\n" % number for number in [len(pieces), *numbers])
    return b"0", table + bytes(-len(table) % BLOCK) + payload, hidden, b""
