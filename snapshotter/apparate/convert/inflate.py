"""A layer blob of any common compression as one stream of uncompressed tar bytes, in bounded memory.

The compression is told by the first bytes, as container runtimes do: media types in the wild are not always right.
"""

from __future__ import annotations

import io
from itertools import chain
from typing import TYPE_CHECKING, Final

import zstandard
from isal import igzip_lib, isal_zlib

from apparate.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Buffer

GZIP_MAGIC: Final = b"\x1f\x8b"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE: Final = frozenset(bytes((first, 0x2A, 0x4D, 0x18)) for first in range(0x50, 0x60))
"""Magic numbers of skippable frames (RFC 8878, section 3.1.2)."""
MAGIC_BYTES: Final = 4
PIECE_BYTES: Final = 256 * 1024
"""Inflated bytes are handed out in pieces of at most this size."""
ZSTD_WINDOW_MAX: Final = 128 * 1024 * 1024
"""As the zstd program: a frame that needs a larger window is refused."""
_GZIP_WBITS: Final = 31
_GZIP_ERROR: Final[type[Exception]] = igzip_lib.IsalError  # type: ignore[assignment]  # the stub takes the class for an instance


def inflate(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the uncompressed bytes of the blob that arrives as *chunks*; all chunks are taken before the end is reached.

    A zstd blob that is cut off gives what there is: the caller knows from the digest of the whole.

    Raises:
        FormatError: broken, a gzip member that is cut off, or compressed data followed by something else.
    """
    source = iter(chunks)
    head = b""
    for chunk in source:
        head += chunk
        if len(head) >= MAGIC_BYTES:
            break
    whole = chain((head,), source)
    if head.startswith(GZIP_MAGIC):
        yield from _gunzip(whole)
    elif head.startswith(ZSTD_MAGIC) or head[:MAGIC_BYTES] in ZSTD_SKIPPABLE:
        yield from _unzstd(whole)
    else:
        yield from (piece for piece in whole if piece)


def _gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    member = None  # a decompressor in the middle of a member
    position = 0
    for chunk in chunks:
        position += len(chunk)
        data = chunk
        full = False  # whether the decompressor may hold more output than it gave
        while data or full:
            member = member or isal_zlib.decompressobj(_GZIP_WBITS)
            try:
                piece = member.decompress(data, PIECE_BYTES)
            except _GZIP_ERROR as error:
                raise FormatError("gzip", "member", str(error), position - len(data)) from error
            if piece:
                yield piece
            if member.eof:
                data, full, member = member.unused_data, False, None
            else:
                data, full = member.unconsumed_tail, len(piece) == PIECE_BYTES
    if member is not None:
        raise FormatError("gzip", "member", "the blob ends inside of it", position)


class _Chunks(io.RawIOBase):
    """Chunks as the file object that zstandard reads from."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        into = memoryview(buffer)
        size = min(len(into), len(self._rest))
        into[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _unzstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
    with decompressor.stream_reader(io.BufferedReader(_Chunks(chunks)), read_across_frames=True) as reader:
        while True:
            try:
                piece = reader.read(PIECE_BYTES)
            except zstandard.ZstdError as error:
                raise FormatError("zstd", "frame", str(error)) from error
            if not piece:
                return
            yield piece
