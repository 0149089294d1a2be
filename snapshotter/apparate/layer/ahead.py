"""Notices readers that go straight through a layer, and says how far ahead of them to fetch."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

_READERS: Final = 8
"""Sequential readers told apart in one layer."""
_SLACK_BYTES: Final = 256 * 1024
"""How far from where a reader is its next read may lie: the kernel's requests overtake one another, and small files are skipped."""
_UNSEEN_BYTES: Final = 1024 * 1024
"""How much of what lies between two reads, and was here, one read may count as read. What has arrived is in the page cache, so a
reader who goes straight on is seen only where something is missing; but one such read alone must not look like a long run."""


@dataclass(slots=True)
class _Reader:
    next: int
    run: int
    ahead_until: int
    used: int


class ReadAhead:
    """The readers of one layer. Thread-safe."""

    def __init__(self, sequential_bytes: int, ahead_bytes: int) -> None:
        """Fetch ahead after *sequential_bytes* in a row, as far again as the reader has come, at most *ahead_bytes*."""
        self._sequential_bytes = sequential_bytes
        self._ahead_bytes = ahead_bytes
        self._lock = threading.Lock()
        self._readers: list[_Reader] = []
        self._clock = 0
        self.sequential_bytes_read = 0
        """Bytes read by readers that counted as sequential."""

    def note(self, address: int, length: int, here_from: int | None = None) -> tuple[int, int] | None:
        """Take note of a read; return the image bytes [start, end) to fetch ahead now, if any.

        *here_from* is given for a read of what is missing: all from there to *address* is here. A reader who was in that
        stretch may have read on in the page cache, unseen.
        """
        with self._lock:
            self._clock += 1
            reader = self._reader(address, length, address if here_from is None else here_from)
            reader.used = self._clock
            end = address + length
            between = max(0, address - reader.next)
            if here_from is not None and here_from <= reader.next:
                reader.run += length + min(between, _UNSEEN_BYTES)
                read_bytes = length + between
            else:
                reader.run = max(0, reader.run + length - between)  # who leaves out as much as he reads gets nowhere
                read_bytes = length
            if end <= reader.next:
                return None
            reader.next = end
            if reader.run < self._sequential_bytes:
                return None
            self.sequential_bytes_read += read_bytes
            window = min(reader.run, self._ahead_bytes)
            start, target = max(reader.ahead_until, end), end + window
            if target - start < window // 2:
                return None
            reader.ahead_until = target
            return start, target

    def _reader(self, address: int, length: int, here_from: int) -> _Reader:
        for reader in self._readers:
            if address + length - reader.next >= -_SLACK_BYTES and here_from - reader.next <= _SLACK_BYTES:
                return reader
        if len(self._readers) >= _READERS:
            self._readers.remove(min(self._readers, key=lambda one: one.used))
        reader = _Reader(next=address, run=0, ahead_until=0, used=self._clock)
        self._readers.append(reader)
        return reader
