"""Trying: one endpoint after the other, and again after a pause, for as long as the caller's deadline allows."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

import tenacity

from apparate.errors import ApparateError, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from apparate.registry.deadline import Deadline
    from apparate.registry.endpoint import Endpoint

T = TypeVar("T")

BACKOFF_BASE_S = 0.1
BACKOFF_MAX_S = 5.0


class Attempts:
    """Runs calls against endpoints in order until one gives a result; thread-safe."""

    def __init__(self, closing: threading.Event) -> None:
        self._closing = closing
        self._backoff = tenacity.wait_random_exponential(multiplier=BACKOFF_BASE_S, max=BACKOFF_MAX_S)

    def run(self, endpoints: Sequence[Endpoint], call: Callable[[Endpoint], T], deadline: Deadline) -> T:
        """Return the first result of *call* for one of *endpoints*.

        Temporary failures are tried again, pauses doubling with jitter up to 5 s and never shorter than a Retry-After;
        a pause that would pass *deadline* is not begun.

        Raises:
            ApparateError: what the last endpoint said, if that is final; else the last temporary failure.
        """

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after_s if isinstance(error, Unavailable) and error.retry_after_s else 0.0
            return max(self._backoff(state), asked)

        def stop(state: tenacity.RetryCallState) -> bool:
            return self._closing.is_set() or state.upcoming_sleep >= deadline.remaining()

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, ApparateError) and error.temporary),
            wait=wait,
            stop=stop,
            sleep=self._pause,
            reraise=True,
        )
        result: T = retrying(self._one_pass, endpoints, call)
        return result

    def _one_pass(self, endpoints: Sequence[Endpoint], call: Callable[[Endpoint], T]) -> T:
        temporary: ApparateError | None = None
        final: ApparateError = NotFound("no endpoint is configured for this")
        for endpoint in endpoints:
            try:
                return call(endpoint)
            except ApparateError as error:
                if error.temporary:
                    temporary = error
                else:
                    final = error
        raise temporary or final

    def _pause(self, seconds: float) -> None:
        self._closing.wait(seconds)
