"""Threads that take over a piece of work at once, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from apparate.telemetry.logging import get_logger

log = get_logger("layer.hands")

LENT_WORK_FAILED = "work that was handed over failed unexpectedly"


class Hands:
    """At most *size* threads, started when they are needed. Thread-safe."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()  # everything below
        self._busy = 0
        self._threads: list[threading.Thread] = []
        self._closing = False

    def lend(self, work: Callable[[], object]) -> bool:
        """Do *work* in a thread of its own, beginning now; return False, with nothing done, if none is free.

        *work* deals with its own errors: nobody waits for what it returns or raises.
        """
        with self._lock:
            if self._closing or self._busy >= self._size:
                return False
            self._busy += 1
            if self._busy > len(self._threads):
                name = f"{self._name}-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._serve, name=name, daemon=True))
                self._threads[-1].start()
        self._work.put(work)
        return True

    def close(self) -> None:
        """Take nothing more, finish what was taken. Closing twice is success."""
        with self._lock:
            self._closing = True
            threads, self._threads = self._threads, []
        for _ in threads:
            self._work.put(None)
        for thread in threads:
            thread.join()

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception:
                log.exception(LENT_WORK_FAILED)
            finally:
                del work  # it keeps its layer open, and the next one may be long in coming
                with self._lock:
                    self._busy -= 1
