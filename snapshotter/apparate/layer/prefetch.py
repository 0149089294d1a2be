"""What is fetched before anyone asks: the recorded profile, the way of a sequential reader, the rest of a layer."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from apparate.errors import ApparateError, Unavailable
from apparate.layer.flights import BATCH_BYTES_MAX, Batch
from apparate.layer.model import Priority
from apparate.registry.deadline import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable

    from apparate.format.index import LayerIndex
    from apparate.layer.image import LayerImage

_PREFETCH_BATCH_BYTES: Final = 512 * 1024
"""A request of a prefetch asks for no more of the blob, however fast the line."""
_URGENT_SPAN_S: Final = 0.05
"""For so long the requests under way may occupy the line: a reader who comes between waits for what was asked before."""
_COMPLETION_SPAN_S: Final = 0.25
_PREFETCH_ATTEMPTS: Final = 5
_NEVER_GIVE_UP: Final = 1 << 30
_STEP_TIMEOUT_S: Final = 120.0


def rounds(index: LayerIndex, ranges: Iterable[tuple[int, int]], round_bytes: int) -> Iterator[list[int]]:
    """Yield the members that hold *ranges*, each once: in the given order, cut into rounds of about *round_bytes* of the blob.

    Within a round they are in blob order, so that neighbours are fetched together.
    """
    seen: set[int] = set()
    current: list[int] = []
    size = 0
    for address, length in ranges:
        for member in index.members_in(address, length):
            if member in seen:
                continue
            seen.add(member)
            current.append(member)
            size += index.member(member).length
            if size >= round_bytes:
                yield sorted(current)
                current, size = [], 0
    if current:
        yield sorted(current)


class MembersCampaign:
    """Fetches lists of members, one list after the other; what others fetch meanwhile is left to them."""

    def __init__(
        self,
        image: LayerImage,
        lists: Iterable[Sequence[int]],
        priority: Priority,
        *,
        threads: int,
        span_s: float,
        most_bytes: int,
        attempts: int,
        ended: Callable[[ApparateError | None], None] | None = None,
        present: Callable[[int], None] | None = None,
    ) -> None:
        """*present* is called with each listed member that is here already."""
        self.priority = priority
        self.attempts = attempts
        self._image = image
        self._lists = iter(lists)
        self._threads = threads
        self._span_s = span_s
        self._most_bytes = most_bytes
        self._ended = ended
        self._present = present
        self._lock = threading.Lock()  # _lists, _left
        self._left: list[int] = []

    def step(self) -> bool:
        """Fetch one batch."""
        image = self._image
        with self._lock:
            batch = None if image.is_closed else self._claim()
        if batch is None:
            return False
        try:
            image.fetcher.fetch(batch, self.priority, Deadline.after(_STEP_TIMEOUT_S))
        except ApparateError as error:
            image.note_error(error)
            with self._lock:
                self._left = sorted({*self._left, *(member for member in batch if member not in image.store)})
            raise
        if self.priority >= Priority.COMPLETION and not image.whole.is_running:
            self._require_stored(batch)
        return True

    def _require_stored(self, batch: Batch) -> None:
        """Fetching what cannot be kept, and nobody waits for, would go on for ever."""
        if any(member not in self._image.store for member in batch):
            self.attempts = 0
            raise Unavailable("the disk has no room for the layer")

    def _claim(self) -> Batch | None:
        while self._left or self._next_list():
            pace = self._image.fetcher.pace
            most_bytes = pace.batch_bytes(self._threads, self._span_s, self._most_bytes)
            batch = self._image.fetcher.flights.claim(self._left, pace.gap_bytes(self._threads), most_bytes)
            last = max(batch, default=self._left[-1])
            self._left = self._left[bisect_right(self._left, last) :]
            if batch:
                return batch
        return None

    def _next_list(self) -> bool:
        for members in self._lists:
            self._left = list(members)
            if self._present is not None:
                for member in self._left:
                    if member in self._image.store:
                        self._present(member)
            if self._left:
                return True
        return False

    def end(self, error: ApparateError | None) -> None:
        """Tell who started it."""
        if self._ended is not None:
            self._ended(error)


def profile_campaign(
    image: LayerImage, round_bytes: int, threads: int, present: Callable[[int], None]
) -> MembersCampaign:
    """Return the prefetch of an image's profile."""
    lists = rounds(image.index, image.index.prefetch, round_bytes)
    return MembersCampaign(
        image,
        lists,
        Priority.PREFETCH,
        threads=threads,
        span_s=_URGENT_SPAN_S,
        most_bytes=_PREFETCH_BATCH_BYTES,
        attempts=_PREFETCH_ATTEMPTS,
        present=present,
    )


def ahead_campaign(image: LayerImage, start: int, end: int, threads: int) -> MembersCampaign:
    """Return the fetching of the image bytes [start, end) ahead of a sequential reader."""
    members = list(image.index.members_in(start, end - start))
    return MembersCampaign(
        image,
        [members],
        Priority.AHEAD,
        threads=threads,
        span_s=_URGENT_SPAN_S,
        most_bytes=_PREFETCH_BATCH_BYTES,
        attempts=1,
    )


def completion_campaign(
    image: LayerImage, priority: Priority, threads: int, ended: Callable[[ApparateError | None], None]
) -> MembersCampaign:
    """Return the fetching of everything that is missing."""
    return MembersCampaign(
        image,
        [range(image.index.member_count)],
        priority,
        threads=threads,
        span_s=_COMPLETION_SPAN_S,
        most_bytes=BATCH_BYTES_MAX,
        attempts=_NEVER_GIVE_UP,
        ended=ended,
    )
