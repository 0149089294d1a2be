"""Counts who is using a file, so that it is closed when nobody is: a closed descriptor's number may be another file's soon."""

from __future__ import annotations

import threading
from types import TracebackType

from apparate.errors import Unavailable


class Leases:
    """A context manager for each use, and a `close` that waits for all of them."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._idle = threading.Condition()
        self._users = 0
        self._closed = False

    def __enter__(self) -> None:
        with self._idle:
            if self._closed:
                raise Unavailable(f"{self._what} is closed")
            self._users += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._idle:
            self._users -= 1
            if self._closed and not self._users:
                self._idle.notify_all()

    def close(self) -> bool:
        """Refuse new uses and return when the last has ended; False if it was closed before."""
        with self._idle:
            if self._closed:
                return False
            self._closed = True
            self._idle.wait_for(lambda: not self._users)
            return True
