"""How long to go on asking a registry that does not give what it should."""

from __future__ import annotations

import threading
import time
from typing import Final

from apparate.errors import ApparateError, FormatError, Unavailable
from apparate.registry.deadline import Deadline

_PAUSE_FIRST_S: Final = 0.05
_PAUSE_MOST_S: Final = 2.0
_REFUSAL_GRACE_S: Final = 5.0
"""A registry that says no is asked this long all the same: a restarting one, or one whose token is being renewed, does so."""


class Patience:
    """Waits between attempts, longer each time, until there is no point in another. For one thread."""

    def __init__(self, seconds: float, closing: threading.Event, *, damaged_attempts: int | None = None) -> None:
        """Give up after *seconds*; if *damaged_attempts* is set, also after so many answers that were not what was promised."""
        self.deadline = Deadline.after(seconds)
        self._seconds = seconds
        self._closing = closing
        self._damaged_left = damaged_attempts
        self._begun_s = time.monotonic()
        self._pause_s = _PAUSE_FIRST_S

    def renew(self) -> None:
        """There is progress: begin to wait anew."""
        self.deadline = Deadline.after(self._seconds)

    def wait(self, error: ApparateError) -> None:
        """Return when it is time for another attempt after *error*; raise it if there is none."""
        left_s = self.deadline.remaining()
        if isinstance(error, FormatError):
            if self._damaged_left is not None:
                self._damaged_left -= 1
                left_s = left_s if self._damaged_left > 0 else 0.0
        elif not error.temporary:
            left_s = min(left_s, self._begun_s + _REFUSAL_GRACE_S - time.monotonic())
        asked_s = error.retry_after_s if isinstance(error, Unavailable) else None
        pause_s = max(self._pause_s, asked_s or 0.0)
        if left_s <= pause_s:
            try:
                raise error
            finally:  # else this frame holds the error that holds this frame, and those of its callers
                del error
        self._pause_s = min(self._pause_s * 2, _PAUSE_MOST_S)
        if self._closing.wait(pause_s):
            raise Unavailable("the loader is stopping") from error
