"""Answers to ranged requests (RFC 9110, section 14): what was really sent, or why it is of no use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apparate.errors import Unavailable, Unsupported
from apparate.registry.multipart import FirstPart, boundary_of
from apparate.registry.redact import redact_url

if TYPE_CHECKING:
    from apparate.registry.streams import Chunks
    from apparate.registry.transport import Response

_CONTENT_RANGE = re.compile(r"bytes\s+(\d{1,19})-(\d{1,19})/(\d{1,19})\Z", re.ASCII)


class RangesUnsupported(Unsupported):
    """The server answers a ranged request with the whole blob."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [offset, offset + length) of a blob of *total* bytes, still to be read from *chunks*."""

    offset: int
    length: int
    total: int
    chunks: Chunks


def range_header(offset: int, length: int) -> str:
    """Return the Range header's value for bytes [offset, offset + length)."""
    return f"bytes={offset}-{offset + length - 1}"


def ranged(response: Response, offset: int, length: int) -> Piece:
    """Return what *response*, to a request of bytes [offset, offset + length), brings; it is left open on an error.

    That is less than *length* only where the blob ends.

    Raises:
        RangesUnsupported: the whole blob comes.
        Unavailable: the answer does not fit the question: a broken server, or a page of somebody in between.
    """
    if response.status != 206:
        _check_whole(response, wanted=offset == 0 and response.content_length == length)
        return Piece(0, length, length, response)
    piece = _partial(response)
    end = piece.offset + piece.length
    if piece.offset != offset or end > offset + length or (end < offset + length and end != piece.total):
        raise _unfit(response, f"bytes {piece.offset}-{end - 1}/{piece.total} came for {offset}-{offset + length - 1}")
    return piece


def ranged_tail(response: Response, length: int) -> Piece:
    """Return what *response*, to a request of the last *length* bytes, brings; raises as `ranged`."""
    if response.status != 206:
        size = response.content_length or 0
        _check_whole(response, wanted=0 < size <= length)
        return Piece(0, size, size, response)
    piece = _partial(response)
    end = piece.offset + piece.length
    if end != piece.total or piece.offset != max(piece.total - length, 0):
        raise _unfit(response, f"bytes {piece.offset}-{end - 1}/{piece.total} came for the last {length}")
    return piece


def check_blob(response: Response) -> None:
    """Raise Unavailable if a 200 carries a page, of a portal or a proxy, rather than a blob."""
    kind = response.header("content-type").partition(";")[0].strip().lower()
    if kind.startswith("text/") or kind in {"application/problem+json", "application/xhtml+xml"}:
        raise _unfit(response, f"{kind} came instead of the blob")


def _check_whole(response: Response, *, wanted: bool) -> None:
    check_blob(response)
    if not wanted:
        raise RangesUnsupported(f"{response.method} {redact_url(response.url)}: the server does not serve ranges")


def _partial(response: Response) -> Piece:
    boundary = boundary_of(response.header("content-type"))
    if boundary is not None:
        part = FirstPart(response, boundary)
        begin, end, total = _content_range(response, part.content_range)
        return Piece(begin, end - begin, total, part)
    begin, end, total = _content_range(response, response.header("content-range"))
    announced = response.content_length
    if announced is not None and announced != end - begin:
        raise _unfit(response, f"Content-Length {announced} does not fit a range of {end - begin} bytes")
    return Piece(begin, end - begin, total, response)


def _content_range(response: Response, text: str) -> tuple[int, int, int]:
    """Return begin, end (exclusive) and total of a Content-Range."""
    match = _CONTENT_RANGE.match(text.strip())
    if match is None:
        raise _unfit(response, f"Content-Range {text[:80]!r} does not parse")
    first, last, total = (int(group) for group in match.groups())
    if not first <= last < total:
        raise _unfit(response, f"Content-Range {text[:80]!r} contradicts itself")
    return first, last + 1, total


def _unfit(response: Response, why: str) -> Unavailable:
    return Unavailable(f"{response.method} {redact_url(response.url)}: {why}")
