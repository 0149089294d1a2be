"""From the pieces of a plan to bytes: ranges of the spool, zeros, literals."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Final

from apparate.errors import FormatError
from apparate.format.writer import Span, Zeros

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from apparate.format.writer import Piece

READ_BYTES: Final = 1024 * 1024
GAP_BYTES_MAX: Final = 64 * 1024
"""Pieces that lie no further apart in the spool are read in one go: a small file's header, data and padding, and its neighbours."""
_ZEROS: Final = bytes(READ_BYTES)


def resolve(fd: int, pieces: Sequence[Piece]) -> bytes:
    """Return the bytes of *pieces* in a row; spans are read from *fd*. May be called from any thread."""
    parts: list[bytes | memoryview] = []
    window, start = memoryview(b""), 0
    for number, piece in enumerate(pieces):
        if isinstance(piece, Span):
            if not start <= piece.offset <= piece.offset + piece.length <= start + len(window):
                start = piece.offset
                window = memoryview(read_exactly(fd, start, _reach(pieces, number) - start))
            parts.append(window[piece.offset - start : piece.offset - start + piece.length])
        elif isinstance(piece, Zeros):
            parts.append(_ZEROS[: piece.length] if piece.length <= READ_BYTES else bytes(piece.length))
        else:
            parts.append(piece)
    return b"".join(parts)


def _reach(pieces: Sequence[Piece], first: int) -> int:
    """Return the end of the run of spans that is best read at once, beginning with the span pieces[first]."""
    end = -1
    for piece in pieces[first:]:
        if not isinstance(piece, Span):
            continue
        if end >= 0 and not end <= piece.offset <= end + GAP_BYTES_MAX:
            break
        end = piece.offset + piece.length
    return end


def digest_of(fd: int, pieces: Iterable[Piece]) -> bytes:
    """Return the raw SHA-256 of the bytes of *pieces* in a row, without holding them all."""
    hasher = hashlib.sha256()
    for piece in pieces:
        if isinstance(piece, Span):
            for offset in range(piece.offset, piece.offset + piece.length, READ_BYTES):
                hasher.update(read_exactly(fd, offset, min(READ_BYTES, piece.offset + piece.length - offset)))
        elif isinstance(piece, Zeros):
            for done in range(0, piece.length, READ_BYTES):
                hasher.update(_ZEROS[: min(READ_BYTES, piece.length - done)])
        else:
            hasher.update(piece)
    return hasher.digest()


def read_exactly(fd: int, offset: int, length: int) -> bytes:
    """Return the bytes [offset, offset + length) of a file of ours."""
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise FormatError("temporary file", "length", f"ends at {offset + len(data)}", offset)
        data += more
    return data
