"""A `Loader` in memory and plain directories. It passes `tests/conformance/provider` like the real one."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apparate.errors import ApparateError, FailedPrecondition, IntegrityError, NotFound, RegistryError, Unsupported
from apparate.oci.digest import Digest
from apparate.snapshot import remote

_FETCH_PART = 64 * 1024


@dataclass(slots=True)
class FakeLayer:
    """A layer of the fake registry: a blob, and the tree that it shows when it can be loaded lazily."""

    blob: bytes
    files: Mapping[str, bytes] = field(default_factory=dict)
    lazy: bool = True
    refusal: ApparateError | None = None

    @property
    def digest(self) -> Digest:
        return Digest.of(self.blob)


class FakeLoader:
    """Layers are directories below *root*; what is known survives as long as the object.

    `fail` holds an error for a method's name, raised until it is removed; `calls` counts; `before` runs a
    hook inside a method, so that a test can hold a call where it wants it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.RLock()
        self.blobs: dict[Digest, FakeLayer] = {}
        self.manifests: dict[Digest, list[remote.ManifestLayer]] = {}
        self.known: dict[Digest, str] = {}
        self.mounted: dict[Digest, Path] = {}
        self.busy: set[Digest] = set()
        self.completed: set[Digest] = set()
        self.fail: dict[str, ApparateError] = {}
        self.before: dict[str, Callable[[object], object]] = {}
        self.calls: list[tuple[str, object]] = []

    def add(self, layer: FakeLayer) -> Digest:
        """Put a layer into the fake registry."""
        self.blobs[layer.digest] = layer
        return layer.digest

    def count(self, method: str) -> int:
        """Return how often *method* was called."""
        return sum(1 for name, _ in self.calls if name == method)

    def watch_resolve(self, layer_digest: Digest) -> threading.Event:
        """Return an event that is set when `resolve` is called for *layer_digest*."""
        seen = threading.Event()

        def hook(request: object) -> None:
            if isinstance(request, remote.ResolveRequest) and request.layer_digest == layer_digest:
                seen.set()

        self.before["resolve"] = hook
        return seen

    def _enter(self, method: str, argument: object) -> None:
        with self._lock:
            self.calls.append((method, argument))
        hook = self.before.get(method)
        if hook is not None:
            hook(argument)
        if method in self.fail:
            raise self.fail[method]

    def _known(self, layer_digest: Digest) -> str:
        with self._lock:
            if layer_digest not in self.known:
                raise NotFound(f"layer {layer_digest} is not known here")
            return self.known[layer_digest]

    def layers(self, reference: str, manifest_digest: Digest) -> Sequence[remote.ManifestLayer]:
        self._enter("layers", manifest_digest)
        if manifest_digest not in self.manifests:
            raise NotFound(f"no manifest {manifest_digest} in {reference}")
        return list(self.manifests[manifest_digest])

    def resolve(self, request: remote.ResolveRequest) -> remote.Resolved:
        self._enter("resolve", request)
        layer = self.blobs.get(request.layer_digest)
        if layer is None:
            raise RegistryError("GET", f"http://registry/{request.layer_digest}", 404, ("BLOB_UNKNOWN",))
        if layer.refusal is not None:
            raise layer.refusal
        if not layer.lazy:
            raise Unsupported("the layer has no table of contents")
        with self._lock:
            self.known[request.layer_digest] = request.reference
        return remote.Resolved(request.layer_digest, len(layer.blob), self._image_size(layer))

    def mount(self, layer_digest: Digest) -> remote.MountedLayer:
        self._enter("mount", layer_digest)
        self._known(layer_digest)
        with self._lock:
            path = self._root / layer_digest.hex
            if layer_digest not in self.mounted:
                for name, data in self.blobs[layer_digest].files.items():
                    target = path / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(data)
                path.mkdir(parents=True, exist_ok=True)
                self.mounted[layer_digest] = path
        return remote.MountedLayer(layer_digest, str(path), "fake")

    def unmount(self, layer_digest: Digest) -> None:
        self._enter("unmount", layer_digest)
        with self._lock:
            if layer_digest in self.busy:
                raise FailedPrecondition(f"layer {layer_digest} is busy")
            path = self.mounted.pop(layer_digest, None)
            if path is not None:
                shutil.rmtree(path)

    def forget(self, layer_digest: Digest) -> None:
        self._enter("forget", layer_digest)
        with self._lock:
            if layer_digest in self.mounted:
                raise FailedPrecondition(f"layer {layer_digest} is mounted")
            self.known.pop(layer_digest, None)
            self.completed.discard(layer_digest)

    def usage(self, layer_digest: Digest) -> remote.Usage:
        self._enter("usage", layer_digest)
        self._known(layer_digest)
        return remote.Usage(self._image_size(self.blobs[layer_digest]), 1)

    def status(self) -> Sequence[remote.LayerState]:
        self._enter("status", None)
        with self._lock:
            return [self._state(digest) for digest in sorted(self.known)]

    def complete(self, layer_digest: Digest) -> Iterator[remote.Progress]:
        self._enter("complete", layer_digest)
        self._known(layer_digest)
        size = self._image_size(self.blobs[layer_digest])
        yield remote.Progress(0, size)
        self.completed.add(layer_digest)
        yield remote.Progress(size, size)

    def profile(self, layer_digest: Digest) -> Sequence[remote.Touch]:
        self._enter("profile", layer_digest)
        self._known(layer_digest)
        files = self.blobs[layer_digest].files
        return [remote.Touch(name.encode(), 0, len(data)) for name, data in files.items()]

    def fetch(self, reference: str, layer_digest: Digest) -> Iterator[bytes]:
        self._enter("fetch", layer_digest)
        layer = self.blobs.get(layer_digest)
        if layer is None:
            raise RegistryError("GET", f"http://registry/{layer_digest}", 404, ("BLOB_UNKNOWN",))
        for start in range(0, len(layer.blob), _FETCH_PART):
            yield layer.blob[start : start + _FETCH_PART]
        if isinstance(layer.refusal, IntegrityError):
            raise layer.refusal

    def _state(self, layer_digest: Digest) -> remote.LayerState:
        size = self._image_size(self.blobs[layer_digest])
        complete = layer_digest in self.completed
        return remote.LayerState(
            layer_digest=layer_digest,
            reference=self.known[layer_digest],
            phase=remote.LayerPhase.COMPLETE if complete else remote.LayerPhase.LAZY,
            image_size=size,
            present_bytes=size if complete else 0,
            fetched_bytes=0,
            mounted=layer_digest in self.mounted,
            driver="fake" if layer_digest in self.mounted else "",
        )

    @staticmethod
    def _image_size(layer: FakeLayer) -> int:
        return sum(len(data) for data in layer.files.values())
