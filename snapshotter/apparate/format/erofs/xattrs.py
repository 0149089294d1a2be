"""Extended attributes of a metadata image: entries, bodies, and the area of those that several inodes share."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final

from apparate.errors import FormatError
from apparate.format.erofs import ondisk
from apparate.telemetry.logging import get_logger

log = get_logger(__name__)

_PREFIXES: Final = tuple((prefix, index) for index, prefix in ondisk.XATTR_PREFIXES.items())
_SHARED_ID: Final = struct.Struct("<I")

Pair = tuple[bytes, bytes]


class XattrArea:
    """Decides which attributes are shared: those that more than one inode has. `content` is the shared area.

    EROFS names attributes by the number of a prefix; names with another prefix cannot be kept, and are left out with a log
    line (a kernel would refuse to set them as well).
    """

    def __init__(self, inodes: Iterable[Mapping[bytes, bytes]]) -> None:
        counts: dict[Pair, int] = {}
        for xattrs in inodes:
            for pair in xattrs.items():
                counts[pair] = counts.get(pair, 0) + 1
        self.content = bytearray()
        self._entries: dict[Pair, bytes | None] = {}
        self._shared: dict[Pair, int] = {}
        for pair, count in counts.items():
            entry = self._entries[pair] = encode_entry(*pair)
            if entry is None:
                log.info("extended attribute left out", name=pair[0], inodes=count)
            elif count > 1:
                self._shared[pair] = len(self.content) // 4
                self.content += entry

    def body(self, xattrs: Mapping[bytes, bytes]) -> bytes:
        """Return what follows the inode that has *xattrs*: header, shared ids, entries; b"" if there is none to keep.

        Raises:
            FormatError: more attributes than an inode can hold.
        """
        shared: list[bytes] = []
        inline: list[bytes] = []
        for pair in sorted(xattrs.items()):
            number = self._shared.get(pair)
            entry = self._entries[pair]
            if number is not None and len(shared) < ondisk.XATTR_SHARED_MAX:
                shared.append(_SHARED_ID.pack(number))
            elif entry is not None:
                inline.append(entry)
        if not shared and not inline:
            return b""
        body = b"".join([ondisk.XATTR_BODY.pack(0, len(shared)), *shared, *inline])
        if count(body) > ondisk.XATTR_COUNT_MAX:
            raise FormatError(ondisk.FORMAT, "xattrs", f"{len(body)} bytes are more than an inode can hold")
        return body


def count(body: bytes) -> int:
    """Return i_xattr_icount for *body*."""
    return (len(body) - ondisk.XATTR_BODY_BYTES) // 4 + 1 if body else 0


def encode_entry(name: bytes, value: bytes) -> bytes | None:
    """Return the entry of one attribute, padded to 4 bytes; None if no prefix fits *name*.

    Raises:
        FormatError: name or value are longer than the kernel allows.
    """
    for prefix, index in _PREFIXES:
        if name == prefix if index in ondisk.XATTR_ACL_INDEXES else name.startswith(prefix) and name != prefix:
            rest = name[len(prefix) :]
            if len(name) > ondisk.XATTR_NAME_MAX or len(value) > ondisk.XATTR_VALUE_MAX:
                raise FormatError(ondisk.FORMAT, "xattrs", f"{name[:64]!r} is longer than an attribute can be")
            entry = ondisk.XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
            return entry + bytes(-len(entry) % 4)
    return None
