"""All layers of a node: makes them known, opens them, forgets them."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from apparate.errors import FailedPrecondition, FormatError, NotFound, Unavailable
from apparate.format.index import LayerIndex
from apparate.layer.attach import obtain_index
from apparate.layer.catalogue import Catalogue
from apparate.layer.disk import Disk, OsDisk, sync_directory
from apparate.layer.image import LayerImage
from apparate.layer.model import (
    LayerId,
    LayerInfo,
    LayerListener,
    LayerRequest,
    LayerState,
    LayerStatus,
    NoListener,
    Usage,
)
from apparate.layer.pace import Pace
from apparate.layer.source import RegistrySource
from apparate.layer.store import LayerStore
from apparate.registry.deadline import Deadline
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from apparate.layer.settings import LayerSettings
    from apparate.layer.source import BlobSource, SourceFactory
    from apparate.oci.digest import Digest
    from apparate.registry.client import RegistryClient

_INDEX_NAME: Final = "index"
_INDEX_HEAD_BYTES: Final = 128  # the header of the local index holds the checksum of all the rest

log = get_logger("layer.manager")


class _AnyRoom:
    """No limit but the disk's."""

    def take(self, length: int) -> bool:
        return True

    def exhausted(self) -> None:
        pass


class LayerManager:
    """The layer store below one root. Thread-safe."""

    def __init__(
        self,
        settings: LayerSettings,
        client: RegistryClient,
        listener: LayerListener | None = None,
        *,
        disk: Disk | None = None,
        sources: SourceFactory | None = None,
    ) -> None:
        """Open the store; needs no network.

        Raises:
            FailedPrecondition: another process has the root open.
            Unavailable: the root cannot be used.
        """
        self._settings = settings
        self._listener = listener or NoListener()
        self._disk = disk or OsDisk()
        self._sources: SourceFactory = sources or (
            lambda references, digest: RegistrySource(client, references, digest)
        )
        self._lock = threading.Lock()  # _images, _busy, _paces
        self._images: dict[Digest, LayerImage] = {}
        self._busy: dict[Digest, threading.RLock] = {}
        self._paces: dict[str, Pace] = {}
        self._closing = threading.Event()
        self._layers = settings.root / "layers"
        try:
            self._layers.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._instance = os.open(settings.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"root of the layer store {settings.root}: {error.strerror}") from error
        try:
            fcntl.flock(self._instance, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._instance)
            raise FailedPrecondition(f"another loader uses {settings.root}; give this one another root") from error
        self._catalogue = Catalogue(settings.root / "catalogue.db")
        self._remove_orphans()

    def _remove_orphans(self) -> None:
        """Remove directories of layers that were never promised, or were already forgotten, when a process died."""
        known = {info.digest.hex for info in self._catalogue.all()}
        for path in self._layers.iterdir():
            if path.name not in known:
                shutil.rmtree(path)

    def listen(self, listener: LayerListener) -> None:
        """Tell *listener* what happens from now on, nobody else."""
        self._listener = listener

    def close(self) -> None:
        """Stop everything that runs, make durable what is present, close the files."""
        self._closing.set()
        with self._lock:
            images, self._images = list(self._images.values()), {}
        for image in images:
            try:
                image.close()
            except Unavailable as error:
                log.warning("layer could not be synced at the end", layer=str(image.digest), error=str(error))
        self._catalogue.close()
        os.close(self._instance)

    # --- making known, opening ---

    def resolve(self, request: LayerRequest) -> LayerInfo:
        """Make a layer known and durable, so that `attach` works later without a registry. A known layer costs no request.

        Raises:
            Unsupported: it cannot be loaded lazily; the message says why.
            IntegrityError, FormatError: what the registry gave does not match the annotations.
            RegistryError, NotFound, Unavailable: it could not be had.
        """
        with self._exclusively(request.digest):
            known = self._catalogue.get(request.digest)
            if known is not None and self._is_usable(request.digest):
                self._catalogue.refer(request.digest, request.reference)
                return known
            return self._obtain(request)

    def _is_usable(self, digest: Digest) -> bool:
        try:
            self._attached(digest)
        except FormatError as error:
            log.warning("local index is damaged; fetching it again", layer=str(digest), error=str(error))
            return False
        return True

    def _obtain(self, request: LayerRequest) -> LayerInfo:
        source = self._sources(lambda: [request.reference], request.digest)
        obtained = obtain_index(source, request.annotations, Deadline.after(self._settings.resolve_deadline_s))
        index = LayerIndex(obtained.local)
        directory = self._directory(request.digest)
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            self._disk.replace(directory / _INDEX_NAME, obtained.local)
            sync_directory(self._layers)
        except OSError as error:
            raise Unavailable(f"index of {request.digest} cannot be stored: {error.strerror}") from error
        info = self._catalogue.add(
            request.digest, request.reference, index.image_size, obtained.blob_size, obtained.source
        )
        log.info("layer made known", layer=str(request.digest), ref=request.reference, index=obtained.source.value)
        return info

    def attach(self, digest: Digest) -> LayerImage:
        """Return the image of a known layer, opened if it is not; needs no network.

        Raises:
            NotFound: the layer is not known here; resolve it.
            FormatError: its local files are damaged; resolve it again.
            Unavailable: the disk has no room for its metadata, or does not work.
        """
        image = self._images.get(digest)
        if image is not None:
            return image
        with self._exclusively(digest):
            return self._attached(digest)

    def _attached(self, digest: Digest) -> LayerImage:
        """As `attach`; the caller holds the layer."""
        image = self._images.get(digest)
        if image is not None:
            return image
        info = self._catalogue.get(digest)
        if info is None:
            raise NotFound(f"layer {digest} is not known here")
        directory = self._directory(digest)
        index, identity = _open_index(directory / _INDEX_NAME)
        store = LayerStore(directory, index, identity, self._disk, _AnyRoom())
        source = self._sources(lambda: self._catalogue.references(digest), digest)
        image = LayerImage(
            digest,
            info.layer_id,
            index,
            store,
            source,
            self._pace(source),
            self._settings,
            self._listener,
            self._closing,
        )
        with self._lock:
            self._images[digest] = image
        return image

    def _pace(self, source: BlobSource) -> Pace:
        host = source.host
        with self._lock:
            return self._paces.setdefault(host, Pace(self._settings))

    def _directory(self, digest: Digest) -> Path:
        return self._layers / digest.hex

    def _exclusively(self, digest: Digest) -> threading.RLock:
        with self._lock:
            return self._busy.setdefault(digest, threading.RLock())

    # --- what is here ---

    def layers(self) -> Sequence[LayerInfo]:
        """Return every known layer, ordered by digest."""
        return self._catalogue.all()

    def by_id(self, layer_id: LayerId) -> LayerInfo:
        """Return the layer with a number.

        Raises:
            NotFound: no layer has it.
        """
        info = self._catalogue.by_id(layer_id)
        if info is None:
            raise NotFound(f"no layer has the number {layer_id}")
        return info

    def pin(self, digest: Digest, owner: str, *, direct: bool = False) -> None:
        """Note, durably until the machine boots again, that *owner* has the layer mounted: it cannot be removed.

        With *direct* the kernel reads the layer's file itself, so nothing of it may be dropped; only for complete layers.

        Raises:
            NotFound: the layer is not known here.
        """
        self._catalogue.pin(digest, owner, direct=direct)

    def unpin(self, digest: Digest, owner: str) -> None:
        """Undo `pin`; success if there was none."""
        self._catalogue.unpin(digest, owner)

    def pins(self) -> Mapping[Digest, bool]:
        """Return the mounted layers, each with whether the kernel reads its file itself."""
        return self._catalogue.pinned()

    def usage(self, digest: Digest) -> Usage:
        """Return what a layer occupies on disk now.

        Raises:
            NotFound: the layer is not known here.
        """
        return self.attach(digest).store.usage()

    def status(self, digest: Digest) -> LayerStatus:
        """Return a layer as it is now.

        Raises:
            NotFound: the layer is not known here.
        """
        info = self._catalogue.get(digest)
        if info is None:
            raise NotFound(f"layer {digest} is not known here")
        image = self.attach(digest)
        state = LayerState.COMPLETE if image.is_complete else LayerState.LAZY
        return LayerStatus(
            digest, info.layer_id, info.reference, state, info.image_size, 0, image.fetched_bytes, info.blob_size,
            bool(self._catalogue.pins(digest)), image.last_error, image.last_error_wall_s,
        )  # fmt: skip

    def remove(self, digest: Digest) -> None:
        """Delete everything about a layer; an unknown one is success.

        Raises:
            FailedPrecondition: somebody has it mounted.
        """
        with self._exclusively(digest):
            pins = self._catalogue.pins(digest)
            if pins:
                raise FailedPrecondition(f"layer {digest} is mounted by {pins[0].owner}")
            with self._lock:
                image = self._images.pop(digest, None)
            self._catalogue.remove(digest)  # from here on the directory is an orphan
            if image is not None:
                image.close()
                self._listener.removed(image)
            shutil.rmtree(self._directory(digest), ignore_errors=True)


def _open_index(path: Path) -> tuple[LayerIndex, bytes]:
    """Return the mapped index and its identity.

    Raises:
        FormatError: it is missing or damaged.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mapped = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        raise FormatError("index", "file", f"{path} cannot be mapped: {error}") from error
    index = LayerIndex(mapped)
    identity = sha256(mapped[:_INDEX_HEAD_BYTES]).digest()
    mapped.madvise(mmap.MADV_DONTNEED)  # checking has touched every page; few are needed again
    return index, identity
