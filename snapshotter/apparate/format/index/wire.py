"""The wire form of the index: what travels inside a layer. Small, little-endian, the same bytes on every machine.

Columns of differences, each in the smallest width that holds its largest number, each compressed by itself (zstd). No length in
it is believed before the counts in the header have been held against the limits, and inflation never gives more than
those counts say. See docs/formats/index.md.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate, islice
from operator import sub
from typing import Final

import zstandard
from isal import isal_zlib

from apparate.format.erofs import ondisk
from apparate.format.index.local import COMPRESSION_CODES, write_local
from apparate.format.index.tables import IndexTables, check_limits, refuse
from apparate.format.toc import DIGEST_BYTES, Compression

# Header, 80 bytes
#   offset  size  field
#        0     8  magic, "APPINDEX"      8  2  version              10  2  compression (1 gzip, 2 zstd)
#       12     4  inode_count           16  4  member_count         20  4  piece_count
#       24     4  prefetch_count        28  4  number of sections   32  8  metadata_size
#       40     8  image_size            48 32  toc_digest
# then for each section (8 bytes): 0 1 codec (0 stored, 1 zstd)   1 1 width of a number   2 2 zero   4 4 stored length
# then CRC-32 of all before it (4 bytes), then the sections back to back
_HEADER: Final = struct.Struct("<8sHHIIIIIQQ32s")
_SECTION: Final = struct.Struct("<BBHI")
_CRC: Final = struct.Struct("<I")
MAGIC: Final = b"APPINDEX"
VERSION: Final = 1
_COMPRESSIONS: Final = {code: compression for compression, code in COMPRESSION_CODES.items()}

_STORED: Final = 0
_ZSTD: Final = 1
#: Measured on the metadata of 60,000 files of /usr (5.2 MB): libdeflate 6 896 KB in 41 ms, zstd 2 867 KB in 10 ms,
#: zstd 6 795 KB in 45 ms, zstd 9 756 KB in 69 ms; 4 ms to inflate.
_ZSTD_LEVEL: Final = 6
_CODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}

#: Sections in order, with the count they go by.
_SECTIONS: Final = (
    ("metadata", "metadata"),
    ("digests", "members"),
    ("member_gap", "members"),
    ("member_length", "members"),
    ("member_raw", "members"),
    ("member_pieces", "members"),
    ("piece_place", "pieces"),
    ("piece_inner", "pieces"),
    ("piece_length", "pieces"),
    ("prefetch_address", "prefetch"),
    ("prefetch_length", "prefetch"),
)
_BYTES: Final = frozenset({"metadata", "digests"})
_TABLE_BYTES: Final = _HEADER.size + _SECTION.size * len(_SECTIONS)


def pack(tables: IndexTables) -> bytes:
    """Return the wire form of *tables*, which must have passed `check`."""
    columns: dict[str, Sequence[int]] = {
        "member_gap": _gaps(tables.member_offset, tables.member_length),
        "member_length": tables.member_length,
        "member_raw": tables.member_raw,
        "member_pieces": list(map(sub, islice(tables.member_piece, 1, None), tables.member_piece)),
        "piece_place": _places(tables),
        "piece_inner": tables.piece_inner,
        "piece_length": tables.piece_length,
        "prefetch_address": tables.prefetch_address,
        "prefetch_length": tables.prefetch_length,
    }
    heads, bodies = [], []
    for name, _ in _SECTIONS:
        if name in _BYTES:
            width, raw = 1, bytes(getattr(tables, name))
        else:
            width, raw = _encode(columns[name])
        codec, stored = _compress(raw)
        heads.append(_SECTION.pack(codec, width, 0, len(stored)))
        bodies.append(stored)
    header = _HEADER.pack(
        MAGIC, VERSION, COMPRESSION_CODES[tables.compression], tables.inode_count, len(tables.member_offset),
        len(tables.piece_address), len(tables.prefetch_address), len(_SECTIONS), len(tables.metadata),
        tables.image_size, tables.toc_digest,
    )  # fmt: skip
    header += b"".join(heads)
    return b"".join([header, _CRC.pack(isal_zlib.crc32(header)), *bodies])


def unpack(packed: bytes | memoryview) -> bytes:
    """Return the local form (`LayerIndex`) of *packed*.

    Raises:
        FormatError: another version, or a field that lies; nothing larger than the limits was allocated.
    """
    return write_local(unpack_tables(packed))


def unpack_tables(packed: bytes | memoryview) -> IndexTables:
    """Return the tables of *packed*, checked.

    Raises:
        FormatError: as `unpack`.
    """
    view = memoryview(packed).cast("B")
    compression, inodes, image_size, toc_digest, counts = _read_header(view)
    sections = _read_sections(view, counts)
    metadata = sections["metadata"].tobytes()
    lengths, piece_lengths = sections["member_length"], sections["piece_length"]
    tables = IndexTables(
        compression=compression,
        inode_count=inodes,
        image_size=image_size,
        toc_digest=toc_digest,
        metadata=metadata,
        member_offset=_offsets(sections["member_gap"], lengths),
        member_length=lengths,
        member_raw=sections["member_raw"],
        member_piece=list(accumulate(sections["member_pieces"], initial=0)),
        piece_address=_addresses(sections["piece_place"], piece_lengths, len(metadata)),
        piece_inner=sections["piece_inner"],
        piece_length=piece_lengths,
        digests=sections["digests"].tobytes(),
        prefetch_address=sections["prefetch_address"],
        prefetch_length=sections["prefetch_length"],
    )
    tables.check()
    return tables


def _read_header(view: memoryview) -> tuple[Compression, int, int, bytes, dict[str, int]]:
    if len(view) < _TABLE_BYTES + _CRC.size:
        raise refuse("size", f"only {len(view)} bytes")
    fields = _HEADER.unpack_from(view)
    magic, version, code, inodes, members, pieces, prefetch, count, metadata_size, image_size, toc_digest = fields
    if magic != MAGIC:
        raise refuse("magic", "this is no packed index")
    if version != VERSION or count != len(_SECTIONS):
        raise refuse("version", f"{version} with {count} sections is not {VERSION} with {len(_SECTIONS)}")
    if _CRC.unpack_from(view, _TABLE_BYTES)[0] != isal_zlib.crc32(view[:_TABLE_BYTES]):
        raise refuse("header_crc", "the header is damaged")
    if code not in _COMPRESSIONS:
        raise refuse("compression", f"{code} is unknown")
    check_limits(metadata_size, members, pieces, prefetch)
    counts = {"metadata": metadata_size, "members": members, "pieces": pieces, "prefetch": prefetch}
    return _COMPRESSIONS[code], inodes, image_size, toc_digest, counts


def _read_sections(view: memoryview, counts: dict[str, int]) -> dict[str, array[int]]:
    sections: dict[str, array[int]] = {}
    end = _TABLE_BYTES + _CRC.size
    for number, (name, by) in enumerate(_SECTIONS):
        codec, width, _, stored = _SECTION.unpack_from(view, _HEADER.size + _SECTION.size * number)
        if width not in _CODES or (name in _BYTES and width != 1):
            raise refuse(name, f"numbers of {width} bytes are unknown")
        start, end = end, end + stored
        if end > len(view):
            raise refuse(name, "reaches behind the end")
        each = DIGEST_BYTES if name == "digests" else width
        numbers = array(_CODES[width])
        numbers.frombytes(_inflate(name, codec, view[start:end], counts[by] * each))
        if sys.byteorder == "big":
            numbers.byteswap()
        sections[name] = numbers
    if end != len(view):
        raise refuse("size", f"{len(view) - end} bytes too many")
    return sections


def _inflate(name: str, codec: int, stored: memoryview, length: int) -> bytes | memoryview:
    if codec == _STORED:
        raw: bytes | memoryview = stored
    elif codec == _ZSTD:
        try:
            # The frame's own word decides how much is allocated, so it must agree before it is inflated.
            if zstandard.frame_content_size(stored) != length:
                raise refuse(name, f"is not a frame of {length} bytes")
            raw = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise refuse(name, f"does not inflate to {length} bytes") from error
    else:
        raise refuse(name, f"codec {codec} is unknown")
    if len(raw) != length:
        raise refuse(name, f"{len(raw)} bytes where {length} belong")
    return raw


def _compress(raw: bytes) -> tuple[int, bytes]:
    packed = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(raw)
    return (_ZSTD, packed) if len(packed) < len(raw) else (_STORED, raw)


def _encode(numbers: Sequence[int]) -> tuple[int, bytes]:
    largest = max(numbers, default=0)
    width = next(width for width in _CODES if largest < 1 << 8 * width)
    column = array(_CODES[width], numbers)
    if sys.byteorder == "big":
        column.byteswap()
    return width, column.tobytes()


def _gaps(offsets: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Return for each member the bytes between the end of the one before it and its start."""
    previous, gaps = 0, []
    for offset, length in zip(offsets, lengths, strict=True):
        gaps.append(offset - previous)
        previous = offset + length
    return gaps


def _offsets(gaps: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """The inverse of `_gaps`."""
    previous, offsets = 0, []
    for gap, length in zip(gaps, lengths, strict=True):
        offset = previous + gap
        offsets.append(offset)
        previous = offset + length
    return offsets


def _places(tables: IndexTables) -> list[int]:
    """Return where each piece lies, seen from the end of the one before it (the first: from the end of the metadata).

    0: directly there (the next chunk of a file). Odd, 2n + 1: n blocks behind the next block border (another file; nearly
    always 1). Even, 2n: n bytes further (behind a hole in a file).
    """
    previous, places = len(tables.metadata), []
    mask = ondisk.BLOCK_BYTES - 1
    for address, length in zip(tables.piece_address, tables.piece_length, strict=True):
        gap = address - previous
        if gap and not address & mask:
            places.append((address - (previous + mask & ~mask)) >> ondisk.BLOCK_BITS << 1 | 1)
        else:
            places.append(gap << 1)
        previous = address + length
    return places


def _addresses(places: Sequence[int], lengths: Sequence[int], start: int) -> list[int]:
    """The inverse of `_places`."""
    previous, addresses = start, []
    mask = ondisk.BLOCK_BYTES - 1
    for place, length in zip(places, lengths, strict=True):
        if place & 1:
            address = (previous + mask & ~mask) + (place >> 1 << ondisk.BLOCK_BITS)
        else:
            address = previous + (place >> 1)
        addresses.append(address)
        previous = address + length
    return addresses
