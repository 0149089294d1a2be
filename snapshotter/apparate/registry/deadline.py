"""A point in time after which an answer is of no use."""

from __future__ import annotations

import math
import time
from typing import Self

from apparate.errors import Unavailable


class Deadline:
    """The monotonic moment by which a call has to be over; immutable, so it may be shared by threads."""

    __slots__ = ("_at",)

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    @classmethod
    def after(cls, seconds: float) -> Self:
        """Return the deadline *seconds* from now."""
        return cls(seconds)

    @classmethod
    def never(cls) -> Self:
        """Return a deadline that does not come; single steps of the transport stay bounded all the same."""
        return cls(math.inf)

    @property
    def expired(self) -> bool:
        """Whether the moment has passed."""
        return self.remaining() <= 0.0

    def remaining(self) -> float:
        """Return the seconds left: negative when it has passed, infinity when there is none."""
        return self._at - time.monotonic()

    def capped(self, seconds: float) -> Deadline:
        """Return the earlier of this deadline and *seconds* from now."""
        return self if self.remaining() <= seconds else Deadline(seconds)

    def check(self, what: str = "request") -> None:
        """Raise Unavailable when the moment has passed; *what* names what was being waited for."""
        if self.expired:
            raise Unavailable(f"{what}: the deadline passed")

    def __repr__(self) -> str:
        return f"Deadline({self.remaining():.3f} s left)"
