"""Getting missing members of one layer: one flight per member whoever asks, neighbours in one ranged request.

A flight is claimed before its request is made and lands when its member is verified, stored and announced, or has failed.
No byte is asked for twice: a member that is here or in flight ends a batch, it is never fetched along as part of a gap.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from apparate.errors import ApparateError, Unavailable
from apparate.format.inflate import inflate_member

if TYPE_CHECKING:
    from apparate.format.index import LayerIndex
    from apparate.layer.pace import Pace
    from apparate.layer.source import BlobSource, Body
    from apparate.layer.store import LayerStore
    from apparate.registry.deadline import Deadline

BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
"""One request asks for no more of the blob: it is held in memory while it arrives."""


class Flight:
    """One member on its way. `raw` is its inflated content once it landed, `error` why it did not."""

    __slots__ = ("_landed", "error", "raw")

    def __init__(self) -> None:
        self._landed = threading.Event()
        self.raw: bytes | None = None
        self.error: ApparateError | None = None

    def land(self, raw: bytes | None, error: ApparateError | None) -> None:
        """End the flight."""
        self.raw, self.error = raw, error
        self._landed.set()

    def wait(self, deadline: Deadline) -> None:
        """Return when it has landed.

        Raises:
            Unavailable: it has not before the deadline.
        """
        if not self._landed.wait(max(0.0, min(deadline.remaining(), threading.TIMEOUT_MAX))):
            raise Unavailable("the registry did not give the data in time")


class Announcer:
    """What the fetcher tells its image."""

    def landed(self, member: int, raw: bytes, compressed_bytes: int) -> None:
        """The verified *member* has arrived, stored or not."""
        raise NotImplementedError


class Fetcher:
    """Fetches the members of one layer. Thread-safe."""

    def __init__(
        self, index: LayerIndex, store: LayerStore, source: BlobSource, pace: Pace, announcer: Announcer
    ) -> None:
        self._index = index
        self._store = store
        self._source = source
        self._pace = pace
        self._announcer = announcer
        self._lock = threading.Lock()  # _flights; taken before the store's lock, never after
        self._flights: dict[int, Flight] = {}

    @property
    def in_flight(self) -> int:
        """How many members are being fetched now."""
        return len(self._flights)

    def obtain(self, members: Sequence[int], deadline: Deadline, attempt_timeout_s: float) -> dict[int, bytes]:
        """Return when each of *members* is stored or among the returned inflated contents; fetch in this thread what is missing.

        Raises:
            IntegrityError, Unavailable, RegistryError, NotFound, Unsupported: one of them could not be had this time. Others may
                have been stored.
        """
        held: dict[int, bytes] = {}
        while True:
            batch, joined = self._claim_foreground([member for member in members if member not in held])
            if batch:
                held.update(self._fetch(batch, deadline.capped(attempt_timeout_s)))
            elif joined:
                self._join(joined, held, deadline)
            else:
                return held

    def _join(self, joined: dict[int, Flight], held: dict[int, bytes], deadline: Deadline) -> None:
        for member, flight in joined.items():
            flight.wait(deadline)
            if flight.raw is not None:
                held[member] = flight.raw
            elif flight.error is not None:
                raise flight.error

    # --- planning ---

    def _claim_foreground(self, wanted: Sequence[int]) -> tuple[dict[int, Flight], dict[int, Flight]]:
        """Claim the first missing of *wanted* and what is worth fetching with it; else return the flights to wait for."""
        window, gap = self._pace.window_bytes(), self._pace.gap_bytes()
        with self._lock:
            missing = [member for member in wanted if member not in self._store]
            free = [member for member in missing if member not in self._flights]
            if not free:
                return {}, {member: self._flights[member] for member in missing}
            return self._claim(self._extend(free, gap, window)), {}

    def claim(self, wanted: Sequence[int], gap: int, most_bytes: int) -> dict[int, Flight]:
        """Claim for `fetch` the first missing of *wanted*, ascending, with those that follow within *gap* and *most_bytes*."""
        with self._lock:
            free = [member for member in wanted if self._is_free(member)]
            return self._claim(self._extend(free, gap, 0, most_bytes)) if free else {}

    def _claim(self, members: Sequence[int]) -> dict[int, Flight]:
        batch = {member: Flight() for member in members}
        self._flights.update(batch)
        return batch

    def _is_free(self, member: int) -> bool:
        return member not in self._store and member not in self._flights

    def _extend(self, free: Sequence[int], gap: int, window: int, most_bytes: int = BATCH_BYTES_MAX) -> list[int]:
        """Return consecutive members from free[0] on: wanted ones across gaps, then what fits the window; none here or in flight."""
        wanted = set(free)
        first = self._index.member(free[0])
        batch, kept, useful_end = [free[0]], 1, first.offset + first.length
        for member in range(free[0] + 1, self._index.member_count):
            if not self._is_free(member):
                break
            ref = self._index.member(member)
            size = ref.offset + ref.length - first.offset
            is_wanted = member in wanted
            if size > most_bytes or (not is_wanted and size > window and ref.offset + ref.length - useful_end > gap):
                break
            batch.append(member)
            if is_wanted or size <= window:
                kept, useful_end = len(batch), ref.offset + ref.length
            if member > free[-1] and size > window:
                break
        return batch[:kept]

    # --- fetching ---

    def fetch(self, batch: dict[int, Flight], deadline: Deadline) -> None:
        """Fetch members claimed by `claim`.

        Raises:
            ApparateError: as `obtain`; every flight has landed all the same.
        """
        self._fetch(batch, deadline)

    def _fetch(self, batch: dict[int, Flight], deadline: Deadline) -> dict[int, bytes]:
        """Fetch the claimed *batch*, consecutive members, and land each; return what arrived, inflated."""
        arrived: dict[int, bytes] = {}
        failure: ApparateError | None = None
        try:
            left = [member for member in batch if not self._salvage(member, batch[member], arrived)]
            for run in _consecutive(left):
                failure = self._fetch_run(run, batch, arrived, deadline) or failure
        except ApparateError as error:
            failure = error
        finally:
            self._land_rest(batch, failure)
        if failure is not None:
            raise failure
        return arrived

    def _land_rest(self, batch: dict[int, Flight], failure: ApparateError | None) -> None:
        with self._lock:
            rest = [
                self._flights.pop(member) for member, flight in batch.items() if self._flights.get(member) is flight
            ]
        for flight in rest:
            flight.land(None, failure or Unavailable("fetching was interrupted"))

    def _salvage(self, member: int, flight: Flight, arrived: dict[int, bytes]) -> bool:
        raw = self._store.salvage(member)
        if raw is None:
            return False
        self._land(member, flight, raw, 0)
        arrived[member] = raw
        return True

    def _fetch_run(
        self, run: Sequence[int], batch: dict[int, Flight], arrived: dict[int, bytes], deadline: Deadline
    ) -> ApparateError | None:
        """Fetch consecutive members by one request; return the first error of a single member, raise those of the request."""
        first, last = self._index.member(run[0]), self._index.member(run[-1])
        length = last.offset + last.length - first.offset
        failure: ApparateError | None = None
        begun = time.monotonic()
        with self._source.range(first.offset, length, deadline=deadline) as body:
            received = _Received(body, first.offset, length, begun)
            for member in run:
                ref = self._index.member(member)
                data = received.take(ref.offset - first.offset, ref.length)
                try:
                    raw = self._inflate(member, data)
                except ApparateError as error:
                    failure = failure or error
                    self._fail(member, batch[member], error)
                    continue
                self._land(member, batch[member], raw, ref.length)
                arrived[member] = raw
        self._pace.observe(received.first_byte_s, received.count, received.body_s)
        return failure

    def _inflate(self, member: int, data: memoryview) -> bytes:
        ref = self._index.member(member)
        raw = inflate_member(self._index.compression, data, ref.raw_length, ref.need_bytes)
        self._index.verify(member, raw)
        return raw

    def _land(self, member: int, flight: Flight, raw: bytes, compressed_bytes: int) -> None:
        self._store.put(member, raw)
        with self._lock:
            self._flights.pop(member, None)
        flight.land(raw, None)
        self._announcer.landed(member, raw, compressed_bytes)

    def _fail(self, member: int, flight: Flight, error: ApparateError) -> None:
        with self._lock:
            self._flights.pop(member, None)
        flight.land(None, error)


class _Received:
    """The bytes of one answer, as far as they have arrived."""

    def __init__(self, body: Body, offset: int, length: int, begun: float) -> None:
        if body.offset != offset:
            raise Unavailable(
                f"registry gave the bytes from {body.offset} on where those from {offset} on were asked for"
            )
        self._chunks = iter(body)
        self._buffer = bytearray(length)
        self._begun = begun
        self.count = 0
        self.first_byte_s = 0.0
        self.body_s = 0.0

    def take(self, start: int, length: int) -> memoryview:
        """Return a part of the answer, waiting for it.

        Raises:
            Unavailable: the answer ended early, or has more than was asked for.
        """
        while self.count < start + length:
            data = next(self._chunks, None)
            if data is None:
                raise Unavailable(f"registry gave {self.count} of {len(self._buffer)} bytes")
            now = time.monotonic() - self._begun
            if not self.count:
                self.first_byte_s = now
            self.body_s = now - self.first_byte_s
            end = self.count + len(data)
            if end > len(self._buffer):
                raise Unavailable(f"registry gave more than the {len(self._buffer)} bytes that were asked for")
            self._buffer[self.count : end] = data
            self.count = end
        return memoryview(self._buffer)[start : start + length]


def _consecutive(members: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for member in members:
        if runs and runs[-1][-1] == member - 1:
            runs[-1].append(member)
        else:
            runs.append([member])
    return runs
