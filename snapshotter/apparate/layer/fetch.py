"""Getting missing members of one layer: one flight per member whoever asks, neighbours in one ranged request.

Whatever arrives is verified, stored and announced, whether somebody waits for it or not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from apparate.errors import ApparateError, IntegrityError, Unavailable
from apparate.format.inflate import inflate_member
from apparate.layer.flights import Batch, Flight, FlightTable
from apparate.layer.model import Priority
from apparate.layer.runs import Run, runs_of
from apparate.layer.source import BlobSize, distrusted
from apparate.layer.whole import WholeDownload
from apparate.registry.ranges import RangesUnsupported
from apparate.telemetry import metrics

if TYPE_CHECKING:
    from apparate.format.index import LayerIndex
    from apparate.layer.hands import Hands
    from apparate.layer.pace import Pace
    from apparate.layer.source import BlobSource, Body
    from apparate.layer.store import LayerStore
    from apparate.registry.deadline import Deadline

_SLOW_BYTES_PER_S: Final = 64 * 1024
"""A request gets this much longer the more it asks for; what has arrived when its time is over stays."""


class Announcer(Protocol):
    """Who is told what has arrived; called from the fetching thread, must not block."""

    def arrived(self, runs: Sequence[Run], fetched_bytes: int) -> None:
        """A verified member, laid out as *runs*, took *fetched_bytes* of the blob; stored or not."""
        ...


class Fetcher:
    """Fetches the members of one layer. Thread-safe; holds no lock while it fetches."""

    def __init__(
        self,
        index: LayerIndex,
        store: LayerStore,
        source: BlobSource,
        pace: Pace,
        announcer: Announcer,
        hands: Hands,
        timeout_s: float,
        blob_size: int = 0,
    ) -> None:
        """*hands* finish requests for readers who have what they waited for; *timeout_s* bounds one request, so that a
        connection that hangs is replaced long before a reader gives up.

        *blob_size* is what a registry has said of the blob's length, 0 if none has.
        """
        self.pace = pace
        self._index = index
        self._store = store
        self._source = source
        self._announcer = announcer
        self._hands = hands
        self._timeout_s = timeout_s
        self._size = BlobSize(index, blob_size)
        self.flights = FlightTable(index, store)
        self.whole = WholeDownload(index, source, self.flights, self._size, timeout_s)

    @property
    def reference(self) -> str:
        """The reference by which something was fetched last, "" if by none yet."""
        return self._source.proven

    def obtain(self, members: Sequence[int], deadline: Deadline) -> dict[int, bytes]:
        """Return when each of *members* is stored, or among the inflated contents that are returned.

        What is missing is fetched, what another thread is fetching is waited for. A request that goes on past what is
        wanted is finished by another thread.

        Raises:
            ApparateError: one of them could not be had this time. Others may have been stored.
        """
        held: dict[int, bytes] = {}
        while True:
            wanted = [member for member in members if member not in held]
            window = self.pace.window_bytes(guess=not self._index.prefetch)
            batch, joined = self.flights.claim_or_join(wanted, self.pace.gap_bytes(), window)
            if batch:
                held.update(self._fetch_wanted(batch, wanted, deadline))
            elif joined:
                held.update(_join(joined, deadline))
            else:
                return held

    def _fetch_wanted(self, batch: Batch, wanted: Sequence[int], deadline: Deadline) -> dict[int, bytes]:
        """Fetch a claimed batch; return as soon as those *wanted* have landed, if a thread is free to go on."""
        awaited = {member: batch[member] for member in wanted if member in batch}
        if next(reversed(batch)) in awaited or not self._hands.lend(lambda: self._fetch_alone(batch, deadline)):
            return self.fetch(batch, Priority.FOREGROUND, deadline)
        return _join(awaited, deadline)

    def _fetch_alone(self, batch: Batch, deadline: Deadline) -> None:
        with suppress(ApparateError):  # who waits for a flight is told by the flight
            self.fetch(batch, Priority.FOREGROUND, deadline)

    def fetch(self, batch: Batch, priority: Priority, deadline: Deadline) -> dict[int, bytes]:
        """Fetch members that were claimed, consecutive ones; return what arrived, inflated.

        Raises:
            ApparateError: not all arrived; every flight has landed all the same.
        """
        arrived: dict[int, bytes] = {}
        failures: list[ApparateError] = []
        own = batch
        try:
            left = [member for member in batch if not self._salvaged(member, batch[member], arrived)]
            for run in _consecutive(left):
                self._fetch_run(run, batch, arrived, failures, priority, deadline)
        except RangesUnsupported:  # these flights go on, by another way
            own = {}
            self.whole.take_over(
                {member: flight for member, flight in batch.items() if not flight.has_landed}, self.admit
            )
        except ApparateError as error:
            failures.append(error)
        finally:
            self.flights.abandon(own, failures[0] if failures else Unavailable("fetching was interrupted"))
        if not failures:
            return arrived
        failure = failures[0].anew()
        failures.clear()
        try:
            raise failure
        finally:  # else this frame holds the error that holds this frame, and those of its callers
            del failure

    def _salvaged(self, member: int, flight: Flight, arrived: dict[int, bytes]) -> bool:
        raw = self._store.salvage(member)
        if raw is None:
            return False
        self._announcer.arrived(runs_of(self._index, member, raw), 0)
        self.flights.land(member, flight, raw)
        arrived[member] = raw
        return True

    def _fetch_run(
        self,
        members: Sequence[int],
        batch: Batch,
        arrived: dict[int, bytes],
        failures: list[ApparateError],
        priority: Priority,
        deadline: Deadline,
    ) -> None:
        first, last = self._index.member(members[0]), self._index.member(members[-1])
        length = last.offset + last.length - first.offset
        begun_s = time.monotonic()
        capped = deadline.capped(self._timeout_s + length / _SLOW_BYTES_PER_S)
        with self._source.range(first.offset, length, deadline=capped) as body:
            self._size.check(body)
            received = _Received(body, first.offset, length, begun_s, self.pace)
            for member in members:
                ref = self._index.member(member)
                data = received.take(ref.offset - first.offset, ref.length)
                try:
                    arrived[member] = self.admit(member, batch[member], data, priority)
                except ApparateError as error:  # the others of this answer may be right
                    failures.append(error)
                    body.distrust(str(error))

    def admit(self, member: int, flight: Flight, data: memoryview, priority: Priority) -> bytes:
        """Inflate, verify, store and announce the compressed *data* of a claimed member, and land it; return it inflated.

        Raises:
            FormatError, IntegrityError: the bytes are not what the index promises; the flight has landed with this error.
            Unavailable: the layer was closed; the same.
        """
        try:
            ref = self._index.member(member)
            raw = inflate_member(self._index.compression, data, ref.raw_length, ref.need_bytes)
            self._index.verify(member, raw)
            runs = runs_of(self._index, member, raw)
            self._store.put(member, runs)
        except ApparateError as error:
            if isinstance(error, IntegrityError):
                metrics.INTEGRITY_ERRORS.inc()
            self.flights.land(member, flight, None, error)
            raise
        self.flights.land(member, flight, raw)
        metrics.FETCHED_BYTES.labels(priority.name.lower()).inc(len(data))
        self._announcer.arrived(runs, len(data))
        return raw


class _Received:
    """The bytes of one answer, as far as they have arrived."""

    def __init__(self, body: Body, offset: int, length: int, begun_s: float, pace: Pace) -> None:
        if body.offset != offset:
            raise distrusted(
                body, f"registry gave the bytes from {body.offset} on where those from {offset} on were asked for"
            )
        self._body = body
        self._chunks = iter(body)
        self._buffer = bytearray(length)
        self._count = 0
        self._begun_s = begun_s
        self._pace = pace

    def take(self, start: int, length: int) -> memoryview:
        """Return a part of the answer, waiting for it.

        Raises:
            Unavailable: the answer ends early, or has more than was asked for.
        """
        while self._count < start + length:
            data = next(self._chunks, None)
            if data is None:
                raise distrusted(self._body, f"registry gave {self._count} of {len(self._buffer)} bytes")
            if not self._count:
                self._pace.answered(time.monotonic() - self._begun_s)
            self._pace.received(len(data))
            end = self._count + len(data)
            if end > len(self._buffer):
                raise distrusted(
                    self._body, f"registry gave more than the {len(self._buffer)} bytes that were asked for"
                )
            self._buffer[self._count : end] = data
            self._count = end
        return memoryview(self._buffer)[start : start + length]


def _join(flights: Batch, deadline: Deadline) -> dict[int, bytes]:
    held = {}
    for member, flight in flights.items():
        flight.wait(deadline)
        if flight.error is not None:
            raise flight.error.anew()
        if flight.raw is not None:
            held[member] = flight.raw
    return held


def _consecutive(members: Sequence[int]) -> Iterator[list[int]]:
    run: list[int] = []
    for member in members:
        if run and member != run[-1] + 1:
            yield run
            run = []
        run.append(member)
    if run:
        yield run
