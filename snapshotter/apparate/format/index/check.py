"""Proves that the two halves of an index tell of the same files: the EROFS metadata and the table of pieces."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from apparate.errors import FormatError
from apparate.format.erofs.reader import ErofsReader
from apparate.format.index.local import LayerIndex, Piece
from apparate.format.index.tables import refuse

#: Inodes can share attributes, so a small image could claim any amount of them.
MAX_ATTRIBUTE_BYTES: Final = 1 << 30


def all_pieces(index: LayerIndex) -> Iterator[Piece]:
    """Yield all pieces of all members, by ascending address."""
    for number in range(index.member_count):
        yield from index.pieces(number)


def check_tree(index: LayerIndex) -> None:
    """Walk the whole tree of *index* and hold it against the pieces. Takes microseconds an inode: for `fsck` and tests.

    Files do not overlap, each piece lies inside one file, and the number of inodes is the one that was said.

    Raises:
        FormatError: the first contradiction.
    """
    reader = ErofsReader(index.metadata())
    extents = _extents(reader, index)
    files = iter(extents)
    start = end = 0
    for piece in all_pieces(index):
        while piece.address >= end:
            following = next(files, None)
            if following is None:
                raise refuse("piece_address", f"no file holds the piece at {piece.address}")
            start, end = following
        if piece.address < start or piece.address + piece.length > end:
            raise refuse("piece_address", f"the piece at {piece.address} is not inside the file at {start}")


def _extents(reader: ErofsReader, index: LayerIndex) -> list[tuple[int, int]]:
    """Return where the regular files of the tree lie, ascending."""
    seen: set[int] = set()
    extents = []
    attribute_bytes = 0
    for path, inode in reader.walk():
        if inode.nid in seen:
            continue
        seen.add(inode.nid)
        attribute_bytes += sum(map(len, reader.xattrs(inode).values()))
        if attribute_bytes > MAX_ATTRIBUTE_BYTES:
            raise FormatError("erofs", "xattrs", f"more than {MAX_ATTRIBUTE_BYTES} bytes in all")
        if inode.kind == stat.S_IFLNK:
            reader.symlink(inode)
        address = reader.address(inode)
        if address:
            if address < index.metadata_size:
                raise FormatError("erofs", "i_u", f"the data of {path[:256]!r} lie among the metadata")
            extents.append((address, address + inode.size))
    if len(seen) != index.inode_count:
        raise refuse("inode_count", f"{index.inode_count} is not {len(seen)}, what the tree has")
    extents.sort()
    for (_, end), (following, _) in pairwise(extents):
        if following < end:
            raise FormatError("erofs", "i_u", f"two files share the bytes at {following}")
    return extents
