"""How much of the disk layers may fill. Who fetches asks for room and never waits for it; making room is `Upkeep`'s."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final

from apparate.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from apparate.layer.settings import LayerSettings

_FULL_PAUSE_S: Final = 5.0
"""After a write found the disk full, nothing is stored for this long: each try costs the reader time."""
_UNLIMITED: Final = 1 << 62


def free_bytes(root: Path) -> int:
    """Return the free space, for root, of the file system that holds *root*."""
    stat = os.statvfs(root)
    return stat.f_bfree * stat.f_frsize


class Budget:
    """Counts what is stored between two measurements. Thread-safe, never blocks."""

    def __init__(self, settings: LayerSettings, wake: Callable[[], None]) -> None:
        """*wake* is called when room should be made; it must not block."""
        self._settings = settings
        self._wake = wake
        self._lock = threading.Lock()
        self._used = 0
        self._free = _UNLIMITED
        self._full_until = 0.0

    def take(self, length: int) -> bool:
        """Whether *length* more bytes may be stored; they are counted if so."""
        settings = self._settings
        with self._lock:
            if time.monotonic() < self._full_until:
                return False
            within_budget = not settings.disk_budget_bytes or self._used + length <= settings.disk_budget_bytes
            within_free = self._free - length >= settings.disk_reserve_bytes
            allowed = within_budget and within_free
            if allowed:
                self._used += length
                self._free -= length
            crowded = self._surplus() > 0
        if crowded or not allowed:
            self._wake()
        return allowed

    def exhausted(self) -> None:
        """A write found the disk full: store nothing for a while, and make room."""
        with self._lock:
            self._full_until = time.monotonic() + _FULL_PAUSE_S
        self._wake()

    def measured(self, used: int, free: int) -> None:
        """Replace what was counted by what was measured."""
        with self._lock:
            self._used, self._free = used, free
        metrics.STORED_BYTES.set(used)

    def released(self, length: int) -> None:
        """Bytes were given back to the disk."""
        with self._lock:
            self._used -= length
            self._free += length
        metrics.EVICTED_BYTES.inc(length)

    def has_room(self, length: int) -> bool:
        """Whether *length* more bytes would leave everything else where it is."""
        settings = self._settings
        with self._lock:
            within = (
                not settings.disk_budget_bytes
                or self._used + length <= settings.disk_budget_bytes * settings.disk_low_water
            )
            return within and self._free - length >= 2 * settings.disk_reserve_bytes

    @property
    def used(self) -> int:
        """Bytes that layers occupy, as far as is known."""
        return self._used

    def to_free(self) -> int:
        """Return how many bytes should be given back now: 0 below the high water mark, else down to the low one."""
        with self._lock:
            return self._surplus()

    def _surplus(self) -> int:
        settings = self._settings
        surplus = 0
        if settings.disk_budget_bytes and self._used > settings.disk_budget_bytes * settings.disk_high_water:
            surplus = self._used - int(settings.disk_budget_bytes * settings.disk_low_water)
        # A full disk may be somebody else's doing: what we give back is bounded by what we have.
        short = settings.disk_reserve_bytes - self._free
        if short > 0 or time.monotonic() < self._full_until:
            surplus = max(surplus, min(self._used, max(short, 0) + settings.disk_reserve_bytes // 4))
        return surplus
