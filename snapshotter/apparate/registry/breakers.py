"""Circuit breakers: an endpoint that keeps failing is asked last, and is asked again now and then."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from apparate.registry.endpoint import Endpoint

FAILURES_TO_OPEN = 3
"""Failures in a row after which an endpoint is taken for broken."""
OPEN_S = 2.0
"""How long it is then passed over at first; doubled with each probe that fails."""
OPEN_S_MAX = 30.0
DISTRUST_S = 30.0
"""How long an endpoint is passed over that served wrong bytes."""
PROBE_S = 60.0
"""A probe that has not come back after so long no longer keeps others from probing."""
EVENT_OPENED = "registry endpoint keeps failing, others are asked first"
EVENT_CLOSED = "registry endpoint answers again"

Key = tuple[str, str, str]
_log = get_logger("registry.breakers")


@dataclass(slots=True)
class _State:
    failures: int = 0
    open_until: float = 0.0
    open_s: float = OPEN_S
    probe_until: float = 0.0
    """While a probe is under way: when it is given up for lost."""
    wait_until: float = 0.0
    """The endpoint asked for silence until then (Retry-After)."""
    distrust_until: float = 0.0
    """It served wrong bytes; right ones in between, of other content, prove nothing."""


class Breakers:
    """One breaker per endpoint; thread-safe.

    closed: asked in its place. open: asked last, so that a registry with a single endpoint is never cut off, only one with
    an alternative. half-open, when its time has passed: one caller asks it in its place, and the answer closes or opens it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._states: dict[Key, _State] = {}

    def order(self, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
        """Return *endpoints*, those with an open breaker last."""
        now = self._clock()
        with self._lock:
            first: list[Endpoint] = []
            last: list[Endpoint] = []
            for endpoint in endpoints:
                (first if self._admits(self._states.get(_key(endpoint)), now) else last).append(endpoint)
        return first + last

    def is_open(self, endpoint: Endpoint) -> bool:
        """Whether *endpoint* is known to be broken."""
        with self._lock:
            state = self._states.get(_key(endpoint))
            return state is not None and state.failures >= FAILURES_TO_OPEN

    def silence_s(self, endpoint: Endpoint) -> float:
        """Return for how many seconds *endpoint* still asks not to be asked, 0 when it does not."""
        with self._lock:
            state = self._states.get(_key(endpoint))
            return max(0.0, state.wait_until - self._clock()) if state is not None else 0.0

    def answered(self, endpoint: Endpoint) -> None:
        """Note that *endpoint* works: it gave a result, or a final refusal."""
        with self._lock:
            state = self._states.get(_key(endpoint))
            if state is not None and state.distrust_until > self._clock():
                return
            self._states.pop(_key(endpoint), None)
        if state is not None and state.failures >= FAILURES_TO_OPEN:
            _log.info(EVENT_CLOSED, host=endpoint.host)

    def failed(self, endpoint: Endpoint, error: Exception) -> None:
        """Note a temporary failure."""
        now = self._clock()
        with self._lock:
            state = self._states.setdefault(_key(endpoint), _State())
            state.failures += 1
            state.probe_until = 0.0
            opens = state.failures == FAILURES_TO_OPEN
            if state.failures >= FAILURES_TO_OPEN and state.open_until <= now:
                state.open_until = now + state.open_s
                state.open_s = min(state.open_s * 2, OPEN_S_MAX)
        if opens:
            _log.warning(EVENT_OPENED, host=endpoint.host, error=str(error))

    def silenced(self, endpoint: Endpoint, seconds: float) -> None:
        """Note that *endpoint* asked to be left alone for *seconds*: it is overloaded, not broken."""
        with self._lock:
            state = self._states.setdefault(_key(endpoint), _State())
            state.wait_until = max(state.wait_until, self._clock() + seconds)
            state.probe_until = 0.0

    def distrusted(self, endpoint: Endpoint, reason: str) -> None:
        """Note that *endpoint* served wrong bytes: open its breaker at once, and let nothing close it for a while."""
        now = self._clock()
        with self._lock:
            state = self._states.setdefault(_key(endpoint), _State())
            known = state.distrust_until > now
            state.failures = max(state.failures, FAILURES_TO_OPEN)
            state.open_until = state.distrust_until = now + DISTRUST_S
            state.probe_until = 0.0
        if not known:
            _log.warning(EVENT_OPENED, host=endpoint.host, error=reason)

    @staticmethod
    def _admits(state: _State | None, now: float) -> bool:
        if state is None or state.failures < FAILURES_TO_OPEN:
            return True
        if state.open_until > now or state.probe_until > now:
            return False
        state.probe_until = now + PROBE_S
        return True


def _key(endpoint: Endpoint) -> Key:
    return endpoint.scheme, endpoint.host, endpoint.path
