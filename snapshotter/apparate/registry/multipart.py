"""multipart/byteranges (RFC 9110, section 14.6). We ask for one range, so only the first part is of use."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from apparate.errors import Unavailable

if TYPE_CHECKING:
    from apparate.registry.streams import Chunks

HEAD_BYTES_MAX = 8 * 1024
"""Preamble, delimiter and headers of the first part together."""
_BOUNDARY = re.compile(r'\bboundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)


def boundary_of(content_type: str) -> str | None:
    """Return the boundary of a multipart/byteranges body, None for any other type."""
    if content_type.partition(";")[0].strip().lower() != "multipart/byteranges":
        return None
    match = _BOUNDARY.search(content_type)
    return (match[1] or match[2]) if match else ""


class FirstPart:
    """The first part of a body. Whoever reads it knows its length from *content_range* and reads no further."""

    def __init__(self, body: Chunks, boundary: str) -> None:
        """Read up to the part's first byte.

        Raises:
            Unavailable: no such part, or the connection broke.
        """
        self._body = body
        self._ahead = b""
        self.content_range = self._head(b"--" + boundary.encode("latin-1", "replace"))

    def read1(self, size: int, /) -> bytes:
        """Return up to *size* bytes."""
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        return self._body.read1(size)

    def close(self) -> None:
        """Close the whole body; other parts stay unread."""
        self._body.close()

    def _head(self, delimiter: bytes) -> str:
        held = b""
        while True:
            begin = held.find(delimiter)
            end = held.find(b"\r\n\r\n", begin) if begin >= 0 else -1
            if end >= 0:
                break
            if len(held) > HEAD_BYTES_MAX:
                raise Unavailable("multipart answer: its first part does not begin")
            data = self._body.read1(HEAD_BYTES_MAX)
            if not data:
                raise Unavailable("multipart answer: it ended before its first part")
            held += data
        self._ahead = held[end + 4 :]
        for line in held[begin + len(delimiter) : end].split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-range":
                return value.strip().decode("latin-1")
        raise Unavailable("multipart answer: its first part names no range")
