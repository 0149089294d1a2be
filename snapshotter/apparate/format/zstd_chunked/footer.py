"""The footer of zstd:chunked: a skippable frame that says where the TOC is. Little-endian, 64-bit fields.

    payload of 64 bytes: offset, compressed length, length, type = 1 of the TOC; offset, compressed length, length of the
                         tar-split data; magic 'GNUlInUx'                       (containers/storage since August 2023)
    payload of 40 bytes: offset, compressed length, length, type = 1; magic 'GnUlInUx'     (older; stargz-snapshotter)

The offset is that of the zstd frame itself, behind the 8 bytes that make it skippable.
"""

from __future__ import annotations

import struct
from typing import Final

from apparate.errors import FormatError
from apparate.format.toc import TocLocation

FORMAT: Final = "zstd:chunked"
#: Longest footer with its frame head.
FOOTER_BYTES: Final = 72
MANIFEST_TYPE: Final = 1

_FRAME: Final = struct.Struct("<II")
_SKIPPABLE: Final = 0x184D2A50
_SKIPPABLE_MASK: Final = 0xFFFFFFF0
_FIELDS: Final = struct.Struct("<QQQQ")
_SHORT: Final = struct.Struct("<QQQQ8s")
_MAGICS: Final = (b"GNUlInUx", b"GnUlInUx")
_MAGIC: Final = b"GnUlInUx"
_PAYLOADS: Final = (64, 40)


def skippable(payload: bytes) -> bytes:
    """Return *payload* in a frame that zstd decoders skip."""
    return _FRAME.pack(_SKIPPABLE, len(payload)) + payload


def build_footer(location: TocLocation) -> bytes:
    """Return the 48 bytes that end a blob with its TOC at *location*."""
    fields = (location.offset, location.length, location.raw_length, MANIFEST_TYPE, _MAGIC)
    return skippable(_SHORT.pack(*fields))


def parse_footer(tail: bytes, blob_size: int) -> TocLocation | None:
    """Return where the TOC is, None if *tail* (the last bytes of the blob, 72 or more if it has as many) has no footer.

    Raises:
        FormatError: there is a footer, and what it says cannot be.
    """
    if tail[-8:] not in _MAGICS:
        return None
    for length in _PAYLOADS:
        start = len(tail) - length - _FRAME.size
        if start < 0:
            continue
        magic, payload = _FRAME.unpack_from(tail, start)
        if magic & _SKIPPABLE_MASK == _SKIPPABLE and payload == length:
            offset, packed, raw, kind = _FIELDS.unpack_from(tail, start + _FRAME.size)
            if kind != MANIFEST_TYPE:
                raise FormatError(FORMAT, "footer", f"TOC type {kind} is unknown", blob_size - length)
            return check_location(TocLocation(offset, packed, raw), blob_size - length - _FRAME.size)
    return None


def check_location(location: TocLocation, end: int) -> TocLocation:
    """Return *location* if it lies in front of *end*.

    Raises:
        FormatError: it does not.
    """
    if not (location.offset >= _FRAME.size and location.length and location.offset + location.length <= end):
        reason = f"TOC of {location.length} bytes at {location.offset}, the blob's data ends at {end}"
        raise FormatError(FORMAT, "manifest-position", reason)
    return location
