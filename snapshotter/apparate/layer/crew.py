"""The threads that fetch what nobody waits for yet: a few, shared by all layers, the most urgent work first."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from apparate.errors import ApparateError
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from apparate.layer.model import Priority

_PAUSE_FIRST_S: Final = 0.25
_PAUSE_MOST_S: Final = 30.0

log = get_logger("layer.crew")


class Campaign(Protocol):
    """Work on one layer that is done in steps, by several threads at once. Thread-safe."""

    @property
    def priority(self) -> Priority:
        """How urgent it is."""
        ...

    @property
    def attempts(self) -> int:
        """After how many failures in a row it is given up."""
        ...

    def step(self) -> bool:
        """Do one request's worth; return whether there may be more.

        Raises:
            ApparateError: it failed; the step may be repeated.
        """
        ...

    def end(self, error: ApparateError | None) -> None:
        """It is over: there was no more, or it was given up for *error*. Called once, when no step is under way."""
        ...


@dataclass
class _Entry:
    campaign: Campaign
    served: int
    not_before: float = 0.0
    failures: int = 0
    steps: int = 0  # under way
    exhausted: bool = False
    error: ApparateError | None = None  # why it was given up

    @property
    def is_open(self) -> bool:
        return not self.exhausted and self.error is None


class Crew:
    """At most *size* threads, started when there is work. Thread-safe."""

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self._name = name
        self._changed = threading.Condition()  # everything below
        self._entries: list[_Entry] = []
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._served = 0
        self._closing = False

    def add(self, campaign: Campaign) -> None:
        """Work on *campaign* until it has ended."""
        with self._changed:
            if self._closing:
                return
            self._entries.append(_Entry(campaign, self._served))
            missing = self.size - self._idle
            while missing > 0 and len(self._threads) < self.size:
                name = f"{self._name}-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()
                missing -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Stop after the steps under way and wait for them; campaigns do not end."""
        with self._changed:
            self._closing = True
            self._entries = [entry for entry in self._entries if entry.steps]
            self._changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        try:
            while (entry := self._next()) is not None:
                self._step(entry)
                del entry  # it keeps its layer open, and the next one may be long in coming
        finally:  # should a bug end this thread, the next campaign gets another
            with self._changed:
                self._threads.remove(threading.current_thread())

    def _step(self, entry: _Entry) -> None:
        error: ApparateError | None = None
        more = False
        try:
            more = entry.campaign.step()
        except ApparateError as failure:
            # Its traceback holds this frame, which holds it: the layer would stay open until the collector comes by.
            error, more = failure.with_traceback(None), True
        except Exception as failure:
            log.exception("work on a layer failed unexpectedly")
            error = ApparateError(f"fetching ahead failed: {failure!r}")
        if self._done(entry, error, more=more):
            try:
                entry.campaign.end(entry.error)
            except Exception:
                log.exception("work on a layer failed unexpectedly")

    def _next(self) -> _Entry | None:
        """Wait for the most urgent campaign whose turn it is; None when closing."""
        with self._changed:
            while not self._closing:
                now = time.monotonic()
                ready = [entry for entry in self._entries if entry.is_open and entry.not_before <= now]
                if ready:
                    entry = min(ready, key=lambda one: (one.campaign.priority, one.served))
                    self._served += 1
                    entry.served = self._served
                    entry.steps += 1
                    return entry
                waits = [entry.not_before - now for entry in self._entries if entry.is_open]
                self._idle += 1
                self._changed.wait(min(waits, default=None))
                self._idle -= 1
            return None

    def _done(self, entry: _Entry, error: ApparateError | None, *, more: bool) -> bool:
        """Note how a step went; return whether the campaign is over."""
        with self._changed:
            entry.steps -= 1
            if error is None:
                entry.failures = 0
                entry.exhausted |= not more
            else:  # what this step gave back is work again, even if another step has found none meanwhile
                entry.exhausted = False
                entry.failures += 1
                entry.not_before = time.monotonic() + min(_PAUSE_FIRST_S * 2 ** min(entry.failures, 10), _PAUSE_MOST_S)
                if entry.failures >= entry.campaign.attempts or not error.temporary:
                    entry.error = error
            ended = not entry.is_open and not entry.steps
            if ended:
                self._entries.remove(entry)
        return ended
