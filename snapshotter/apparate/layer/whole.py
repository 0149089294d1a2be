"""Registries that give a blob only from its first byte: one full download fills the same store.

Two ways: `WholeDownload` fills a layer whose index is known while the bytes pass; `spool` keeps the blob of a layer whose
index lies at its end, verified, until the layer is complete. It is then read as any blob, without a network.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from apparate.errors import ApparateError, IntegrityError, Unavailable
from apparate.layer.model import Priority
from apparate.layer.source import distrusted
from apparate.oci.digest import Verifier
from apparate.registry.deadline import Deadline
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from apparate.format.index import LayerIndex
    from apparate.layer.flights import Batch, Flight, FlightTable
    from apparate.layer.source import BlobSize, BlobSource, Body
    from apparate.layer.store import Room
    from apparate.oci.digest import Digest

SPOOL_NAME: Final = "blob"
_STEP_BYTES: Final = 256 * 1024
_SLOW_BYTES_PER_S: Final = 64 * 1024
"""A whole blob that comes more slowly than this, over any of the spans in which it is measured, is not waited for."""

log = get_logger("layer.whole")


class Admit(Protocol):
    """Inflates, verifies and stores the compressed bytes of a member, and lands its flight in any case."""

    def __call__(self, member: int, flight: Flight, data: memoryview, priority: Priority) -> bytes: ...


class WholeDownload:
    """Downloads a whole blob once and lands every missing member as it passes. Thread-safe."""

    def __init__(
        self, index: LayerIndex, source: BlobSource, flights: FlightTable, size: BlobSize, span_s: float
    ) -> None:
        """*span_s*: for how long a registry may be slow before the download is begun anew."""
        self._size = size
        self._span_s = span_s
        self._index = index
        self._source = source
        self._flights = flights
        self._lock = threading.Lock()  # _pending, _running
        self._pending: Batch = {}
        self._running = False
        self.passed_bytes = 0
        """Grows as long as a download makes progress: who waits for a member need not give up meanwhile."""

    @property
    def is_running(self) -> bool:
        """Whether a download is under way."""
        return self._running

    def take_over(self, batch: Batch, admit: Admit) -> None:
        """Land the claimed *batch* and every other missing member, through *admit*, by a download in a thread of its own."""
        with self._lock:
            self._pending.update(batch)
            self._pending.update(self._flights.claim_all())
            if self._running or not self._pending:
                return
            thread = threading.Thread(target=self._run, args=(admit,), name="layer-whole", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                self._flights.abandon(self._pending, Unavailable(f"the download cannot begin: {error}"))
                self._pending = {}
                return
            self._running = True

    def _run(self, admit: Admit) -> None:
        log.info("registry gives no parts of layers; downloading this one as a whole", host=self._source.host)
        failure: ApparateError = Unavailable("the download was interrupted")
        try:
            while self._pending:
                with self._source.whole(deadline=Deadline.never()) as body:
                    self._pass(body, admit)
        except ApparateError as error:
            failure = error.anew()
            log.warning("layer could not be downloaded as a whole", error=str(error))
        except Exception as error:
            failure = Unavailable(f"the download was interrupted: {error!r}")
            log.exception("work on a layer failed unexpectedly")
        finally:
            with self._lock:
                rest, self._pending, self._running = self._pending, {}, False
            self._flights.abandon(rest, failure)

    def _pass(self, body: Body, admit: Admit) -> None:
        self._size.check(body)
        window = _Window(body, self._span_s)
        for member in range(self._index.member_count):
            with self._lock:  # others may hand over what lies ahead at any time
                flight = self._pending.pop(member, None)
            if flight is None:
                continue
            ref = self._index.member(member)
            failure: ApparateError = Unavailable("the download was interrupted")
            try:
                data = window.take(ref.offset, ref.length)
                self.passed_bytes += ref.length
                self._admit(admit, member, flight, data, body)
            except ApparateError as error:
                failure = error.anew()
                raise
            finally:
                self._flights.abandon({member: flight}, failure)  # nothing, if it has landed

    @staticmethod
    def _admit(admit: Admit, member: int, flight: Flight, data: memoryview, body: Body) -> None:
        try:
            admit(member, flight, data, Priority.COMPLETION)
        except ApparateError as error:
            body.distrust(str(error))
            raise


class _Window:
    """Takes ascending parts out of a body, dropping what lies between."""

    def __init__(self, body: Body, span_s: float) -> None:
        self._body = body
        self._chunks = _brisk(body, span_s)
        self._held = bytearray()
        self._offset = body.offset

    def take(self, offset: int, length: int) -> memoryview:
        """Return the bytes [offset, offset + length) of the blob."""
        while self._offset + len(self._held) < offset + length:
            data = next(self._chunks, None)
            if data is None:
                raise distrusted(self._body, "the registry gave less than the whole layer")
            self._drop_before(offset)
            self._held += data
        self._drop_before(offset)
        return memoryview(bytes(self._held[:length]))

    def _drop_before(self, offset: int) -> None:
        surplus = min(max(0, offset - self._offset), len(self._held))
        if surplus:
            del self._held[:surplus]
            self._offset += surplus


def _brisk(body: Body, span_s: float) -> Iterator[bytes]:
    """Yield what *body* brings as long as it is not too slow over *span_s* of waiting; what its reader takes does not count.

    Raises:
        Unavailable: it was.
    """
    chunks, waited_s, count = iter(body), 0.0, 0
    while True:
        begun_s = time.monotonic()
        data = next(chunks, None)
        waited_s += time.monotonic() - begun_s
        if data is None:
            return
        count += len(data)
        if waited_s >= span_s:
            if count < _SLOW_BYTES_PER_S * waited_s:
                raise distrusted(body, f"registry is too slow: {count} bytes of the layer came in {waited_s:.1f} s")
            waited_s, count = 0.0, 0
        yield data


@dataclass(frozen=True)
class SpoolLimits:
    """What a spooled download may take."""

    span_s: float
    """For how long the registry may be slow."""
    closing: threading.Event
    """It ends when this is set."""
    room: Room
    """Who is asked for every byte."""
    size: int = 0
    """Length of the blob if it is known from before, else 0."""


class _SpoolCheck:
    """Counts what a download brings and ends it when there is no use in going on."""

    def __init__(self, limits: SpoolLimits, announced: int | None) -> None:
        self._limits = limits
        self._size = limits.size or announced or 0
        self._received = 0
        if limits.size and announced is not None and announced != limits.size:
            raise Unavailable(f"registry announces {announced} bytes for a layer of {limits.size}")

    def received(self, count: int) -> None:
        """Note *count* bytes that are to be stored.

        Raises:
            Unavailable: they are too many, have no room, or nobody waits any more.
        """
        self._received += count
        if self._size and self._received > self._size:
            raise Unavailable(f"registry gave more than the {self._size} bytes of the layer")
        if self._limits.closing.is_set():
            raise Unavailable("the loader is stopping")
        if not self._limits.room.take(count):
            raise Unavailable("the disk has no room for the whole layer")


def spool(source: BlobSource, digest: Digest, directory: Path, limits: SpoolLimits) -> int:
    """Download a whole blob into *directory*, verified against *digest*, and return its size.

    Raises:
        IntegrityError: the bytes do not match; nothing is kept.
        Unavailable: no registry, or *limits* were reached; nothing is kept.
        RegistryError, NotFound: the registry refused.
    """
    fresh = directory / (SPOOL_NAME + ".new")
    verifier = Verifier(digest, "layer")
    try:
        with fresh.open("wb") as file, source.whole(deadline=Deadline.never()) as body:
            _receive(body, file, verifier, limits)
            file.flush()
            os.fdatasync(file.fileno())
        fresh.replace(directory / SPOOL_NAME)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise Unavailable(f"layer {digest} cannot be kept: {error.strerror}") from error
    except ApparateError:
        fresh.unlink(missing_ok=True)
        raise
    return verifier.length


def _receive(body: Body, file: BinaryIO, verifier: Verifier, limits: SpoolLimits) -> None:
    try:
        check = _SpoolCheck(limits, body.total_size)
        for data in _brisk(body, limits.span_s):
            check.received(len(data))
            verifier.update(data)
            file.write(data)
        verifier.finish()
    except IntegrityError as error:
        body.distrust(str(error))
        raise


class SpooledBlob:
    """A blob in a file, as `spool` left it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def host(self) -> str:
        """Files are measured together."""
        return "file:"

    @property
    def proven(self) -> str:
        """A file has no reference."""
        return ""

    @contextmanager
    def range(self, offset: int, length: int, *, deadline: Deadline) -> Iterator[Body]:
        """Read a part."""
        deadline.check("spooled layer")
        try:
            size = self._path.stat().st_size
            yield _FilePart(self._path, offset, min(length, max(0, size - offset)), size)
        except OSError as error:
            raise Unavailable(f"spooled layer {self._path} cannot be read: {error.strerror}") from error

    @contextmanager
    def tail(self, length: int, *, deadline: Deadline) -> Iterator[Body]:
        """Read the end."""
        size = self._path.stat().st_size
        with self.range(max(0, size - length), min(length, size), deadline=deadline) as body:
            yield body

    @contextmanager
    def whole(self, *, deadline: Deadline) -> Iterator[Body]:
        """Read everything."""
        with self.range(0, self._path.stat().st_size, deadline=deadline) as body:
            yield body


class _FilePart:
    def __init__(self, path: Path, offset: int, length: int, total_size: int) -> None:
        self._path = path
        self._length = length
        self.offset = offset
        self.total_size = total_size

    def __iter__(self) -> Iterator[bytes]:
        left = self._length
        with self._path.open("rb") as file:
            file.seek(self.offset)
            while left:
                data = file.read(min(left, _STEP_BYTES))
                if not data:
                    return
                left -= len(data)
                yield data

    def distrust(self, _reason: str) -> None:
        """There is no other file."""
