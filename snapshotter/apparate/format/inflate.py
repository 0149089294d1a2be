"""Inflating, bounded: the output never exceeds what the caller allows, whatever the compressed bytes say.

Known length: libdeflate, or zstd in one call, into a buffer of that length. Unknown length: streaming, until enough is there.
"""

from __future__ import annotations

import zlib
from typing import Final, cast

import deflate
import zstandard
from isal import igzip_lib, isal_zlib

from apparate.errors import FormatError
from apparate.format.limits import MAX_MEMBER_RAW_BYTES
from apparate.format.toc import Compression

Buffer = bytes | bytearray | memoryview

_GZIP_WBITS: Final = 31
#: Largest zstd window that is accepted: the format's recommended minimum for decoders is 8 MiB, `--ultra` writes 128 MiB.
_MAX_WINDOW_BYTES: Final = 128 << 20
_STEP_BYTES: Final = 1 << 20
# isal's stubs declare its exception class as an instance.
_INFLATE_ERRORS: Final = (cast("type[Exception]", igzip_lib.IsalError), zlib.error)


def inflate_member(compression: Compression, data: Buffer, raw_length: int, need_bytes: int) -> bytes:
    """Return at least the first *need_bytes* of the inflated member *data*; exactly *raw_length* if that is known (not 0).

    *data* may have other bytes behind those that are needed.

    Raises:
        FormatError: it does not inflate, or to fewer bytes.
    """
    wanted = raw_length or need_bytes
    if wanted > MAX_MEMBER_RAW_BYTES:
        raise FormatError(compression.value, "member", f"{wanted} bytes are above the limit of {MAX_MEMBER_RAW_BYTES}")
    if raw_length:
        whole = _whole_gzip(data, raw_length) if compression is Compression.GZIP else _whole_zstd(data, raw_length)
        if whole is not None:
            return whole
    raw = inflate_bounded(compression, data, wanted)
    if len(raw) < wanted:
        raise FormatError(compression.value, "member", f"inflates to {len(raw)} bytes, not to {wanted}")
    return raw


def inflate_bounded(compression: Compression, data: Buffer, limit: int) -> bytes:
    """Return the first *limit* bytes, or fewer, that *data* (gzip members or zstd frames in a row) inflates to.

    Raises:
        FormatError: the compressed bytes are broken or end too early.
    """
    return _gzip_stream(data, limit) if compression is Compression.GZIP else _zstd_stream(data, limit)


def _whole_gzip(data: Buffer, raw_length: int) -> bytes | None:
    """Return the first gzip member if it has *raw_length* bytes."""
    try:
        raw = deflate.gzip_decompress(data, raw_length)
    except (deflate.DeflateError, ValueError):
        return None  # broken, or another member follows: the streaming way says which
    return bytes(raw) if len(raw) == raw_length else None


def _whole_zstd(data: Buffer, raw_length: int) -> bytes | None:
    """Return the first frame if its header promises *raw_length* bytes."""
    try:
        if zstandard.frame_content_size(data) != raw_length:
            return None
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        return decompressor.decompress(data, max_output_size=raw_length, allow_extra_data=True)
    except zstandard.ZstdError as error:
        raise FormatError("zstd", "member", str(error)) from error


def _gzip_stream(data: Buffer, limit: int) -> bytes:
    parts: list[bytes] = []
    length = 0
    rest: Buffer = memoryview(data)
    while length < limit and len(rest):
        inflater = isal_zlib.decompressobj(wbits=_GZIP_WBITS)
        pending: Buffer = rest
        while length < limit and not inflater.eof:
            try:
                part = inflater.decompress(pending, min(limit - length, _STEP_BYTES))
            except _INFLATE_ERRORS as error:
                raise FormatError("gzip", "member", str(error)) from error
            pending = inflater.unconsumed_tail
            if not part and not pending and not inflater.eof:
                raise FormatError("gzip", "member", f"ends after {length} inflated bytes, within its data")
            parts.append(part)
            length += len(part)
        rest = inflater.unused_data
    return b"".join(parts)


def _zstd_stream(data: Buffer, limit: int) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    parts: list[bytes] = []
    length = 0
    try:
        with decompressor.stream_reader(data, read_across_frames=True) as stream:
            while length < limit:
                part = stream.read(min(limit - length, _STEP_BYTES))
                if not part:
                    break
                parts.append(part)
                length += len(part)
    except zstandard.ZstdError as error:
        raise FormatError("zstd", "member", str(error)) from error
    return b"".join(parts)
