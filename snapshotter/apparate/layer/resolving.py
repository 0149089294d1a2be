"""Makes a layer known: its index on disk, then its row in the catalogue. Whatever is promised afterwards needs no network."""

from __future__ import annotations

import threading
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from apparate.errors import ApparateError, FailedPrecondition, Unavailable, Unsupported
from apparate.format.index import LayerIndex
from apparate.format.index.local import HEADER_BYTES
from apparate.layer.attach import Obtained, check_limits, obtain_index
from apparate.layer.bitmap import index_of
from apparate.layer.disk import sync_directory
from apparate.layer.patience import Patience
from apparate.layer.profile import PROFILE_NAME
from apparate.layer.store import IMAGE_NAME, PRESENT_NAME
from apparate.layer.whole import SPOOL_NAME, SpooledBlob, SpoolLimits, spool
from apparate.registry.deadline import Deadline
from apparate.registry.ranges import RangesUnsupported
from apparate.telemetry import metrics
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from mmap import mmap
    from pathlib import Path

    from apparate.layer.catalogue import Catalogue
    from apparate.layer.disk import Disk
    from apparate.layer.model import LayerInfo, LayerRequest
    from apparate.layer.settings import LayerSettings
    from apparate.layer.source import BlobSource, SourceFactory
    from apparate.layer.store import Room
    from apparate.oci.digest import Digest

INDEX_NAME: Final = "index"
_DAMAGED_ATTEMPTS: Final = 4
"""How often an index that does not match its digest is fetched again: line and mirror may be at fault, or the image."""
_RANGELESS_S: Final = 600.0
"""How long a registry that gave no ranges is not asked for one when another of its layers is made known."""

log = get_logger("layer.resolving")


def identity_of(local: bytes | mmap) -> bytes:
    """Return what identifies an index in its local form: a digest of its header, which holds a checksum of all the rest."""
    return sha256(local[:HEADER_BYTES]).digest()


class Resolver:
    """Obtains indexes. Thread-safe for different layers; the caller keeps one layer to itself."""

    def __init__(
        self,
        settings: LayerSettings,
        catalogue: Catalogue,
        disk: Disk,
        sources: SourceFactory,
        closing: threading.Event,
        room: Room,
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._disk = disk
        self._sources = sources
        self._closing = closing
        self._room = room
        self._lock = threading.Lock()  # _rangeless
        self._rangeless: dict[str, float] = {}

    def obtain(self, request: LayerRequest, directory: Path) -> LayerInfo:
        """Fetch and store the index of a layer, whatever is there of it, and enter it in the catalogue.

        Raises:
            Unsupported: it cannot be loaded lazily; the message says why. Nothing is kept.
            FailedPrecondition: what is here belongs to another index, and somebody has it mounted.
            ApparateError: it could not be had. Nothing is kept.
        """
        begun_s = time.monotonic()
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            obtained = self._fetch(request, directory)
            index = LayerIndex(obtained.local, trusted=True)  # it was made here, from checked tables
            check_limits(index)
            self._discard_stale(request.digest, directory, identity_of(obtained.local))
            self._disk.replace(directory / INDEX_NAME, obtained.local)
            sync_directory(directory.parent)
        except OSError as error:
            raise Unavailable(f"index of layer {request.digest} cannot be stored: {error.strerror}") from error
        info = self._catalogue.add(
            request.digest,
            request.reference,
            index.image_size,
            obtained.blob_size,
            obtained.source,
            obtained.promise,
            obtained.fetched_bytes,
        )
        duration_s = time.monotonic() - begun_s
        metrics.ATTACH_SECONDS.labels(obtained.source.value).observe(duration_s)
        log.info(
            "layer made known", layer=str(request.digest), ref=request.reference, index=obtained.source.value,
            duration_s=round(duration_s, 4),
        )  # fmt: skip
        return info

    def _discard_stale(self, digest: Digest, directory: Path, identity: bytes) -> None:
        """Delete what another index than that of *identity* may have laid out; what belongs to this one stays.

        The layer gets another number then, under which the kernel has nothing cached.
        """
        try:
            before = index_of((directory / PRESENT_NAME).read_bytes())
        except FileNotFoundError:
            before = None
        if before == identity:
            return
        if before is not None:
            if self._catalogue.pins(digest):
                raise FailedPrecondition(f"layer {digest} is mounted with another index; unmount it first")
            self._catalogue.renumber(digest)
        for name in (PRESENT_NAME, IMAGE_NAME, PROFILE_NAME):
            self._disk.unlink(directory / name)

    def _fetch(self, request: LayerRequest, directory: Path) -> Obtained:
        source = self._sources(lambda: [request.reference], request.digest)
        patience = Patience(self._settings.resolve_deadline_s, self._closing, damaged_attempts=_DAMAGED_ATTEMPTS)
        while True:
            try:
                if not self._is_rangeless(source):
                    return obtain_index(source, request.annotations, patience.deadline)
            except RangesUnsupported:
                self._note_rangeless(source)
            except Unsupported:
                raise
            except ApparateError as error:
                patience.wait(error)
                continue
            return self._spooled(source, request, directory)

    def _spooled(self, source: BlobSource, request: LayerRequest, directory: Path) -> Obtained:
        log.info("registry gives no parts of layers; downloading this one as a whole", layer=str(request.digest))
        known = self._catalogue.get(request.digest)
        size = known.blob_size if known else 0
        limits = SpoolLimits(self._settings.resolve_deadline_s, self._closing, self._room, size)
        fetched = spool(source, request.digest, directory, limits)
        obtained = obtain_index(SpooledBlob(directory / SPOOL_NAME), request.annotations, Deadline.never())
        return Obtained(obtained.local, obtained.source, obtained.promise, fetched, fetched)

    def _is_rangeless(self, source: BlobSource) -> bool:
        with self._lock:
            return self._rangeless.get(source.host, 0.0) > time.monotonic()

    def _note_rangeless(self, source: BlobSource) -> None:
        now_s = time.monotonic()
        with self._lock:
            self._rangeless = {host: until_s for host, until_s in self._rangeless.items() if until_s > now_s}
            self._rangeless[source.host] = now_s + _RANGELESS_S
