"""Which members of a layer are in its file: a bitmap in memory and the file that outlives it.

The file `present` (written whole, by rename, so it is always one that was written):

    offset  size  field, little-endian
         0     8  magic = "APPRPRS1"
         8     8  number of members
        16     8  inode number of the image file the bits speak of
        24    32  SHA-256 of the layer's index: other cuts, other bits
        56     n  bits, member i is bit i % 8 of byte i // 8
    56 + n     4  CRC-32 of everything before

A file that does not fit in every field says nothing, and everything counts as missing.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

_MAGIC: Final = b"APPRPRS1"
_HEAD: Final = struct.Struct("<8sQQ32s")
_TAIL: Final = struct.Struct("<I")


class Bitmap:
    """A set of member numbers. Not thread-safe but for reading one bit while another thread sets it."""

    __slots__ = ("_bits", "count", "size")

    def __init__(self, size: int, bits: bytes | None = None) -> None:
        self.size = size
        self._bits = bytearray((size + 7) // 8) if bits is None else bytearray(bits)
        self.count = int.from_bytes(self._bits, "little").bit_count()

    def __contains__(self, member: int) -> bool:
        return bool(self._bits[member >> 3] >> (member & 7) & 1)

    def add(self, member: int) -> bool:
        """Set a bit; return whether it was clear."""
        if member in self:
            return False
        self._bits[member >> 3] |= 1 << (member & 7)
        self.count += 1
        return True

    def discard(self, member: int) -> bool:
        """Clear a bit; return whether it was set."""
        if member not in self:
            return False
        self._bits[member >> 3] &= ~(1 << (member & 7))
        self.count -= 1
        return True

    def missing(self, members: range) -> list[int]:
        """Return which of *members* are not in the set, ascending."""
        return [member for member in members if member not in self]

    def copy(self) -> Bitmap:
        """Return a copy that does not change with this one."""
        return Bitmap(self.size, bytes(self._bits))

    def dump(self, inode: int, index_digest: bytes) -> bytes:
        """Return the file's content."""
        body = _HEAD.pack(_MAGIC, self.size, inode, index_digest) + self._bits
        return body + _TAIL.pack(zlib.crc32(body))


def index_of(content: bytes) -> bytes | None:
    """Return what identifies the index of which a file speaks, or None if it is not one that was written whole."""
    if len(content) < _HEAD.size + _TAIL.size or not content.startswith(_MAGIC):
        return None
    if _TAIL.unpack_from(content, len(content) - _TAIL.size) != (zlib.crc32(content[: -_TAIL.size]),):
        return None
    index_digest: bytes = _HEAD.unpack_from(content)[3]
    return index_digest


def load(content: bytes, size: int, inode: int, index_digest: bytes) -> Bitmap | None:
    """Return the bitmap a file holds, or None if it does not speak of this image file and this index."""
    bits_end = _HEAD.size + (size + 7) // 8
    if len(content) != bits_end + _TAIL.size:
        return None
    if content[: _HEAD.size] != _HEAD.pack(_MAGIC, size, inode, index_digest):
        return None
    if _TAIL.unpack_from(content, bits_end) != (zlib.crc32(content[:bits_end]),):
        return None
    bits = content[_HEAD.size : bits_end]
    if size % 8 and bits and bits[-1] >> (size % 8):
        return None
    return Bitmap(size, bits)
