"""Parts that a service can be without for a while: what cannot be opened is tried again, and the rest goes on meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, Self

from apparate.errors import ApparateError
from apparate.telemetry import metrics
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from apparate.telemetry.health import Health

_log = get_logger("telemetry.parts")

PART_FAILED = "a part of the service cannot be opened, it is tried again"
PART_OPENED = "a part of the service is open at last"

RETRY_FIRST_S: Final = 0.5
RETRY_MOST_S: Final = 30.0
"""The pause is doubled from the first to this."""

Opener = Callable[[], AbstractContextManager[object]]
"""Makes what is served as long as the context is entered; raises ApparateError or OSError if it cannot be."""


def next_pause_s(pause_s: float) -> float:
    """Return how long to wait after an attempt that came after *pause_s*."""
    return min(2 * pause_s, RETRY_MOST_S)


def note_failure(part: str, error: Exception, pause_s: float) -> None:
    """Log and count an attempt that failed."""
    _log.error(PART_FAILED, part=part, error=str(error), retry_s=pause_s)
    metrics.PART_FAILURES.labels(part).inc()


class Part:
    """Something that is open inside the block as soon as it can be. Entering never fails."""

    def __init__(self, name: str, opener: Opener) -> None:
        self._name = name
        self._opener = opener
        self._opened = ExitStack()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._problem = ""

    def problem(self) -> str:
        """Return why it is not open, "" if it is."""
        return self._problem

    def __enter__(self) -> Self:
        if not self._open(RETRY_FIRST_S):
            self._thread = threading.Thread(target=self._insist, name=f"open-{self._name}", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self._opened.close()

    def _open(self, pause_s: float) -> bool:
        try:
            self._opened.enter_context(self._opener())
        except (ApparateError, OSError) as error:
            self._problem = str(error)
            note_failure(self._name, error, pause_s)
            return False
        self._problem = ""
        return True

    def _insist(self) -> None:
        pause_s = RETRY_FIRST_S
        while not self._closing.wait(pause_s):
            pause_s = next_pause_s(pause_s)
            if self._open(pause_s):
                _log.info(PART_OPENED, part=self._name)
                return


@contextmanager
def open_parts(openers: Mapping[str, Opener], health: Health, *, insist: bool) -> Iterator[None]:
    """Have what *openers* make open inside the block. With *insist* even if one cannot be opened yet; *health* says which.

    Raises:
        ApparateError, OSError: without *insist*, what the first that cannot be opened raises.
    """
    with ExitStack() as stack:
        for name, opener in openers.items():
            if insist:
                health.add(name, stack.enter_context(Part(name, opener)).problem)
            else:
                stack.enter_context(opener())
        yield
