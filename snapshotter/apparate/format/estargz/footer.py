"""The footer of eStargz: an empty gzip member whose extra field says where the TOC is.

    offset  size  value
         0    10  1f 8b 08 04 00000000 00 ff       gzip head, FLG = FEXTRA
        10     2  26                               length of the extra field
        12     4  'S' 'G' 22                       sub-field id and length
        16    22  16 hexadecimal digits, 'STARGZ'
        38    13  01 00 00 ff ff, 8 zero bytes     deflate of nothing, CRC-32 and length of nothing

The legacy form (47 bytes) has no sub-field head: the 22 bytes lie at 12. A layer whose TOC lies in another image has the
sub-field `STARGZEXTERNALTOC` (46 bytes in all): it cannot be read by itself, so it counts as not being eStargz.
"""

from __future__ import annotations

from typing import Final

from apparate.errors import FormatError
from apparate.format.toc import TocLocation

FORMAT: Final = "estargz"
FOOTER_BYTES: Final = 51
LEGACY_FOOTER_BYTES: Final = 47

_HEAD: Final = bytes.fromhex("1f8b08040000000000ff")
_SUBFIELD: Final = b"\x1a\x00SG\x16\x00"
_LEGACY: Final = b"\x16\x00"
_MAGIC: Final = b"STARGZ"
_OFFSET_DIGITS: Final = 16
_TAIL: Final = bytes.fromhex("010000ffff") + bytes(8)
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")


def build_footer(toc_offset: int) -> bytes:
    """Return the 51 bytes that end a blob whose TOC begins at *toc_offset*."""
    return _HEAD + _SUBFIELD + b"%016x" % toc_offset + _MAGIC + _TAIL


def parse_footer(tail: bytes, blob_size: int) -> TocLocation | None:
    """Return where the TOC is, None if *tail* (the last bytes of the blob, 51 or more if it has as many) has no footer.

    Raises:
        FormatError: there is a footer, and what it says cannot be.
    """
    for length, extra in ((FOOTER_BYTES, _SUBFIELD), (LEGACY_FOOTER_BYTES, _LEGACY)):
        head = _HEAD + extra
        footer = tail[-length:]
        digits = footer[len(head) : len(head) + _OFFSET_DIGITS]
        if (
            len(footer) < length
            or not footer.startswith(head)
            or footer[len(head) + _OFFSET_DIGITS :] != _MAGIC + _TAIL
        ):
            continue
        if not _HEX.issuperset(digits):
            raise FormatError(FORMAT, "footer", f"{digits!r} is no offset", blob_size - length)
        offset = int(digits, 16)
        if not 0 < offset < blob_size - length:
            raise FormatError(FORMAT, "footer", f"TOC at {offset} of a blob of {blob_size} bytes", blob_size - length)
        return TocLocation(offset, blob_size - length - offset)
    return None
