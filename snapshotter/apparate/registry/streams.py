"""Bodies of blobs on their way from the network: counted, bounded, closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from apparate.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apparate.registry.transport import Response

STEP_BYTES = 256 * 1024
"""How much is read from a connection at once."""


class _Stream:
    """A body of known length. Not thread-safe; close it, or use it as a context manager."""

    def __init__(self, response: Response, length: int) -> None:
        self._response = response
        self._left = length

    def read(self, size: int = -1) -> bytes:
        """Return the next *size* bytes, fewer only at the end; all that is left when *size* is negative."""
        wanted = self._left if size < 0 else min(size, self._left)
        parts: list[bytes] = []
        while wanted:
            data = self._step(wanted)
            parts.append(data)
            wanted -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill *buffer* from the start and return how many bytes were put there, fewer than it holds only at the end."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and self._left:
            data = self._step(len(view) - filled)
            view[filled : filled + len(data)] = data
            filled += len(data)
        return filled

    def __iter__(self) -> Iterator[bytes]:
        while self._left:
            yield self._step(STEP_BYTES)

    def _step(self, most: int) -> bytes:
        """Return at least one byte, at most *most* and what is left."""
        data = self._response.read1(min(most, self._left, STEP_BYTES))
        if not data:
            raise Unavailable(f"{self._response.method} {self._response.url}: the body ended {self._left} bytes early")
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Give the connection back; if the body was not read to its end, it is closed."""
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BlobStream(_Stream):
    """A whole blob."""

    def __init__(self, response: Response, size: int) -> None:
        super().__init__(response, size)
        self.size = size
        """Bytes of the blob."""


class RangeStream(_Stream):
    """Bytes [offset, offset + length) of a blob."""

    def __init__(self, response: Response, offset: int, length: int, total_size: int) -> None:
        super().__init__(response, length)
        self.offset = offset
        self.length = length
        self.total_size = total_size
        """Bytes of the whole blob, as the server says."""
