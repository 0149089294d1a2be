"""Which members of a layer are on their way, and which to ask for together.

A member is here, in flight, or free. A batch consists of free members that follow one another in the blob, so no byte is
asked for twice: one that is here or in flight ends a batch, it is never fetched along as part of a gap.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from apparate.errors import ApparateError, Unavailable

if TYPE_CHECKING:
    from apparate.format.index import LayerIndex
    from apparate.layer.store import LayerStore
    from apparate.registry.deadline import Deadline

BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
"""One request asks for no more of the blob, unless a single member is larger: it is held in memory while it arrives."""


class Flight:
    """One member on its way. `raw` is its inflated content once it has landed, `error` why it did not arrive."""

    __slots__ = ("_closed", "error", "raw")

    def __init__(self) -> None:
        self._closed = threading.Lock()  # held until it lands: an Event is twenty times as large
        self._closed.acquire()
        self.raw: bytes | None = None
        self.error: ApparateError | None = None

    def land(self, raw: bytes | None, error: ApparateError | None) -> None:
        """End the flight; once."""
        self.raw, self.error = raw, error
        self._closed.release()

    @property
    def has_landed(self) -> bool:
        """Whether it is over."""
        return not self._closed.locked()

    def wait(self, deadline: Deadline) -> None:
        """Return when it has landed.

        Raises:
            Unavailable: it has not before the deadline.
        """
        if not self._closed.acquire(timeout=max(0.0, min(deadline.remaining(), threading.TIMEOUT_MAX))):
            raise Unavailable("the registry did not give the data in time")
        self._closed.release()


Batch = dict[int, Flight]
"""Claimed members, consecutive, ascending."""


class FlightTable:
    """The flights of one layer. Thread-safe."""

    def __init__(self, index: LayerIndex, store: LayerStore) -> None:
        self._index = index
        self._store = store
        self._lock = threading.Lock()  # _flights; may be held when the store's lock is taken, never the other way round
        self._flights: Batch = {}

    def __len__(self) -> int:
        return len(self._flights)

    def claim_or_join(self, wanted: Sequence[int], gap: int, window: int) -> tuple[Batch, Batch]:
        """Claim the first free of *wanted* with what is worth fetching with it; if none is free, return the flights to wait for.

        The batch goes on across gaps of at most *gap* bytes to further wanted members, and up to *window* bytes in any case.
        """
        with self._lock:
            missing = [member for member in wanted if member not in self._store]
            free = [member for member in missing if member not in self._flights]
            if free:
                return self._claim(self._extended(free, gap, window, BATCH_BYTES_MAX)), {}
            return {}, {member: self._flights[member] for member in missing}

    def claim(self, wanted: Sequence[int], gap: int, most_bytes: int) -> Batch:
        """Claim the first free of *wanted*, ascending, with those that follow across gaps, *most_bytes* at most; {} if none is."""
        with self._lock:
            free = [member for member in wanted if self._is_free(member)]
            return self._claim(self._extended(free, gap, 0, most_bytes)) if free else {}

    def claim_all(self) -> Batch:
        """Claim every free member; they need not be consecutive."""
        with self._lock:
            return self._claim([member for member in range(self._index.member_count) if self._is_free(member)])

    def _claim(self, members: Sequence[int]) -> Batch:
        batch = {member: Flight() for member in members}
        self._flights.update(batch)
        return batch

    def _is_free(self, member: int) -> bool:
        return member not in self._store and member not in self._flights

    def _extended(self, free: Sequence[int], gap: int, window: int, most_bytes: int) -> list[int]:
        wanted, last_wanted = set(free), free[-1]
        begin, length, *_ = self._index.member(free[0])
        batch, kept, useful_end = [free[0]], 1, begin + length
        for member in range(free[0] + 1, self._index.member_count):
            if not self._is_free(member):
                break
            offset, length, *_ = self._index.member(member)
            end = offset + length
            fits_window = end - begin <= window
            useful = member in wanted or fits_window
            if end - begin > most_bytes or (not useful and (member > last_wanted or end - useful_end > gap)):
                break
            batch.append(member)
            if useful:
                kept, useful_end = len(batch), end
        return batch[:kept]

    def land(self, member: int, flight: Flight, raw: bytes | None, error: ApparateError | None = None) -> None:
        """End a claimed flight. If it arrived it is stored by now, so that it is never free in between."""
        with self._lock:
            del self._flights[member]
        flight.land(raw, error and error.anew())

    def abandon(self, batch: Batch, error: ApparateError) -> None:
        """End those of the claimed *batch* that have not landed."""
        with self._lock:
            rest = [flight for member, flight in batch.items() if self._flights.get(member) is flight]
            for member in [member for member, flight in batch.items() if self._flights.get(member) is flight]:
                del self._flights[member]
        kept = error.anew()
        for flight in rest:
            flight.land(None, kept)
