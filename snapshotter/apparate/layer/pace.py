"""How much to ask a registry for at once, from how it has been answering.

A request costs its latency, in which the line could have carried latency x rate bytes. Bytes that may be of no use are
worth fetching as long as they cost less than the request they may save: half of that product.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from apparate.layer.settings import LayerSettings

_SAMPLES: Final = 64
"""Requests remembered: enough to have met an idle line, few enough to follow a change within seconds."""
_STEADY_BYTES_MIN: Final = 64 * 1024
"""Less than this behind the first piece of a body says nothing of the rate: it lay in the socket's buffer already."""
_SHARE: Final = 0.5
_CLOCK_S: Final = 1e-6


class Pace:
    """Latency and rate of one registry. Thread-safe."""

    def __init__(self, settings: LayerSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._latencies: deque[float] = deque(maxlen=_SAMPLES)
        self._steady_rates: deque[float] = deque(maxlen=_SAMPLES)
        self._overall_rates: deque[float] = deque(maxlen=_SAMPLES)

    def observe(self, first_byte_s: float, first_bytes: int, rest_bytes: int, rest_s: float) -> None:
        """Take note of a request: when its body began, how much came at once, and how long the rest of it took."""
        with self._lock:
            self._latencies.append(first_byte_s)
            if rest_bytes >= _STEADY_BYTES_MIN and rest_s > 0:
                self._steady_rates.append(rest_bytes / rest_s)
            self._overall_rates.append((first_bytes + rest_bytes) / max(first_byte_s + rest_s, _CLOCK_S))

    @property
    def worth_bytes(self) -> int:
        """How many bytes are worth fetching to save one request; the lower limit before anything was measured.

        As long as all bodies were short the rate is underestimated, latency included: requests then grow until one tells.
        """
        with self._lock:
            rates = self._steady_rates or self._overall_rates
            if not rates:
                return self._settings.fetch_gap_min_bytes
            return max(self._settings.fetch_gap_min_bytes, int(_SHARE * min(self._latencies) * max(rates)))

    def window_bytes(self) -> int:
        """Return up to how many bytes of the blob a read's request is extended to."""
        return min(self.worth_bytes, self._settings.fetch_window_bytes)

    def gap_bytes(self, threads: int = 1) -> int:
        """Return how large a gap between two wanted parts is fetched along when *threads* share the line."""
        share = self.worth_bytes // max(1, threads)
        return max(
            min(self._settings.fetch_gap_min_bytes, self._settings.fetch_gap_bytes),
            min(share, self._settings.fetch_gap_bytes),
        )
