"""How much to ask a registry for at once, from how it has been answering.

A request costs its latency, in which the line could have carried latency x rate bytes. Bytes that may be of no use are
worth fetching as long as they cost less than the request they may save: half of that product.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from apparate.layer.settings import LayerSettings

_SHARE: Final = 0.5
_GUESS_SHARE: Final = 2.0
"""For a reader of whom nothing is known, who asks, waits and asks again. With windows of W he sees the rate W / (L + W / R) of a line
of rate R and latency L, so W becomes 2 W / (1 + W / (L R)): it grows until the bytes of a request take as long as its latency, and
stays there."""
_LATENCIES: Final = 64
"""Requests remembered: enough to have met an idle line, few enough to follow a change within seconds."""
_SPAN_S: Final = 0.2
"""Bytes are counted over spans of this length. A single body tells nothing: most of it may have lain in socket buffers."""
_SPANS: Final = 150
BATCH_BYTES_MIN: Final = 256 * 1024
"""No batch is planned smaller: the request itself would cost more than the wait that it saves."""


class Pace:
    """Latency and rate of one registry, over all connections together. Thread-safe."""

    def __init__(self, settings: LayerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._spans: deque[int] = deque(maxlen=_SPANS)  # bytes of each finished span in which something came
        self._span_end_s = 0.0
        self._span_bytes = 0

    def answered(self, first_byte_s: float) -> None:
        """Take note of how long it took until the first byte of an answer came."""
        with self._lock:
            self._latencies.append(first_byte_s)

    def received(self, count: int) -> None:
        """Take note of bytes that have just come, on any connection."""
        now_s = self._clock()
        with self._lock:
            if now_s >= self._span_end_s:
                if self._span_bytes:
                    self._spans.append(self._span_bytes)
                self._span_end_s, self._span_bytes = now_s + _SPAN_S, 0
            self._span_bytes += count

    @property
    def rate(self) -> float:
        """Bytes per second in the best span remembered; less than the line carries as long as it was never busy."""
        with self._lock:
            return max(self._spans, default=0) / _SPAN_S

    @property
    def worth_bytes(self) -> int:
        """How many bytes are worth fetching to save one request; the lower limit before anything was measured."""
        return max(self._settings.fetch_gap_min_bytes, self._worth(_SHARE))

    def _worth(self, share: float) -> int:
        with self._lock:
            latency_s = min(self._latencies, default=0.0)
        return int(share * latency_s * self.rate)

    def batch_bytes(self, threads: int, span_s: float, most_bytes: int) -> int:
        """Return how much one of *threads* asks for at once, so that a reader who comes between waits about *span_s*."""
        return min(max(int(self.rate * span_s / threads), BATCH_BYTES_MIN), most_bytes)

    def window_bytes(self, *, guess: bool) -> int:
        """Return up to how many bytes of the blob a read's request is extended to.

        With *guess* nothing better is known of what will be wanted next than that it is near.
        """
        if not guess:
            return min(self.worth_bytes, self._settings.fetch_window_bytes)
        least = self._settings.fetch_window_min_bytes
        return min(max(self._worth(_GUESS_SHARE), least), self._settings.fetch_window_bytes)

    def gap_bytes(self, threads: int = 1) -> int:
        """Return how large a gap between two wanted parts is fetched along when *threads* share the line."""
        share = max(self.worth_bytes // threads, self._settings.fetch_gap_min_bytes)
        return min(share, self._settings.fetch_gap_bytes)
