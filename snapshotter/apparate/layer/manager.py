"""All layers of a node: makes them known, opens them, forgets them."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from apparate.errors import ApparateError, FailedPrecondition, FormatError, NotFound, Unavailable, Unsupported
from apparate.layer.attach import kept_to, promises
from apparate.layer.budget import Budget
from apparate.layer.catalogue import Catalogue
from apparate.layer.disk import Disk, OsDisk
from apparate.layer.eviction import Eviction
from apparate.layer.image import LayerImage, Surroundings
from apparate.layer.model import (
    LayerId,
    LayerInfo,
    LayerListener,
    LayerRequest,
    LayerState,
    LayerStatus,
    NoListener,
    Priority,
    Touch,
    Usage,
)
from apparate.layer.opening import Opener, glance
from apparate.layer.profile import in_files
from apparate.layer.resolving import Resolver
from apparate.layer.root import LAYERS_NAME, lock_root
from apparate.layer.source import RegistrySource
from apparate.layer.store import IMAGE_NAME, disk_usage
from apparate.layer.upkeep import Upkeep
from apparate.layer.whole import SPOOL_NAME
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from apparate.layer.settings import LayerSettings
    from apparate.layer.source import BlobClient, SourceFactory
    from apparate.oci.digest import Digest

log = get_logger("layer.manager")


class LayerManager:
    """The layer store below one root. Thread-safe."""

    def __init__(
        self,
        settings: LayerSettings,
        client: BlobClient,
        listener: LayerListener | None = None,
        *,
        disk: Disk | None = None,
        sources: SourceFactory | None = None,
    ) -> None:
        """Open the store; needs no network. *sources* replaces the registry *client* where layers come from elsewhere.

        Raises:
            FailedPrecondition: another process has the root open, or a newer version wrote it.
            Unavailable: the root cannot be used.
        """
        self._layers = settings.root / LAYERS_NAME
        self._lock = threading.Lock()  # _images, _numbered, _busy; never held while anything else is done
        self._images: dict[Digest, LayerImage] = {}
        self._numbered: dict[LayerId, LayerImage] = {}
        self._busy: dict[Digest, threading.RLock] = {}
        self._instance = lock_root(settings.root, self._layers)
        self._catalogue = self._opened_catalogue(settings)
        self._around = Surroundings.begun(settings, listener or NoListener(), self._wake, self._hurry)
        disk = disk or OsDisk()
        budget = Budget(settings, self._want_room)
        self._upkeep = Upkeep(
            self._around, self._catalogue, disk, budget, self, Eviction(self._catalogue, budget, self)
        )
        sources = sources or (lambda references, digest: RegistrySource(client, references, digest))
        self._resolver = Resolver(settings, self._catalogue, disk, sources, self._around.closing, budget)
        self._opener = Opener(self._around, self._catalogue, disk, budget, sources)
        self._remove_orphans()
        self._upkeep.start()

    def _opened_catalogue(self, settings: LayerSettings) -> Catalogue:
        try:
            return Catalogue(settings.root / "catalogue.db")
        except ApparateError:
            os.close(self._instance)
            raise

    @property
    def identity(self) -> str:
        """Identity of the catalogue that numbers the layers: another one gives the same numbers to other layers."""
        return self._catalogue.identity

    def has_incomplete_mounted(self) -> bool:
        """Return whether a mounted layer may still be read from a registry."""
        pinned = self._catalogue.pinned()
        return any(info.digest in pinned and not info.complete for info in self._catalogue.all())

    def _wake(self) -> None:
        self._upkeep.wake()

    def _hurry(self) -> None:
        self._upkeep.hurry()

    def _want_room(self) -> None:
        self._upkeep.want_room()

    def _remove_orphans(self) -> None:
        """Remove directories of layers that were never promised, or were already forgotten, when a process died."""
        known = {info.digest.hex for info in self._catalogue.all()}
        for path in self._layers.iterdir():
            if path.name not in known:
                shutil.rmtree(path)

    def listen(self, listener: LayerListener) -> None:
        """Tell *listener* what happens from now on, nobody else."""
        self._around.listener = listener

    def sync(self) -> None:
        """Do now what is otherwise done in the background: make durable what is present, note completion, make room."""
        self._upkeep.round()

    def close(self) -> None:
        """Stop everything that runs, make durable what is present, close the files. Closing twice is success."""
        if self._around.closing.is_set():
            return
        self._around.closing.set()
        self._around.crew.close()
        self._around.background_crew.close()
        self._around.hands.close()
        self._upkeep.stop()
        for image in self.images():
            self._drop(image.digest)
        self._catalogue.close()
        os.close(self._instance)

    # --- making known, opening ---

    def resolve(self, request: LayerRequest) -> LayerInfo:
        """Make a layer known and durable, so that `attach` works later without a registry. A known layer costs no request.

        The digest of a blob proves nothing of a table of contents that was never read together with the whole blob. So a
        known layer answers only those who promise what it was verified against: or an image on a registry of its author
        could decide what other images with the same layer contain.

        Raises:
            Unsupported: it cannot be loaded lazily, or is here by another promise; the message says why.
            FailedPrecondition: its local files are damaged, another index is what one gets now, and somebody has it mounted.
            IntegrityError, FormatError: what the registry gave does not match the annotations.
            RegistryError, NotFound, Unavailable: it could not be had.
        """
        with self.exclusively(request.digest):
            known = self._catalogue.get(request.digest)
            if known is not None:
                # Before its index is opened: if that is damaged, this request renews it.
                request = self._as_promised(request)
                if self._opens(request.digest):
                    self._catalogue.refer(request.digest, request.reference)
                    return known
            info = self._obtain(request)
            image = self._attached(request.digest, fresh=True)
            if (self._directory(request.digest) / SPOOL_NAME).exists():
                image.completion.start(Priority.COMPLETION)  # the blob is here already
            return info

    def _as_promised(self, request: LayerRequest) -> LayerRequest:
        """Return a request for a known layer, kept to what it was verified against; refuse one that promises something else."""
        promise = self._catalogue.promise(request.digest)
        if promise not in promises(request.annotations):
            kind = promise.partition(" ")[0]
            raise Unsupported(
                f"not lazily loadable: another image brought layer {request.digest} here with another {kind} in its "
                "annotations; remove that image, or convert this one again"
            )
        return replace(request, annotations=kept_to(request.annotations, promise))

    def _obtain(self, request: LayerRequest) -> LayerInfo:
        directory = self._directory(request.digest)
        try:
            return self._resolver.obtain(request, directory)
        except ApparateError:
            if self._catalogue.get(request.digest) is None:
                shutil.rmtree(directory, ignore_errors=True)
            raise

    def _opens(self, digest: Digest) -> bool:
        try:
            self._attached(digest)
        except FormatError as error:
            log.warning("local index is damaged; obtaining it again", layer=str(digest), error=str(error))
            return False
        return True

    def attach(self, digest: Digest) -> LayerImage:
        """Return the image of a known layer, opened if it is not; needs no network. There is one for each layer.

        An image that is not pinned may be closed after a while, and `attach` opens it again.

        Raises:
            NotFound: the layer is not known here; resolve it.
            FormatError: its local files are damaged; resolve it again.
            Unavailable: the disk has no room for its metadata, or does not work.
        """
        image = self._images.get(digest)
        if image is not None:
            return image
        with self.exclusively(digest):
            return self._attached(digest)

    def _attached(self, digest: Digest, *, fresh: bool = False) -> LayerImage:
        """As `attach`; the caller has the layer exclusively."""
        image = self._images.get(digest)
        if image is None:
            image = self._opener.open(self._known(digest), self._directory(digest), fresh=fresh)
            with self._lock:
                self._images[digest] = self._numbered[image.layer_id] = image
            self._upkeep.finish_if_complete(image)
        return image

    def _known(self, digest: Digest) -> LayerInfo:
        info = self._catalogue.get(digest)
        if info is None:
            raise NotFound(f"layer {digest} is not known here")
        return info

    def _directory(self, digest: Digest) -> Path:
        return self._layers / digest.hex

    def image_path(self, digest: Digest) -> Path:
        """Return where a layer's image file is, or would be."""
        return self._directory(digest) / IMAGE_NAME

    @contextmanager
    def exclusively(self, digest: Digest) -> Iterator[None]:
        """Keep everyone else from resolving, opening, pinning and removing a layer."""
        with self._lock:
            busy = self._busy.setdefault(digest, threading.RLock())
        with busy:
            yield

    def images(self) -> list[LayerImage]:
        """Return the open images."""
        with self._lock:
            return list(self._images.values())

    def detach(self, image: LayerImage) -> None:
        """Close an image, unless it is pinned."""
        with self.exclusively(image.digest):
            if self._catalogue.pins(image.digest):
                return
            self._drop(image.digest)

    def _drop(self, digest: Digest) -> LayerImage | None:
        """Close an image if it is open; the caller has the layer exclusively."""
        with self._lock:
            image = self._images.pop(digest, None)
            if image is not None:
                del self._numbered[image.layer_id]
        if image is not None:
            self._upkeep.forget(image)
            _close(image)
        return image

    # --- what is here ---

    def layers(self) -> Sequence[LayerInfo]:
        """Return every known layer, ordered by digest."""
        return self._catalogue.all()

    def digests(self) -> Sequence[Digest]:
        """Return every known layer's digest, in order."""
        return [info.digest for info in self._catalogue.all()]

    def opened(self, layer_id: LayerId) -> LayerImage | None:
        """Return the image of the layer with a number if it is open; does not wait."""
        return self._numbered.get(layer_id)

    def by_id(self, layer_id: LayerId) -> LayerImage:
        """Return the image of the layer with a number.

        Raises:
            NotFound: no layer has it.
            FormatError, Unavailable: as `attach`.
        """
        image = self.opened(layer_id)
        if image is not None:
            return image
        info = self._catalogue.by_id(layer_id)
        if info is None:
            raise NotFound(f"no layer has the number {layer_id}")
        return self.attach(info.digest)

    def usage(self, digest: Digest) -> Usage:
        """Return what a layer occupies on disk now.

        Raises:
            NotFound: the layer is not known here.
        """
        self._known(digest)
        return disk_usage(self._directory(digest))

    def status(self, digest: Digest) -> LayerStatus:
        """Return a layer as it is now. None is opened for that: what is here of a closed one is estimated from its bitmap.

        Raises:
            NotFound: the layer is not known here.
        """
        info = self._known(digest)
        pinned = bool(self._catalogue.pins(digest))
        image = self._images.get(digest)
        if image is not None:
            state = LayerState.COMPLETE if image.is_complete else LayerState.LAZY
            return LayerStatus(
                digest, info.layer_id, info.reference, state, info.image_size, image.present_bytes, image.fetched_bytes,
                info.blob_size, pinned, image.last_error, image.last_error_wall_s,
            )  # fmt: skip
        try:
            share = glance(self._directory(digest))
        except FormatError as error:
            return LayerStatus(
                digest, info.layer_id, info.reference, LayerState.FAILED, info.image_size, 0, 0, info.blob_size, pinned,
                str(error), time.time(),
            )  # fmt: skip
        return LayerStatus(
            digest, info.layer_id, info.reference, LayerState.COMPLETE if share == 1.0 else LayerState.LAZY,
            info.image_size, int(share * info.image_size), self._catalogue.fetched_bytes(digest), info.blob_size, pinned,
        )  # fmt: skip

    def profile(self, digest: Digest) -> Sequence[Touch]:
        """Return what was read of a layer since it was made known, in order of the first access.

        Raises:
            NotFound, FormatError, Unavailable: as `attach`.
        """
        image = self.attach(digest)
        return in_files(image.index, image.profile.ranges())

    # --- mounts ---

    def pin(self, digest: Digest, owner: str, *, direct: bool = False) -> None:
        """Note, durably until the machine boots again, that *owner* has the layer mounted: it cannot be removed.

        With *direct* the kernel reads the layer's file itself, so nothing of it is dropped; only for complete layers. It stays
        so until `unpin`, whatever *owner* notes besides.

        Raises:
            NotFound: the layer is not known here.
            FailedPrecondition: *direct*, and the layer is not complete.
        """
        with self.exclusively(digest):
            if direct and not self._attached(digest).is_complete:
                raise FailedPrecondition(f"layer {digest} is not complete: its file cannot be mounted")
            self._catalogue.pin(digest, owner, direct=direct)

    def unpin(self, digest: Digest, owner: str) -> None:
        """Undo `pin`; success if there was none."""
        self._catalogue.unpin(digest, owner)

    def pins(self) -> Mapping[Digest, bool]:
        """Return the mounted layers, each with whether the kernel reads its file itself."""
        return self._catalogue.pinned()

    def remove(self, digest: Digest) -> None:
        """Delete everything about a layer; an unknown one is success.

        Raises:
            FailedPrecondition: somebody has it mounted.
        """
        with self.exclusively(digest):
            pins = self._catalogue.pins(digest)
            if pins:
                raise FailedPrecondition(f"layer {digest} is mounted by {pins[0].owner}")
            self._catalogue.remove(digest)  # from here on the directory is an orphan
            image = self._drop(digest)
            if image is not None:
                self._around.listener.removed(image)
            shutil.rmtree(self._directory(digest), ignore_errors=True)


def _close(image: LayerImage) -> None:
    try:
        image.close()
    except Unavailable as error:
        log.warning("layer could not be synced when it was closed", layer=str(image.digest), error=str(error))
