"""Registries that give a blob only from its first byte: one full download fills the same store.

Two ways: `WholeDownload` fills a layer whose index is known while the bytes pass; `spool` keeps the blob of a layer whose
index lies at its end, verified, until the layer is complete. It is then read as any blob, without a network.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from apparate.errors import ApparateError, IntegrityError, Unavailable
from apparate.layer.model import Priority
from apparate.oci.digest import Verifier
from apparate.registry.deadline import Deadline
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from apparate.format.index import LayerIndex
    from apparate.layer.flights import Batch, Flight, FlightTable
    from apparate.layer.source import BlobSource, Body
    from apparate.oci.digest import Digest

SPOOL_NAME: Final = "blob"
_STEP_BYTES: Final = 256 * 1024

log = get_logger("layer.whole")


class Admit(Protocol):
    """Inflates, verifies and stores the compressed bytes of a member, and lands its flight in any case."""

    def __call__(self, member: int, flight: Flight, data: memoryview, priority: Priority) -> bytes: ...


class WholeDownload:
    """Downloads a whole blob once and lands every missing member as it passes. Thread-safe."""

    def __init__(self, index: LayerIndex, source: BlobSource, flights: FlightTable) -> None:
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
            failure = error
            log.warning("layer could not be downloaded as a whole", error=str(error))
        except Exception as error:
            failure = Unavailable(f"the download was interrupted: {error!r}")
            log.exception("work on a layer failed unexpectedly")
        finally:
            with self._lock:
                rest, self._pending, self._running = self._pending, {}, False
            self._flights.abandon(rest, failure)

    def _pass(self, body: Body, admit: Admit) -> None:
        window = _Window(body)
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
                failure = error
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

    def __init__(self, body: Body) -> None:
        self._chunks = iter(body)
        self._held = bytearray()
        self._offset = body.offset

    def take(self, offset: int, length: int) -> memoryview:
        """Return the bytes [offset, offset + length) of the blob."""
        while self._offset + len(self._held) < offset + length:
            data = next(self._chunks, None)
            if data is None:
                raise Unavailable("the registry gave less than the whole layer")
            self._drop_before(offset)
            self._held += data
        self._drop_before(offset)
        return memoryview(bytes(self._held[:length]))

    def _drop_before(self, offset: int) -> None:
        surplus = min(max(0, offset - self._offset), len(self._held))
        if surplus:
            del self._held[:surplus]
            self._offset += surplus


def spool(source: BlobSource, digest: Digest, directory: Path) -> int:
    """Download a whole blob into *directory*, verified against *digest*, and return its size.

    Raises:
        IntegrityError: the bytes do not match; nothing is kept.
        Unavailable: no registry, or no room on the disk; nothing is kept.
        RegistryError, NotFound: the registry refused.
    """
    fresh = directory / (SPOOL_NAME + ".new")
    verifier = Verifier(digest, "layer")
    try:
        with fresh.open("wb") as file, source.whole(deadline=Deadline.never()) as body:
            for data in body:
                verifier.update(data)
                file.write(data)
            try:
                verifier.finish()
            except IntegrityError as error:
                body.distrust(str(error))
                raise
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


class SpooledBlob:
    """A blob in a file, as `spool` left it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def host(self) -> str:
        """Files are measured together."""
        return "file:"

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
