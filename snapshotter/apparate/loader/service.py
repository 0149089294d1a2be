"""The loader as the snapshotter sees it (`apparate.snapshot.remote.Loader`): the layer store and the mounts, together."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from apparate.errors import FailedPrecondition, FormatError, NotFound, Unavailable
from apparate.layer import model
from apparate.oci.digest import Digest, Verifier
from apparate.oci.manifest import Manifest, parse_manifest
from apparate.oci.reference import Reference
from apparate.registry.deadline import Deadline
from apparate.snapshot import remote

if TYPE_CHECKING:
    from apparate.layer.manager import LayerManager
    from apparate.loader.mounts import LayerMounts
    from apparate.registry.client import RegistryClient

_PIN_OWNER: Final = "mount"
_PROGRESS_INTERVAL_S: Final = 0.5
_PHASES: Final = {
    model.LayerState.LAZY: remote.LayerPhase.LAZY,
    model.LayerState.COMPLETE: remote.LayerPhase.COMPLETE,
    model.LayerState.FAILED: remote.LayerPhase.FAILED,
}


class LoaderService:
    """The calls of the snapshotter and of the command line. Thread-safe; never called from the FUSE task."""

    def __init__(self, manager: LayerManager, mounts: LayerMounts, client: RegistryClient, resolve_s: float) -> None:
        self._manager = manager
        self._mounts = mounts
        self._client = client
        self._resolve_s = resolve_s
        self._closing = threading.Event()

    def layers(self, reference: str, manifest_digest: Digest) -> Sequence[remote.ManifestLayer]:
        """Return the layers of an image, base first, from its verified manifest."""
        pinned = Reference.parse(reference).with_digest(manifest_digest)
        fetched = self._client.manifest(pinned, deadline=Deadline.after(self._resolve_s))
        manifest = parse_manifest(fetched.body, fetched.descriptor.media_type)
        if not isinstance(manifest, Manifest):
            raise FormatError("manifest", "mediaType", f"{manifest_digest} is an index, not a manifest")
        return remote.layers_of(manifest)

    def resolve(self, request: remote.ResolveRequest) -> remote.Resolved:
        """Make a layer known and durable."""
        wanted = model.LayerRequest(request.reference, request.layer_digest, request.annotations)
        info = self._manager.resolve(wanted)
        return remote.Resolved(info.digest, info.blob_size, info.image_size)

    def mount(self, layer_digest: Digest) -> remote.MountedLayer:
        """Mount a known layer and begin to load what its profile names: once for each mount, and for one that we took over."""
        image = self._manager.attach(layer_digest)
        # Before the mount: what is mounted cannot be removed, and what the kernel reads itself keeps every byte.
        local = self._pin(layer_digest, direct=image.is_complete and self._mounts.local_works)
        mounted = self._mounts.mount(image, local=local)
        if not mounted.is_local and (mounted.is_new or not image.prefetch_begun):
            image.prefetch()
        return remote.MountedLayer(layer_digest, mounted.path, self._mounts.driver.value)

    def _pin(self, layer_digest: Digest, *, direct: bool) -> bool:
        """Pin the layer, directly if wanted and it is still complete; return whether it was done directly."""
        try:
            self._manager.pin(layer_digest, _PIN_OWNER, direct=direct)
        except FailedPrecondition:  # it was complete a moment ago
            direct = False
            self._manager.pin(layer_digest, _PIN_OWNER, direct=False)
        return direct

    def unmount(self, layer_digest: Digest) -> None:
        """Undo `mount`."""
        self._mounts.unmount(layer_digest)
        self._manager.unpin(layer_digest, _PIN_OWNER)

    def forget(self, layer_digest: Digest) -> None:
        """Delete everything about a layer."""
        self._manager.remove(layer_digest)

    def usage(self, layer_digest: Digest) -> remote.Usage:
        """Return what the layer occupies on disk now."""
        used = self._manager.usage(layer_digest)
        return remote.Usage(used.bytes, used.inodes)

    def status(self) -> Sequence[remote.LayerState]:
        """Return every known layer, ordered by digest."""
        mounted = self._mounts.mounted()
        states = []
        for info in self._manager.layers():
            try:
                status = self._manager.status(info.digest)
            except NotFound:  # forgotten meanwhile
                continue
            states.append(_state(status, mounted.get(info.digest, "")))
        return states

    def complete(self, layer_digest: Digest) -> Iterator[remote.Progress]:
        """Download the rest of the layer while the iterator is consumed."""
        image = self._manager.attach(layer_digest)
        while not self._closing.is_set():
            if image.completion.wait(_PROGRESS_INTERVAL_S):
                yield remote.Progress(image.image_size, image.image_size)
                return
            yield remote.Progress(image.present_bytes, image.image_size)
        raise Unavailable("the loader is stopping")

    def close(self) -> None:
        """Let calls under way end."""
        self._closing.set()

    def profile(self, layer_digest: Digest) -> Sequence[remote.Touch]:
        """Return what was read of the layer, in order of the first access."""
        touches = self._manager.profile(layer_digest)
        return [remote.Touch(touch.path, touch.offset, touch.length) for touch in touches]

    def fetch(self, reference: str, layer_digest: Digest) -> Iterator[bytes]:
        """Stream the compressed blob of a layer, verified at its end."""
        verifier = Verifier(layer_digest, f"layer {layer_digest}")
        with self._client.blob(Reference.parse(reference), layer_digest, deadline=Deadline.never()) as stream:
            for chunk in stream:
                verifier.update(chunk)
                yield chunk
        verifier.finish()


def _state(status: model.LayerStatus, driver: str) -> remote.LayerState:
    return remote.LayerState(
        status.digest,
        status.reference,
        _PHASES[status.state],
        status.image_size,
        status.present_bytes,
        status.fetched_bytes,
        bool(driver),
        driver,
        status.last_error,
        status.last_error_wall_s,
    )
