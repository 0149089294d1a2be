"""The tables of an index while it is made: plain arrays, checked once, then written in the local or the wire form."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, count, islice
from operator import add, gt, lt
from typing import Final

from apparate.errors import FormatError
from apparate.format.erofs import ondisk
from apparate.format.erofs.reader import read_superblock
from apparate.format.toc import DIGEST_BYTES, Compression

FORMAT: Final = "index"

#: Above these a layer is not loaded lazily: its index alone would be too large to hold on a node.
MAX_MEMBERS: Final = 1 << 22
MAX_PIECES: Final = 1 << 22
MAX_METADATA_BYTES: Final = 1 << 28
MAX_PREFETCH: Final = 1 << 20
#: Lengths inside a member, and of a member, are kept in 32 bits; blob offsets in what fits a signed 64-bit file offset.
MAX_LENGTH: Final = (1 << 32) - 1
MAX_BLOB_BYTES: Final = (1 << 63) - 1

Numbers = Sequence[int]


@dataclass(frozen=True, slots=True)
class IndexTables:
    """Everything a node needs to know about a layer. The invariants are those that `check` proves.

    The pieces of member *i* are those numbered `member_piece[i]` to `member_piece[i + 1] - 1`.
    """

    compression: Compression
    inode_count: int
    image_size: int
    #: Raw SHA-256 of the TOC this was made from, or 32 zero bytes.
    toc_digest: bytes
    metadata: bytes | memoryview
    member_offset: Numbers
    member_length: Numbers
    member_raw: Numbers
    member_piece: Numbers
    piece_address: Numbers
    piece_inner: Numbers
    piece_length: Numbers
    #: 32 bytes a member.
    digests: bytes | memoryview
    prefetch_address: Numbers
    prefetch_length: Numbers

    def check(self) -> None:
        """Prove that every number stays where it belongs.

        Members and pieces ascend and do not overlap, in the blob, in their member and in the image; nothing reaches outside.

        Raises:
            FormatError: the first field that lies.
        """
        _check_metadata(self)
        _check_counts(self)
        _check_members(self)
        _check_pieces(self)
        _check_prefetch(self)


def refuse(field: str, reason: str) -> FormatError:
    """Return the error for a bad *field* of an index."""
    return FormatError(FORMAT, field, reason)


def check_limits(metadata_bytes: int, members: int, pieces: int, prefetch: int) -> None:
    """Raise FormatError for counts above the limits, before anything is allocated for them."""
    if metadata_bytes > MAX_METADATA_BYTES or metadata_bytes % ondisk.BLOCK_BYTES or not metadata_bytes:
        raise refuse("metadata_size", f"{metadata_bytes} is not a possible size")
    for field, found, limit in (
        ("member_count", members, MAX_MEMBERS),
        ("piece_count", pieces, MAX_PIECES),
        ("prefetch_count", prefetch, MAX_PREFETCH),
    ):
        if found > limit:
            raise refuse(field, f"{found} is above the limit of {limit}")


def _check_metadata(tables: IndexTables) -> None:
    superblock, image_size = read_superblock(tables.metadata), tables.image_size
    if superblock.blocks << ondisk.BLOCK_BITS != image_size or image_size > ondisk.IMAGE_BYTES_MAX:
        raise refuse("image_size", f"{image_size} is not what the superblock says")
    if image_size < len(tables.metadata):
        raise refuse("image_size", f"{image_size} is less than the metadata")
    if superblock.inodes != tables.inode_count:
        raise refuse("inode_count", f"{tables.inode_count} is not what the superblock says")


def _check_counts(tables: IndexTables) -> None:
    members, pieces = len(tables.member_offset), len(tables.piece_address)
    check_limits(len(tables.metadata), members, pieces, len(tables.prefetch_address))
    first = tables.member_piece
    if len(first) != members + 1 or first[0] != 0 or first[members] != pieces:
        raise refuse("member_piece", "does not span the pieces")
    if not all(map(lt, first, islice(first, 1, None))):
        raise refuse("member_piece", "a member has no pieces")
    if len(tables.digests) != members * DIGEST_BYTES:
        raise refuse("digests", f"{len(tables.digests)} bytes for {members} members")


def _check_members(tables: IndexTables) -> None:
    offsets, lengths = tables.member_offset, tables.member_length
    if not offsets:
        return
    if min(lengths) < 1:
        raise refuse("member_length", "a member has no bytes")
    ends = list(map(add, offsets, lengths))
    if any(map(gt, ends, islice(offsets, 1, None))) or offsets[0] < 0:
        raise refuse("member_offset", "members overlap or do not ascend")
    if ends[-1] > MAX_BLOB_BYTES:
        raise refuse("member_offset", f"the last member ends at {ends[-1]}")


def _check_pieces(tables: IndexTables) -> None:
    addresses, inner, lengths = tables.piece_address, tables.piece_inner, tables.piece_length
    if not addresses:
        return
    if min(lengths) < 1:
        raise refuse("piece_length", "a piece has no bytes")
    if any(map(gt, map(add, addresses, lengths), islice(addresses, 1, None))):
        raise refuse("piece_address", "pieces overlap or do not ascend")
    if addresses[0] < len(tables.metadata) or addresses[-1] + lengths[-1] > tables.image_size:
        raise refuse("piece_address", "a piece lies outside the data of the image")
    ends = list(map(add, inner, lengths))
    overlapping = compress(count(1), map(gt, ends, islice(inner, 1, None)))
    if not set(tables.member_piece).issuperset(overlapping):  # each member begins anew
        raise refuse("piece_inner", "pieces of a member overlap or do not ascend")
    if max(ends) > MAX_LENGTH:
        raise refuse("piece_inner", "a member is larger than 4 GiB")
    needed = [ends[after - 1] for after in islice(tables.member_piece, 1, None)]
    if any(map(lt, [raw or MAX_LENGTH for raw in tables.member_raw], needed)):
        raise refuse("member_raw", "a member is shorter than what its pieces need of it")


def _check_prefetch(tables: IndexTables) -> None:
    if len(tables.prefetch_length) != len(tables.prefetch_address):
        raise refuse("prefetch", "as many lengths as addresses are needed")
    if not tables.prefetch_address:
        return
    last = max(map(add, tables.prefetch_address, tables.prefetch_length))
    if min(tables.prefetch_address) < len(tables.metadata) or last > tables.image_size:
        raise refuse("prefetch_address", "a range lies outside the data of the image")


def native(code: str, numbers: Numbers) -> array[int]:
    """Return *numbers* as an array of *code* (`I` or `Q`); what does not fit is a FormatError."""
    try:
        return array(code, numbers)
    except OverflowError as error:
        raise refuse("number", f"does not fit {8 * array(code).itemsize} bits") from error
