"""Work that nobody waits for: deletion, unmounting, measuring. One thread, retries, no duplicates."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Hashable

from apparate.errors import ApparateError, FailedPrecondition
from apparate.telemetry.logging import get_logger

_log = get_logger("snapshot.janitor")

_RETRY_FIRST_S = 1.0
_RETRY_MAX_S = 60.0
_WARN_AT_ATTEMPT = 5


class _Task:
    __slots__ = ("action", "attempts", "due_s", "key")

    def __init__(self, key: Hashable, action: Callable[[], object], due_s: float) -> None:
        self.key = key
        self.action = action
        self.due_s = due_s
        self.attempts = 0


class Janitor:
    """Runs each task once when it is due, again later if it fails for a reason that can pass.

    A task is known by its key: submitting the key again replaces what was waiting under it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, _Task] = {}
        self._queue: list[tuple[float, int, _Task]] = []
        self._order = itertools.count()
        self._running: _Task | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="snapshot-janitor", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """Finish the task in hand and stop; what waits is found again at the next start."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def submit(
        self, key: Hashable, action: Callable[[], object], delay_s: float = 0.0, *, keep_waiting: bool = False
    ) -> None:
        """Run *action* after *delay_s*, in place of what waits under *key*; with *keep_waiting* only if nothing does."""
        with self._changed:
            if keep_waiting and key in self._waiting:
                return
            self._push(_Task(key, action, self._clock() + delay_s))

    def cancel(self, key: Hashable) -> None:
        """Forget what waits under *key*."""
        with self._changed:
            self._waiting.pop(key, None)

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything due by now has been tried once; return whether that was in time."""
        with self._changed:
            until = self._clock()
            return self._changed.wait_for(lambda: self._stopped or not self._untried(until), timeout_s)

    def _untried(self, until: float) -> bool:
        if self._running is not None and self._running.attempts == 0:
            return True
        return any(task.attempts == 0 and task.due_s <= until for task in self._waiting.values())

    def _push(self, task: _Task) -> None:
        self._waiting[task.key] = task
        heapq.heappush(self._queue, (task.due_s, next(self._order), task))
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                task = self._next()
                if task is None:
                    return
                self._running = task
            again = self._run(task)
            with self._changed:
                task.attempts += 1
                self._running = None
                if again and task.key not in self._waiting:
                    task.due_s = self._clock() + min(_RETRY_FIRST_S * 2 ** (task.attempts - 1), _RETRY_MAX_S)
                    self._push(task)
                self._changed.notify_all()

    def _next(self) -> _Task | None:
        """Return the next due task, None when stopped. Replaced and cancelled ones are dropped on the way."""
        while not self._stopped:
            while self._queue and self._waiting.get(self._queue[0][2].key) is not self._queue[0][2]:
                heapq.heappop(self._queue)
            if not self._queue:
                self._changed.wait()
                continue
            remaining_s = self._queue[0][0] - self._clock()
            if remaining_s > 0:
                self._changed.wait(remaining_s)
                continue
            task = heapq.heappop(self._queue)[2]
            del self._waiting[task.key]
            return task
        return None

    def _run(self, task: _Task) -> bool:
        """Run *task* and return whether it is to be tried again."""
        try:
            task.action()
        except ApparateError as error:
            again = error.temporary or isinstance(error, FailedPrecondition)
            note = _log.warning if not again or task.attempts + 1 == _WARN_AT_ATTEMPT else _log.debug
            note("background work failed", task=str(task.key), error=str(error), attempt=task.attempts + 1)
            return again
        except Exception as error:  # noqa: BLE001 - one bad task must not end the thread
            _log.error("background work failed unexpectedly", task=str(task.key), error=repr(error), exc_info=error)
        return False
