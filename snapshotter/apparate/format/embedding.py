"""How a packed index travels inside a layer: where no reader of the tar sees it, between the data and the TOC.

gzip: empty members, each with up to 65,531 bytes in an extra sub-field `AP` (RFC 1952, 2.3.1.1). zstd: one skippable frame
(RFC 8878, 3.1.2). Both inflate to nothing. The layer's annotation says where it is and what it hashes to, so that attaching
a layer is one ranged GET of a known size. See docs/formats/embedding.md.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from apparate.errors import FormatError, IntegrityError
from apparate.format.toc import Compression

FORMAT: Final = "embedded index"

#: No index within its own limits packs to more; asked for before the region is fetched.
MAX_REGION_BYTES: Final = 1 << 28

# gzip member head, 16 bytes: 1f 8b, CM 8, FLG 4 (FEXTRA), MTIME 0, XFL 0, OS 255, XLEN, sub-field id, sub-field length
_GZIP_HEAD: Final = struct.Struct("<10sH2sH")
_GZIP_FIXED: Final = bytes.fromhex("1f8b08040000000000ff")
_SUBFIELD_ID: Final = b"AP"
_SUBFIELD_HEAD_BYTES: Final = 4
_SUBFIELD_MAX: Final = 0xFFFF - _SUBFIELD_HEAD_BYTES
#: A final block of fixed codes with nothing in it; CRC-32 and length of nothing.
_GZIP_TAIL: Final = bytes.fromhex("0300") + bytes(8)

# skippable frame head, 8 bytes: magic 0x184D2A5A (any of ..50 to ..5F is skipped), length of the rest
_ZSTD_HEAD: Final = struct.Struct("<II")
_ZSTD_MAGIC: Final = 0x184D2A5A

_ANNOTATION: Final = re.compile(r"v1:(0|[1-9][0-9]{0,18}):([1-9][0-9]{0,9}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class IndexLocation:
    """Where in the blob the region with the index is: `length` bytes at *offset*, with this raw SHA-256."""

    offset: int
    length: int
    sha256: bytes

    @classmethod
    def of(cls, region: bytes, offset: int) -> IndexLocation:
        """Return the location of *region*, which `embed` made, at *offset* of the blob."""
        return cls(offset, len(region), sha256(region).digest())

    @classmethod
    def from_annotation(cls, text: str) -> IndexLocation | None:
        """Parse the annotation; None if it is of a version that we do not know (then the TOC serves).

        Raises:
            FormatError: it claims to be of our version and is not.
        """
        if not text.startswith("v1:"):
            return None
        match = _ANNOTATION.fullmatch(text)
        if match is None:
            raise FormatError(FORMAT, "annotation", f"{text[:128]!r} is not v1:offset:length:sha256")
        offset, length = int(match[1]), int(match[2])
        if length > MAX_REGION_BYTES or offset + length >= 1 << 63:
            raise FormatError(FORMAT, "annotation", f"{length} bytes at {offset} are above the limit")
        return cls(offset, length, bytes.fromhex(match[3]))

    def to_annotation(self) -> str:
        """Return the annotation's value."""
        return f"v1:{self.offset}:{self.length}:{self.sha256.hex()}"

    def verify(self, region: bytes | bytearray | memoryview) -> None:
        """Prove that *region* is what the annotation promised.

        Raises:
            IntegrityError: it is not.
        """
        actual = sha256(region).digest()
        if actual != self.sha256:
            raise IntegrityError(FORMAT, "sha256:" + self.sha256.hex(), "sha256:" + actual.hex())


def embed(packed: bytes, compression: Compression) -> bytes:
    """Return the bytes to put into the blob for *packed*; they inflate to nothing."""
    if compression is Compression.ZSTD:
        return _ZSTD_HEAD.pack(_ZSTD_MAGIC, len(packed)) + packed
    parts = []
    for start in range(0, len(packed), _SUBFIELD_MAX):
        piece = packed[start : start + _SUBFIELD_MAX]
        extra = len(piece) + _SUBFIELD_HEAD_BYTES
        parts += [_GZIP_HEAD.pack(_GZIP_FIXED, extra, _SUBFIELD_ID, len(piece)), piece, _GZIP_TAIL]
    return b"".join(parts)


def extract(region: bytes | bytearray | memoryview, compression: Compression) -> bytes:
    """Return what was given to `embed`.

    Raises:
        FormatError: *region* is not what `embed` makes.
    """
    view = memoryview(region).cast("B")
    return _from_frame(view) if compression is Compression.ZSTD else _from_members(view)


def _from_frame(view: memoryview) -> bytes:
    if len(view) < _ZSTD_HEAD.size:
        raise FormatError(FORMAT, "frame", f"only {len(view)} bytes")
    magic, length = _ZSTD_HEAD.unpack_from(view)
    if magic != _ZSTD_MAGIC or length != len(view) - _ZSTD_HEAD.size:
        raise FormatError(FORMAT, "frame", "is not one skippable frame of ours", 0)
    return bytes(view[_ZSTD_HEAD.size :])


def _from_members(view: memoryview) -> bytes:
    parts, offset = [], 0
    while offset < len(view):
        start = offset + _GZIP_HEAD.size
        if start > len(view):
            raise FormatError(FORMAT, "member", "is cut", offset)
        fixed, extra, subfield, length = _GZIP_HEAD.unpack_from(view, offset)
        if fixed != _GZIP_FIXED or subfield != _SUBFIELD_ID or extra != length + _SUBFIELD_HEAD_BYTES:
            raise FormatError(FORMAT, "member", "is not an empty member of ours", offset)
        end = start + length
        offset = end + len(_GZIP_TAIL)
        if view[end:offset] != _GZIP_TAIL:
            raise FormatError(FORMAT, "member", "does not end as an empty member does", end)
        parts.append(view[start:end])
    return b"".join(parts)
