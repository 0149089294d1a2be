"""The local form of the index: a file that is mapped and used where it lies, nothing is read into objects.

    page 0      header (`_HEADER`), rest zero; numbers in the byte order of the host, since the file never leaves it
    page 1 ..   EROFS metadata, `metadata_size` bytes
    then        the columns of `_COLUMNS`, back to back, each as long as the counts of the header say

No offset is stored, so none can lie. See docs/formats/index.md.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from mmap import MADV_DONTNEED, mmap
from typing import Final, Literal, NamedTuple

from isal import isal_zlib

from apparate.errors import IntegrityError
from apparate.format.erofs import ondisk
from apparate.format.index.tables import IndexTables, check_limits, native, refuse
from apparate.format.toc import DIGEST_BYTES, Compression

# Header, 128 bytes, host byte order
#   offset  size  field
#        0     8  magic, "appindex"        8  4  byte order mark 0x01020304    12  4  version
#       16     4  compression (1 gzip, 2 zstd)    20  4  inode_count           24  4  member_count
#       28     4  piece_count             32  4  prefetch_count                36  4  CRC-32 of all behind page 0
#       40     8  metadata_size           48  8  image_size                    56  32 toc_digest
#       88    36  zero                   124  4  CRC-32 of bytes 0 to 123
_HEADER: Final = struct.Struct("=8sIIIIIIIIQQ32s36x")
_CRC: Final = struct.Struct("=I")
HEADER_BYTES: Final = 128
PAGE_BYTES: Final = ondisk.BLOCK_BYTES
MAGIC: Final = b"appindex"
BYTE_ORDER: Final = 0x01020304
VERSION: Final = 1
COMPRESSION_CODES: Final = {Compression.GZIP: 1, Compression.ZSTD: 2}
_COMPRESSIONS: Final = {code: compression for compression, code in COMPRESSION_CODES.items()}

#: Column, type, and the count it goes by: 0 members, 1 members + 1, 2 pieces, 3 prefetch ranges.
_COLUMNS: Final[tuple[tuple[str, Literal["Q", "I"], int], ...]] = (
    ("member_offset", "Q", 0),
    ("member_address", "Q", 0),
    ("piece_address", "Q", 2),
    ("prefetch_address", "Q", 3),
    ("prefetch_length", "Q", 3),
    ("member_length", "I", 0),
    ("member_raw", "I", 0),
    ("member_piece", "I", 1),
    ("piece_inner", "I", 2),
    ("piece_length", "I", 2),
)
_WIDTHS: Final = {"Q": 8, "I": 4}


class MemberRef(NamedTuple):
    """Where a member lies in the blob, and how much of it is needed.

    `raw_length` is the inflated length, 0 if unknown; `need_bytes` of it, from the start, hold all pieces.
    """

    offset: int
    length: int
    raw_length: int
    need_bytes: int


class Piece(NamedTuple):
    """The image bytes [address, address + length) are those from *inner_offset* on of the inflated member."""

    address: int
    inner_offset: int
    length: int


def write_local(tables: IndexTables) -> bytes:
    """Return the local form of *tables*, which must have passed `check`."""
    counts = _counts(len(tables.member_offset), len(tables.piece_address), len(tables.prefetch_address))
    address = tables.piece_address
    derived = {"member_address": native("Q", [address[piece] for piece in tables.member_piece[: counts[0]]])}
    body = [bytes(tables.metadata)]
    for name, code, by in _COLUMNS:
        column = derived[name] if name in derived else native(code, getattr(tables, name))
        if len(column) != counts[by]:
            raise refuse(name, f"{len(column)} numbers where {counts[by]} belong")
        body.append(column.tobytes())
    body.append(bytes(tables.digests))
    checksum = 0
    for part in body:
        checksum = isal_zlib.crc32(part, checksum)
    header = _HEADER.pack(
        MAGIC, BYTE_ORDER, VERSION, COMPRESSION_CODES[tables.compression], tables.inode_count,
        counts[0], counts[2], counts[3], checksum, len(tables.metadata), tables.image_size, tables.toc_digest,
    )  # fmt: skip
    header += _CRC.pack(isal_zlib.crc32(header))
    return b"".join([header.ljust(PAGE_BYTES, b"\0"), *body])


def _counts(members: int, pieces: int, prefetch: int) -> tuple[int, int, int, int]:
    return members, members + 1, pieces, prefetch


class LayerIndex:
    """The index in *buffer*, the local form, used in place: keep the buffer (an mmap) open as long as this lives.

    Opening proves every number (`IndexTables.check`) and the checksums. With *trusted* only the header is read: for bytes that
    `unpack` or `build_local` has just made, and for a file that has been opened in full since the machine started.

    Raises:
        FormatError: the version is another, the file is cut, or a field lies.
    """

    __slots__ = (
        "_digests",
        *("_" + name for name, _, _ in _COLUMNS),
        "_metadata",
        "compression",
        "image_size",
        "inode_count",
        "member_count",
        "metadata_size",
        "piece_count",
        "toc_digest",
    )

    _member_offset: memoryview[int]
    _member_address: memoryview[int]
    _member_length: memoryview[int]
    _member_raw: memoryview[int]
    _member_piece: memoryview[int]
    _piece_address: memoryview[int]
    _piece_inner: memoryview[int]
    _piece_length: memoryview[int]
    _prefetch_address: memoryview[int]
    _prefetch_length: memoryview[int]
    compression: Compression
    toc_digest: bytes

    def __init__(self, buffer: bytes | memoryview | mmap, *, trusted: bool = False) -> None:
        view = memoryview(buffer).cast("B").toreadonly()
        checksum, prefetch = self._read_header(view)
        counts = _counts(self.member_count, self.piece_count, prefetch)
        end = PAGE_BYTES + self.metadata_size
        columns_bytes = sum(_WIDTHS[code] * counts[by] for _, code, by in _COLUMNS)
        size = end + columns_bytes + DIGEST_BYTES * self.member_count
        if len(view) != size:
            raise refuse("size", f"{len(view)} bytes where {size} belong")
        self._metadata = view[PAGE_BYTES:end]
        for name, code, by in _COLUMNS:
            start, end = end, end + _WIDTHS[code] * counts[by]
            setattr(self, "_" + name, view[start:end].cast(code))
        self._digests = view[end:]
        if not trusted:
            if isal_zlib.crc32(view[PAGE_BYTES:]) != checksum:
                raise refuse("body_crc", "the body is damaged")
            self._check()
            if isinstance(buffer, mmap):
                # Proving has touched every page; what is used later comes back by itself. Keeps a node with many layers small.
                buffer.madvise(MADV_DONTNEED)

    def _read_header(self, view: memoryview) -> tuple[int, int]:
        if len(view) < PAGE_BYTES:
            raise refuse("size", f"only {len(view)} bytes")
        magic, order, version, compression, *rest = _HEADER.unpack_from(view)
        if magic != MAGIC or order != BYTE_ORDER:
            raise refuse("magic", "this is no index of this machine")
        if version != VERSION:
            raise refuse("version", f"{version} is not {VERSION}")
        if _CRC.unpack_from(view, HEADER_BYTES - _CRC.size)[0] != isal_zlib.crc32(view[: HEADER_BYTES - _CRC.size]):
            raise refuse("header_crc", "the header is damaged")
        if compression not in _COMPRESSIONS:
            raise refuse("compression", f"{compression} is unknown")
        self.inode_count, self.member_count, self.piece_count, prefetch, checksum, *sizes, self.toc_digest = rest
        self.metadata_size, self.image_size = sizes
        check_limits(self.metadata_size, self.member_count, self.piece_count, prefetch)
        self.compression = _COMPRESSIONS[compression]
        return checksum, prefetch

    def close(self) -> None:
        """Let go of the buffer, so that an mmap can be closed; nothing else may be called afterwards."""
        for name, _, _ in _COLUMNS:
            getattr(self, "_" + name).release()
        self._digests.release()
        self._metadata.release()

    def tables(self) -> IndexTables:
        """Return the columns as lists: for checks and for another form."""
        return IndexTables(
            self.compression, self.inode_count, self.image_size, self.toc_digest, self._metadata,
            self._member_offset.tolist(), self._member_length.tolist(), self._member_raw.tolist(),
            self._member_piece.tolist(), self._piece_address.tolist(), self._piece_inner.tolist(),
            self._piece_length.tolist(), self._digests, self._prefetch_address.tolist(), self._prefetch_length.tolist(),
        )  # fmt: skip

    def _check(self) -> None:
        tables = self.tables()
        tables.check()
        firsts = [tables.piece_address[piece] for piece in tables.member_piece[: self.member_count]]
        if firsts != self._member_address.tolist():
            raise refuse("member_address", "is not the address of the first piece")

    def metadata(self) -> memoryview:
        """Return the EROFS metadata: the first `metadata_size` bytes of the image."""
        return self._metadata

    @property
    def blob_end(self) -> int:
        """Where the last member ends in the blob; no byte behind it is ever needed."""
        last = self.member_count - 1
        return self._member_offset[last] + self._member_length[last] if last >= 0 else 0

    def members_in(self, address: int, length: int) -> range:
        """Return the numbers of the members that hold bytes of [address, address + length); empty for holes.

        A member between whose pieces the range falls (padding) is counted too.
        """
        if length <= 0:
            return range(0)
        after = bisect_left(self._member_address, address + length)
        first = bisect_right(self._member_address, address, 0, after) - 1
        if first < 0:
            return range(after)
        last_piece = self._member_piece[first + 1] - 1
        if self._piece_address[last_piece] + self._piece_length[last_piece] <= address:
            first += 1
        return range(first, after)

    def member(self, number: int) -> MemberRef:
        """Return member *number*."""
        self._require(number)
        last_piece = self._member_piece[number + 1] - 1
        need = self._piece_inner[last_piece] + self._piece_length[last_piece]
        return MemberRef(self._member_offset[number], self._member_length[number], self._member_raw[number], need)

    def pieces(self, number: int) -> list[Piece]:
        """Return the pieces of member *number*, ascending."""
        self._require(number)
        numbers = range(self._member_piece[number], self._member_piece[number + 1])
        address, inner, length = self._piece_address, self._piece_inner, self._piece_length
        return [Piece(address[i], inner[i], length[i]) for i in numbers]

    def digest(self, number: int) -> bytes:
        """Return what `member_digest` of the member's pieces must be."""
        self._require(number)
        return bytes(self._digests[DIGEST_BYTES * number : DIGEST_BYTES * (number + 1)])

    def verify(self, number: int, raw: bytes | bytearray | memoryview) -> None:
        """Prove that *raw*, the member inflated to at least its `need_bytes`, is what the index promises.

        Raises:
            IntegrityError: a piece differs, or *raw* is too short.
        """
        view = memoryview(raw)
        spans = [(inner, inner + length) for _, inner, length in self.pieces(number)]
        self.verify_pieces(number, (view[start:end] for start, end in spans))

    def verify_pieces(self, number: int, contents: Iterable[bytes | bytearray | memoryview]) -> None:
        """Prove that *contents*, the bytes of the member's pieces in order, are what the index promises.

        Raises:
            IntegrityError: they are not.
        """
        expected = self.digest(number)
        actual = member_digest([hashlib.sha256(content).digest() for content in contents])
        if actual != expected:
            raise IntegrityError(f"member {number}", "sha256:" + expected.hex(), "sha256:" + actual.hex())

    @property
    def prefetch(self) -> tuple[tuple[int, int], ...]:
        """The image ranges (address, length) to load ahead, in the order in which they were touched."""
        return tuple(zip(self._prefetch_address, self._prefetch_length, strict=True))

    def _require(self, number: int) -> None:
        if not 0 <= number < self.member_count:
            raise IndexError(number)


def member_digest(digests: list[bytes]) -> bytes:
    """Return the digest of a member: that of its only piece, or SHA-256 over the digests of its pieces in a row."""
    return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
