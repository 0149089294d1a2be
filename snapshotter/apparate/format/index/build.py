"""Makes the index of a layer from its table of contents: at conversion for our layers, on the node for foreign ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import add
from typing import Final

from apparate.errors import FormatError, Unsupported
from apparate.format.collector import collector_paused
from apparate.format.erofs import writer
from apparate.format.index.local import member_digest, write_local
from apparate.format.index.tables import (
    FORMAT,
    MAX_LENGTH,
    MAX_MEMBERS,
    MAX_METADATA_BYTES,
    MAX_PIECES,
    MAX_PREFETCH,
    IndexTables,
)
from apparate.format.index.wire import pack
from apparate.format.prefetch import PrefetchRange
from apparate.format.toc import DIGEST_BYTES, Chunk, Member, TableOfContents
from apparate.format.tree import Node, Tree, build_tree

_NO_DIGEST: Final = bytes(DIGEST_BYTES)


def build_index(
    toc: TableOfContents, *, profile: Sequence[PrefetchRange] = (), toc_digest: bytes = _NO_DIGEST
) -> bytes:
    """Return the index of the layer in its wire form (`unpack` makes the local form of it).

    *profile* says what to load ahead, in order; names that the layer does not have are ignored. Without one the layer's
    prefetch landmark decides. *toc_digest* is the raw SHA-256 of the TOC where it is known.

    Raises:
        FormatError: the TOC does not make a tree, or its chunks do not follow one another.
        Unsupported: the layer is too large for an index (docs/formats/index.md, limits).
    """
    return pack(build_tables(toc, profile=profile, toc_digest=toc_digest))


def build_local(
    toc: TableOfContents, *, profile: Sequence[PrefetchRange] = (), toc_digest: bytes = _NO_DIGEST
) -> bytes:
    """Return the index of the layer in its local form: `unpack(build_index(...))`, without the detour.

    Raises:
        FormatError, Unsupported: as `build_index`.
    """
    return write_local(build_tables(toc, profile=profile, toc_digest=toc_digest))


def build_tables(
    toc: TableOfContents, *, profile: Sequence[PrefetchRange] = (), toc_digest: bytes = _NO_DIGEST
) -> IndexTables:
    """Return the tables of the layer's index, checked.

    Raises:
        FormatError, Unsupported: as `build_index`.
    """
    with collector_paused():
        tables = _tables(toc, profile, toc_digest)
        tables.check()
    return tables


def _tables(toc: TableOfContents, profile: Sequence[PrefetchRange], toc_digest: bytes) -> IndexTables:
    tree = build_tree(toc)
    layout = writer.build(tree)
    columns = _columns(tree, layout.addresses)
    ranges = _profile_ranges(tree, layout, profile) if profile else _landmark_ranges(toc, columns)
    members = [toc.members[number] for number in columns.members]
    _require_limits(members, len(layout.metadata), columns, len(ranges))
    return IndexTables(
        compression=toc.compression,
        inode_count=tree.inode_count,
        image_size=layout.image_size,
        toc_digest=toc_digest,
        metadata=layout.metadata,
        member_offset=[member.offset for member in members],
        member_length=[member.length for member in members],
        member_raw=[member.raw_length for member in members],
        member_piece=columns.member_piece,
        piece_address=columns.address,
        piece_inner=columns.inner,
        piece_length=columns.length,
        digests=b"".join(columns.digests),
        prefetch_address=[address for address, _ in ranges],
        prefetch_length=[length for _, length in ranges],
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    #: Number in the TOC of each member of the index.
    members: list[int]
    member_piece: list[int]
    address: list[int]
    inner: list[int]
    length: list[int]
    digests: list[bytes]


def _columns(tree: Tree, addresses: list[int]) -> _Columns:
    columns = _Columns([], [], [], [], [], [])
    pieces: list[bytes] = []
    current = -1
    for address, chunk in _chunks(tree, addresses):
        if chunk.member != current:
            if chunk.member < current:
                raise FormatError(FORMAT, "chunks", "they do not lie in the blob in the order of their files")
            if pieces:
                columns.digests.append(member_digest(pieces))
                pieces = []
            current = chunk.member
            columns.members.append(current)
            columns.member_piece.append(len(columns.address))
        columns.address.append(address + chunk.offset)
        columns.inner.append(chunk.inner_offset)
        columns.length.append(chunk.length)
        pieces.append(chunk.digest)
    if pieces:
        columns.digests.append(member_digest(pieces))
    columns.member_piece.append(len(columns.address))
    return columns


def _chunks(tree: Tree, addresses: list[int]) -> Iterator[tuple[int, Chunk]]:
    for node, address in zip(tree.files, addresses, strict=True):
        for chunk in node.chunks:
            yield address, chunk


def _require_limits(members: Sequence[Member], metadata_bytes: int, columns: _Columns, prefetch: int) -> None:
    longest = [max(member.length, member.raw_length) for member in members]
    for what, count, limit in (
        ("bytes of metadata", metadata_bytes, MAX_METADATA_BYTES),
        ("members", len(members), MAX_MEMBERS),
        ("chunks", len(columns.address), MAX_PIECES),
        ("prefetch ranges", prefetch, MAX_PREFETCH),
        ("bytes in a member", max(longest + list(map(add, columns.inner, columns.length)), default=0), MAX_LENGTH),
    ):
        if count > limit:
            raise Unsupported(f"the layer has {count} {what}, an index holds at most {limit}")


def _profile_ranges(tree: Tree, layout: writer.ErofsLayout, profile: Sequence[PrefetchRange]) -> list[tuple[int, int]]:
    addresses = dict(zip(tree.files, layout.addresses, strict=True))
    found = []
    for item in profile:
        node = _find(tree.root, item.path)
        address = addresses.get(node) if node is not None else None
        if node is None or address is None or item.offset >= node.size:
            continue
        left = node.size - item.offset
        length = left if item.length is None else min(item.length, left)
        if length > 0:
            found.append((address + item.offset, length))
    return found


def _find(root: Node, path: bytes) -> Node | None:
    node: Node | None = root
    for name in path.split(b"/"):
        if node is None or node.children is None:
            return None
        node = node.children.get(name)
    return node


def _landmark_ranges(toc: TableOfContents, columns: _Columns) -> list[tuple[int, int]]:
    before = toc.prefetch_members()
    after = sum(1 for number in columns.members if number < before)
    if not after:
        return []
    first, last = columns.address[0], columns.member_piece[after] - 1
    return [(first, columns.address[last] + columns.length[last] - first)]
