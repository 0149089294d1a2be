"""Bodies of blobs on their way from the network: counted, resumed where a connection broke, closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from apparate.errors import IntegrityError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apparate.oci.digest import Verifier

STEP_BYTES = 256 * 1024
"""How much is read from a connection at once."""
RESUMES_MAX = 8
"""How often a body is asked for again, not counting one more for each *BYTES_PER_RESUME* it brought."""
BYTES_PER_RESUME = 1024 * 1024


class Chunks(Protocol):
    """Where a stream's bytes come from."""

    def read1(self, size: int, /) -> bytes:
        """Return up to *size* bytes as they come, nothing at the end."""

    def close(self) -> None:
        """Release the connection."""


class Origin(Protocol):
    """Who sent a stream's bytes and can send the rest again."""

    def reopen(self, done: int, error: Unavailable) -> Chunks:
        """Return what follows the first *done* bytes, after *error* ended the last connection; raises as the first time."""

    def finished(self) -> None:
        """Note that the last byte came."""

    def distrust(self, reason: str) -> None:
        """Ask others first from now on."""


class Stream:
    """A body of known length. Not thread-safe; close it, or use it as a context manager.

    Reading raises Unavailable when the rest cannot be had before the deadline the stream was opened with; a connection that
    breaks earlier is replaced unseen, at the byte where it broke.
    """

    def __init__(self, chunks: Chunks, length: int, origin: Origin) -> None:
        self._chunks = chunks
        self._origin = origin
        self._done = 0
        self._left = length
        self._resumes = 0

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
        """Fill *buffer* from its start and return how many bytes came, fewer than it holds only at the end."""
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

    def distrust(self, reason: str) -> None:
        """Say that the bytes were wrong (*reason* for the log): while there are others, this host is not asked again soon."""
        self._origin.distrust(reason)

    def close(self) -> None:
        """Give the connection back; if the body was not read to its end, it is closed."""
        self._chunks.close()

    def _step(self, most: int) -> bytes:
        """Return at least one byte, at most *most* and what is left."""
        wanted = min(most, self._left, STEP_BYTES)
        while True:
            try:
                data = self._chunks.read1(wanted)
                if data:
                    break
                error = Unavailable(f"the body ended {self._left} bytes early")
            except Unavailable as broken:
                error = broken
            self._resume(error)
        self._done += len(data)
        self._left -= len(data)
        if not self._left:
            self._origin.finished()
        return data

    def _resume(self, error: Unavailable) -> None:
        self._chunks.close()
        self._resumes += 1
        if self._resumes > RESUMES_MAX + self._done // BYTES_PER_RESUME:
            raise error
        self._chunks = self._origin.reopen(self._done, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BlobStream(Stream):
    """A whole blob. With a *verifier* the step that brings the last byte raises IntegrityError when the digest differs."""

    def __init__(self, chunks: Chunks, size: int, origin: Origin, verifier: Verifier | None = None) -> None:
        super().__init__(chunks, size, origin)
        self.size = size
        """Bytes of the blob."""
        self._verifier = verifier
        if not size:
            self._verify()

    def _step(self, most: int) -> bytes:
        data = super()._step(most)
        if self._verifier is not None:
            self._verifier.update(data)
            if not self._left:
                self._verify()
        return data

    def _verify(self) -> None:
        if self._verifier is None:
            return
        try:
            self._verifier.finish()
        except IntegrityError as error:
            self.distrust(str(error))
            self.close()
            raise


class RangeStream(Stream):
    """Bytes [offset, offset + length) of a blob."""

    def __init__(self, chunks: Chunks, offset: int, length: int, total_size: int, origin: Origin) -> None:
        super().__init__(chunks, length, origin)
        self.offset = offset
        self.length = length
        self.total_size = total_size
        """Bytes of the whole blob, as the server says."""
