"""Checks a layer's image file against its index: what `apparate fsck` reports. Reads only, repairs nothing."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from apparate.errors import FormatError
from apparate.format.index import LayerIndex, Piece, member_digest
from apparate.format.index.check import all_pieces, check_tree

#: More are counted, not kept.
MAX_PROBLEMS: Final = 100
_BLOCK_BYTES: Final = 1 << 20
#: Shorter gaps are read at once; in longer ones only what the file system has stored is.
_SHORT_GAP_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as the index says: at *address* of the image, *length* bytes (0: no bytes in particular)."""

    what: str
    address: int
    length: int
    reason: str


@dataclass(slots=True)
class VerifyReport:
    """What was looked at, and what was wrong with it."""

    metadata_sha256: str = ""
    members_checked: int = 0
    members_missing: int = 0
    bytes_checked: int = 0
    problem_count: int = 0
    #: The first MAX_PROBLEMS of them.
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether everything that is present is right."""
        return self.problem_count == 0

    @property
    def is_complete(self) -> bool:
        """Whether the file is a whole image that can be mounted by itself."""
        return self.is_sound and self.members_missing == 0

    def add(self, what: str, address: int, length: int, reason: str) -> None:
        """Record a problem."""
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(what, address, length, reason))


def verify_image(
    descriptor: int,
    index: LayerIndex,
    *,
    present: Callable[[int], bool] = lambda _: True,
    progress: Callable[[int], None] = lambda _: None,
) -> VerifyReport:
    """Return what is wrong with the image file open at *descriptor*.

    Looked at: its size; the metadata, byte for byte, and whether their tree agrees with the table of pieces; the digest of
    every member of which *present* says that it is there; and that padding and holes are zeros, since a kernel shows the
    padding behind the end of a mapped file. *progress* is called with the count of bytes read so far.

    Raises:
        OSError: the file cannot be read.
    """
    report = VerifyReport()
    size = os.fstat(descriptor).st_size
    if size != index.image_size:
        report.add("size", 0, 0, f"{size} bytes, not {index.image_size}")
    _check_metadata(descriptor, index, report)
    for number in range(index.member_count):
        if present(number):
            _check_member(descriptor, index, number, report)
        else:
            report.members_missing += 1
        progress(report.bytes_checked)
    for start, end in _gaps(index):
        _check_gap(descriptor, start, end, report)
    progress(report.bytes_checked)
    return report


def _check_metadata(descriptor: int, index: LayerIndex, report: VerifyReport) -> None:
    wanted = hashlib.sha256(index.metadata()).hexdigest()
    found = hashlib.sha256()
    for block in _read(descriptor, 0, index.metadata_size):
        found.update(block)
    report.metadata_sha256 = found.hexdigest()
    report.bytes_checked += index.metadata_size
    if report.metadata_sha256 != wanted:
        reason = f"expected sha256:{wanted}, got sha256:{report.metadata_sha256}"
        report.add("metadata", 0, index.metadata_size, reason)
    try:
        check_tree(index)
    except FormatError as error:
        report.add("index", 0, 0, str(error))


def _check_member(descriptor: int, index: LayerIndex, number: int, report: VerifyReport) -> None:
    pieces = index.pieces(number)
    found = member_digest([_piece_digest(descriptor, piece) for piece in pieces])
    wanted = index.digest(number)
    report.members_checked += 1
    report.bytes_checked += sum(piece.length for piece in pieces)
    if found != wanted:
        length = pieces[-1].address + pieces[-1].length - pieces[0].address
        reason = f"expected sha256:{wanted.hex()}, got sha256:{found.hex()}"
        report.add(f"member {number}", pieces[0].address, length, reason)


def _piece_digest(descriptor: int, piece: Piece) -> bytes:
    digest = hashlib.sha256()
    for block in _read(descriptor, piece.address, piece.length):
        digest.update(block)
    return digest.digest()


def _gaps(index: LayerIndex) -> Iterator[tuple[int, int]]:
    """Yield what lies between the pieces."""
    end = index.metadata_size
    for piece in all_pieces(index):
        if piece.address > end:
            yield end, piece.address
        end = piece.address + piece.length
    if index.image_size > end:
        yield end, index.image_size


def _check_gap(descriptor: int, start: int, end: int, report: VerifyReport) -> None:
    for data_start, data_end in _stored(descriptor, start, end):
        for block in _read(descriptor, data_start, data_end - data_start):
            report.bytes_checked += len(block)
            if any(block):
                report.add("padding", start, end - start, "holds bytes other than zero")
                return


def _stored(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of [start, end) that the file system has stored, all of it if that is not much."""
    if end - start <= _SHORT_GAP_BYTES:
        yield start, end
        return
    position = start
    while position < end:
        try:
            position = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        hole = os.lseek(descriptor, position, os.SEEK_HOLE)
        if position < end:
            yield position, min(hole, end)
        position = hole


def _read(descriptor: int, address: int, length: int) -> Iterator[bytes]:
    """Yield the bytes [address, address + length) in blocks, fewer where the file ends."""
    end = address + length
    while address < end:
        block = os.pread(descriptor, min(_BLOCK_BYTES, end - address), address)
        if not block:
            return
        yield block
        address += len(block)
