"""The bytes of one member laid out as they lie in the image, padding filled in: what is written and what is pushed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from apparate.format.index import LayerIndex, Piece

BLOCK_BYTES: Final = 4096
"""File data begins at a block border, so the rest of the block in which a file ends belongs to nobody and is zeros."""


class Run(NamedTuple):
    """The image bytes from *address* on."""

    address: int
    data: memoryview


def runs_of(index: LayerIndex, member: int, raw: Buffer) -> list[Run]:
    """Return what the inflated *member* puts into the image, in as few runs as it takes: many small files are one.

    The last block is filled with zeros where nothing follows in it, so that only whole pages arrive.
    """
    pieces = index.pieces(member)
    view = memoryview(raw)
    after = index.pieces(member + 1)[0].address if member + 1 < index.member_count else index.image_size
    return [_run(group, view, after if group[-1] is pieces[-1] else -1) for group in _groups(pieces)]


def spans_of(groups: Iterable[Sequence[Piece]]) -> Iterator[tuple[int, int]]:
    """Yield (address, length) of the image bytes that hold the pieces, neighbours that only padding separates as one."""
    start = end = -1
    for piece in (piece for pieces in groups for piece in pieces):
        if start < 0:
            start = piece.address
        elif not _adjoins(end, piece.address):
            yield start, end - start
            start = piece.address
        end = piece.address + piece.length
    if start >= 0:
        yield start, end - start


def _groups(pieces: Sequence[Piece]) -> Iterator[Sequence[Piece]]:
    first = 0
    for number in range(1, len(pieces) + 1):
        if number == len(pieces) or not _adjoins(
            pieces[number - 1].address + pieces[number - 1].length, pieces[number].address
        ):
            yield pieces[first:number]
            first = number


def _run(group: Sequence[Piece], view: memoryview, after: int) -> Run:
    start, last = group[0].address, group[-1]
    end = last.address + last.length
    block_end = -(-end // BLOCK_BYTES) * BLOCK_BYTES
    padded_end = block_end if after >= block_end else end
    if len(group) == 1 and padded_end == end:
        return Run(start, view[last.inner_offset : last.inner_offset + last.length])
    joined = bytearray(padded_end - start)
    for piece in group:
        at = piece.address - start
        joined[at : at + piece.length] = view[piece.inner_offset : piece.inner_offset + piece.length]
    return Run(start, memoryview(joined))


def _adjoins(end: int, address: int) -> bool:
    """Whether nothing lies between *end* and *address* but the rest of the block in which *end* lies."""
    return address == end or (address % BLOCK_BYTES == 0 and 0 < address - end < BLOCK_BYTES)
