"""Answers to ranged requests (RFC 9110, section 14): what was really sent, or why it is of no use."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from apparate.errors import Unavailable, Unsupported
from apparate.registry.redact import redact_url
from apparate.registry.streams import RangeStream

if TYPE_CHECKING:
    from apparate.registry.transport import Response

_CONTENT_RANGE = re.compile(r"bytes\s+(\d{1,19})-(\d{1,19})/(\d{1,19})\Z", re.ASCII)


class RangesUnsupported(Unsupported):
    """The server answers a ranged request with the whole blob."""


def range_header(offset: int, length: int) -> str:
    """Return the Range header's value for bytes [offset, offset + length)."""
    return f"bytes={offset}-{offset + length - 1}"


def ranged(response: Response, offset: int, length: int) -> RangeStream:
    """Return the stream in *response* to a request of bytes [offset, offset + length).

    It is shorter than *length* only where the blob ends. On an error *response* is left open.

    Raises:
        RangesUnsupported: the whole blob comes.
        Unavailable: the answer does not fit the question: a broken server, or a page of somebody in between.
    """
    if response.status != 206:
        _check_whole(response, offset, length)
        return RangeStream(response, 0, length, length)
    begin, end, total = _content_range(response, response.header("content-range"))
    if begin != offset or end > offset + length or (end < offset + length and end != total):
        raise _unfit(response, f"bytes {begin}-{end - 1}/{total} came for {offset}-{offset + length - 1}")
    _check_length(response, end - begin)
    return RangeStream(response, begin, end - begin, total)


def ranged_tail(response: Response, length: int) -> RangeStream:
    """Return the stream in *response* to a request of the last *length* bytes; raises as `ranged`."""
    if response.status != 206:
        size = response.content_length
        if size is None or size > length:
            _check_whole(response, -1, length)
        return RangeStream(response, 0, size or 0, size or 0)
    begin, end, total = _content_range(response, response.header("content-range"))
    if end != total or begin != max(total - length, 0):
        raise _unfit(response, f"bytes {begin}-{end - 1}/{total} came for the last {length}")
    _check_length(response, end - begin)
    return RangeStream(response, begin, end - begin, total)


def _check_whole(response: Response, offset: int, length: int) -> None:
    """Return if a 200 carries just what was asked for."""
    kind = response.header("content-type").partition(";")[0].strip().lower()
    if kind.startswith("text/") or kind in {"application/json", "application/problem+json", "application/xhtml+xml"}:
        raise _unfit(response, f"{kind} came instead of the blob")
    if offset != 0 or response.content_length != length:
        raise RangesUnsupported(f"{response.method} {redact_url(response.url)}: the server does not serve ranges")


def _content_range(response: Response, text: str) -> tuple[int, int, int]:
    """Return begin, end (exclusive) and total of a Content-Range."""
    match = _CONTENT_RANGE.match(text.strip())
    if match is None:
        raise _unfit(response, f"Content-Range {text[:80]!r} does not parse")
    first, last, total = (int(group) for group in match.groups())
    if not first <= last < total:
        raise _unfit(response, f"Content-Range {text[:80]!r} contradicts itself")
    return first, last + 1, total


def _check_length(response: Response, length: int) -> None:
    announced = response.content_length
    if announced is not None and announced != length:
        raise _unfit(response, f"Content-Length {announced} does not fit a range of {length} bytes")


def _unfit(response: Response, why: str) -> Unavailable:
    return Unavailable(f"{response.method} {redact_url(response.url)}: {why}")
