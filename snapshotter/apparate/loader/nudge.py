"""Keeps one lost request from holding up the others.

pyfuse3 waits until the FUSE descriptor is readable and then reads from it, without O_NONBLOCK, in the one thread that serves
everything. If the process whose request made it readable is killed in between, the kernel takes the request back and the read
waits for the next one; finished reads of others are not answered meanwhile. So as long as reads are waiting in threads, the loop
is asked for a sign of life, and when none comes a signal makes the system call return.
"""

from __future__ import annotations

import signal
import threading
from typing import Final

import trio

SIGNAL: Final = signal.SIGUSR2
_INTERVAL_S: Final = 0.25


class Nudger:
    """Watches the loop of the thread that made it while there is something to watch for: a loop has *interval_s* to answer."""

    def __init__(self, interval_s: float = _INTERVAL_S) -> None:
        self._thread_id = threading.get_ident()
        self._token = trio.lowlevel.current_trio_token()
        self._wanted = threading.Event()
        self._interval_s = interval_s
        self._closed = False
        self.beats = 0  # signs of life of the loop so far
        self._waiting = 0
        signal.signal(SIGNAL, _ignore)  # a handler, unlike SIG_IGN, makes system calls return
        threading.Thread(target=self._watch, name="nudge", daemon=True).start()

    def __enter__(self) -> None:
        """Watch until the matching exit; entered by each waiting read. From the loop's thread alone."""
        self._waiting += 1
        self._wanted.set()

    def __exit__(self, *_: object) -> None:
        self._waiting -= 1
        if not self._waiting:
            self._wanted.clear()

    def close(self) -> None:
        """End the watching thread."""
        self._closed = True
        self._wanted.set()

    def _watch(self) -> None:
        pause = threading.Event()
        while True:
            self._wanted.wait()
            if self._closed:
                return
            seen = self.beats
            try:
                self._token.run_sync_soon(self._beat, idempotent=True)
            except trio.RunFinishedError:
                return
            pause.wait(self._interval_s)
            if self.beats == seen and not self._closed:
                signal.pthread_kill(self._thread_id, SIGNAL)

    def _beat(self) -> None:
        self.beats += 1


def _ignore(_number: int, _frame: object) -> None:
    """Do nothing: the point is that a system call was interrupted."""
