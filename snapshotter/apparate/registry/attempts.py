"""Trying: one endpoint after the other, and again after a pause, for as long as the caller's deadline allows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import tenacity

from apparate.errors import ApparateError, NotFound, Unavailable, Unsupported
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from apparate.registry.breakers import Breakers
    from apparate.registry.deadline import Deadline
    from apparate.registry.endpoint import Endpoint

T = TypeVar("T")

BACKOFF_BASE_S = 0.1
"""Upper end of the first pause; it is doubled each time and drawn at random from zero to there ("full jitter")."""
BACKOFF_MAX_S = 5.0
PASSES_WITHOUT_DEADLINE = 8
"""How often the endpoints are tried for a caller who set no deadline: about ten seconds of pauses."""

_log = get_logger("registry.attempts")


class Attempts:
    """Runs calls against endpoints in order until one gives a result; thread-safe."""

    def __init__(self, breakers: Breakers, closing: threading.Event) -> None:
        self._breakers = breakers
        self._closing = closing

    def run(
        self,
        endpoints: Sequence[Endpoint],
        call: Callable[[Endpoint], T],
        deadline: Deadline,
        *,
        confirms: bool = True,
    ) -> T:
        """Return the first result of *call* for one of *endpoints*.

        A result shows that its endpoint works; without *confirms* the caller tells the breakers so, later.

        Temporary failures are tried again after a pause that is never shorter than a Retry-After; a pause that would
        pass *deadline* is not begun.

        Raises:
            ApparateError: what the last endpoint said, if that is final; else the last temporary failure.
        """
        pacing = _Pacing(deadline, self._closing)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, ApparateError) and error.temporary),
            wait=pacing.wait_s,
            stop=pacing.is_over,
            sleep=self._pause,
            before_sleep=pacing.note,
            reraise=True,
        )
        try:
            result: T = retrying(self._one_pass, endpoints, call, deadline, confirms)
        except Unavailable as error:
            if not pacing.said or not deadline.expired:
                raise
            # The last attempt was cut short; the one before says what is wrong.
            raise Unavailable(f"{pacing.said}; tried again until the deadline passed") from error
        return result

    def _one_pass(
        self,
        endpoints: Sequence[Endpoint],
        call: Callable[[Endpoint], T],
        deadline: Deadline,
        confirms: bool,
    ) -> T:
        final: dict[Endpoint, ApparateError] = {}
        temporary: ApparateError | None = None
        for endpoint in self._breakers.order(endpoints):
            silence_s = self._breakers.silence_s(endpoint)
            if silence_s > 0:
                temporary = temporary or Unavailable(f"{endpoint.host} asked to wait {silence_s:.1f} s", silence_s)
                continue
            try:
                result = call(endpoint)
            except ApparateError as error:
                if not error.temporary:
                    self._breakers.answered(endpoint)
                    final[endpoint] = error
                    continue
                # What our own deadline cut short says nothing about the endpoint.
                if not deadline.expired:
                    self._note_failure(endpoint, error)
                if not (final and self._breakers.is_open(endpoint)):
                    temporary = error
            else:
                if confirms:
                    self._breakers.answered(endpoint)
                return result
        raise self._verdict(endpoints, final, temporary)

    def _note_failure(self, endpoint: Endpoint, error: ApparateError) -> None:
        if isinstance(error, Unavailable) and error.retry_after_s:
            self._breakers.silenced(endpoint, error.retry_after_s)
        else:
            self._breakers.failed(endpoint, error)

    def _verdict(
        self, endpoints: Sequence[Endpoint], final: dict[Endpoint, ApparateError], temporary: ApparateError | None
    ) -> ApparateError:
        """Return what a pass without a result means.

        A temporary failure is worth another pass, but not that of an endpoint known to be broken while another, which
        works, has refused: else a mirror that is gone for good would turn each "not found" into a long wait.
        """
        if temporary is not None:
            return temporary
        # Who sends only whole blobs has the blob, whatever the others say.
        whole_only = next((error for error in final.values() if isinstance(error, Unsupported)), None)
        if whole_only is not None:
            return whole_only
        for endpoint in reversed(endpoints):
            if endpoint in final:
                return final[endpoint]
        return NotFound("hosts.toml names no host that can do this")

    def _pause(self, seconds: float) -> None:
        self._closing.wait(seconds)


class _Pacing:
    """When to try again, for one call."""

    def __init__(self, deadline: Deadline, closing: threading.Event) -> None:
        self._deadline = deadline
        self._closing = closing
        self._backoff = tenacity.wait_random_exponential(multiplier=BACKOFF_BASE_S, max=BACKOFF_MAX_S)
        self.said = ""
        """What the last attempt that was followed by another ended with."""

    def wait_s(self, state: tenacity.RetryCallState) -> float:
        error = _error(state)
        asked = error.retry_after_s if isinstance(error, Unavailable) else None
        return self._backoff(state) + (asked or 0.0)

    def is_over(self, state: tenacity.RetryCallState) -> bool:
        if self._closing.is_set() or state.upcoming_sleep >= self._deadline.remaining():
            return True
        return self._deadline.remaining() == math.inf and state.attempt_number >= PASSES_WITHOUT_DEADLINE

    def note(self, state: tenacity.RetryCallState) -> None:
        self.said = str(_error(state))
        _log.debug(
            "registry is tried again", attempt=state.attempt_number, wait_s=state.upcoming_sleep, error=self.said
        )


def _error(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
