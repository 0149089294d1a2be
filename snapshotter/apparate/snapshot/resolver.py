"""Whether a layer is loaded lazily, and if not, what becomes of it.

containerd prepares the layers of an image one after the other. On the first of them all layers of the
image are resolved at once, so that the image costs the time of its slowest layer, not the sum.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apparate.errors import ApparateError, InvalidArgument, NotFound
from apparate.oci.digest import Digest
from apparate.oci.names import INDEX, OLD_ZSTD_CHUNKED_CHECKSUM, TOC_DIGEST, ZSTD_CHUNKED_CHECKSUM
from apparate.oci.reference import Reference
from apparate.snapshot.flights import KeyedLocks
from apparate.snapshot.labels import LayerLabels, annotations_of, layer_of, promises_lazy
from apparate.snapshot.remote import Loader, ManifestLayer, Resolved, ResolveRequest
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from apparate.snapshot.content import ContentStore

_log = get_logger("snapshot.resolver")

_MANIFESTS_MAX = 256
_MANIFEST_AGE_S = 60.0
"""How long the answer about a manifest, also a failure, serves the other layers of the same pull."""
_FAILURE_AGE_S = 20.0
"""How long the failure of a layer that was asked for ahead serves its own Prepare: one registry that does not answer costs an image
its deadline once. Whoever begins to pull anew asks anew, whatever failed before."""
_FLIGHT_AGE_S = 600.0
"""How long a layer resolved ahead of its Prepare counts as wanted."""

_FlightKey = tuple[Digest, tuple[str | None, ...]]


class Verdict(enum.Enum):
    """What to do with a layer."""

    LAZY = "lazy"  # the loader has it: commit it now
    UNPACK = "unpack"  # not lazy, but layers above may be: unpack it here, or containerd downloads all of them
    ORDINARY = "ordinary"  # containerd downloads and unpacks it


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, the layer it is about, and for people why it is not lazy."""

    verdict: Verdict
    layer: LayerLabels | None = None
    reason: str = ""
    promised: bool = False  # the image says that the layer can be loaded lazily


@dataclass(slots=True)
class _Flight:
    future: Future[Resolved]
    started_s: float

    @property
    def has_failed(self) -> bool:
        return self.future.done() and (self.future.cancelled() or self.future.exception() is not None)


@dataclass(slots=True)
class _Manifest:
    future: Future[tuple[ManifestLayer, ...]]
    started_s: float


class LayerResolver:
    """Asks the loader, ahead and once. Thread-safe."""

    def __init__(
        self,
        loader: Loader,
        threads: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        registries: Sequence[str] = (),
        content: ContentStore | None = None,
    ) -> None:
        """Let images of *registries* be lazy, of all without any (`snapshotter.lazy_registries`).

        Manifests are looked for in *content* before a registry is asked.
        """
        self._loader = loader
        self._content = content
        self._registries = registries
        self._clock = clock
        self._lock = threading.Lock()
        self._flights: dict[_FlightKey, _Flight] = {}
        self._claims: Counter[Digest] = Counter()
        self._layer_locks = KeyedLocks()
        self._manifests: dict[Digest, _Manifest] = {}
        self._resolve_pool = ThreadPoolExecutor(threads, thread_name_prefix="snapshot-resolve")
        # A pool of its own: the first layer waits for the manifest, so the manifest must never wait for a layer.
        self._manifest_pool = ThreadPoolExecutor(threads, thread_name_prefix="snapshot-manifest")

    def close(self) -> None:
        """Stop the threads; requests under way end by their own deadlines."""
        for pool in (self._resolve_pool, self._manifest_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    def wanted(self) -> set[Digest]:
        """Return layers that a pull under way needs and that may have no snapshot yet."""
        with self._lock:
            self._expire()
            return {digest for digest, _ in self._flights} | set(self._claims)

    @contextmanager
    def dropping(self, layer: Digest) -> Iterator[bool]:
        """Yield whether no pull wants *layer*; while the block lasts none gets it resolved, only afterwards and anew."""
        with self._layer_locks.hold(layer):
            yield layer not in self.wanted()

    @contextmanager
    def deciding(self, labels: Mapping[str, str], *, parent_is_lazy: bool) -> Iterator[Decision]:
        """Yield what to do with the layer that *labels* name, which stays wanted until the block ends.

        Waits for the registry as long as the loader does.
        """
        try:
            layer = layer_of(labels)
        except InvalidArgument as error:
            yield Decision(Verdict.ORDINARY, None, f"the labels of the layer cannot be read: {error}")
            return
        if layer is None:
            yield Decision(
                Verdict.ORDINARY, None, "containerd did not name the image; set disable_snapshot_annotations = false"
            )
            return
        if not _is_from(layer.reference, self._registries):
            yield Decision(Verdict.ORDINARY, layer, "the registry is not in snapshotter.lazy_registries")
            return
        digest = layer.layer_digest
        with self._lock:
            self._claims[digest] += 1
        try:
            yield self._decide(layer, annotations_of(labels), parent_is_lazy=parent_is_lazy)
        finally:
            with self._lock:
                self._claims[digest] -= 1
                if not self._claims[digest]:
                    del self._claims[digest]

    def resolve_again(self, labels: Mapping[str, str]) -> None:
        """Ask the loader for a layer that it has resolved before, as *labels* of its snapshot name it.

        Raises:
            ApparateError: the labels name no layer, or as `Loader.resolve`.
        """
        layer = layer_of(labels)
        if layer is None:
            raise NotFound("the labels of the snapshot do not name its layer")
        annotations = annotations_of(labels)
        if not promises_lazy(annotations):
            annotations = {**self._manifest_annotations(layer), **annotations}
        self._resolve(ResolveRequest(layer.reference, layer.layer_digest, annotations))

    def _decide(self, layer: LayerLabels, annotations: Mapping[str, str], *, parent_is_lazy: bool) -> Decision:
        if not promises_lazy(annotations):
            annotations = {**self._manifest_annotations(layer), **annotations}
            if not promises_lazy(annotations):
                verdict = self._verdict_of_refused(layer, parent_is_lazy=parent_is_lazy)
                return Decision(verdict, layer, "the image has no table of contents for this layer")
        own = self._begin(layer, annotations)
        try:
            own.result()
        except ApparateError as error:
            verdict = Verdict.ORDINARY
            if not error.temporary:
                verdict = self._verdict_of_refused(layer, parent_is_lazy=parent_is_lazy)
            return Decision(verdict, layer, str(error), promised=True)
        finally:
            self._landed(layer.layer_digest, annotations)
        return Decision(Verdict.LAZY, layer, promised=True)

    def _verdict_of_refused(self, layer: LayerLabels, *, parent_is_lazy: bool) -> Verdict:
        above = self._above(layer)
        if above is None:
            # The manifest is not to be had. A lazy parent says that the image was made for us; this layer is the odd one.
            is_worth_it = parent_is_lazy and len(layer.layers_upward) > 1
        else:
            is_worth_it = self._is_any_lazy(layer, above)
        return Verdict.UNPACK if is_worth_it else Verdict.ORDINARY

    def _is_any_lazy(self, layer: LayerLabels, above: Sequence[ManifestLayer]) -> bool:
        """Return whether a layer *above* promises to be lazy, and the registry answers: else nothing can be unpacked here either."""
        for other in above:
            if promises_lazy(other.annotations):
                try:
                    self._fly(layer.reference, other.digest, other.annotations).result()
                except ApparateError as error:
                    return not error.temporary
                return True
        return False

    # Manifests

    def _manifest(self, layer: LayerLabels) -> Future[tuple[ManifestLayer, ...]] | None:
        digest = layer.manifest_digest
        if digest is None:
            return None
        with self._lock:
            now_s = self._clock()
            for old in [key for key, known in self._manifests.items() if now_s - known.started_s > _MANIFEST_AGE_S]:
                del self._manifests[old]
            known = self._manifests.get(digest)
            if known is None:
                while len(self._manifests) >= _MANIFESTS_MAX:
                    del self._manifests[next(iter(self._manifests))]
                future = self._manifest_pool.submit(self._read_manifest, layer.reference, digest)
                known = self._manifests[digest] = _Manifest(future, now_s)
            return known.future

    def _read_manifest(self, reference: str, digest: Digest) -> tuple[ManifestLayer, ...]:
        layers = self._content.layers(digest) if self._content is not None else None
        if layers is not None:
            return layers
        try:
            return tuple(self._loader.layers(reference, digest))
        except ApparateError as error:
            _log.info("manifest not to be had", ref=reference, manifest=str(digest), error=str(error))
            raise

    def _known_layers(self, layer: LayerLabels) -> tuple[ManifestLayer, ...] | None:
        """Return the layers of the image, None if they cannot be had."""
        future = self._manifest(layer)
        try:
            return future.result() if future is not None else None
        except ApparateError:  # logged where it happened
            return None

    def _manifest_annotations(self, layer: LayerLabels) -> Mapping[str, str]:
        for described in self._known_layers(layer) or ():
            if described.digest == layer.layer_digest:
                return described.annotations
        return {}

    def _above(self, layer: LayerLabels) -> tuple[ManifestLayer, ...] | None:
        layers = self._known_layers(layer)
        if layers is None:
            return None
        positions = [n for n, described in enumerate(layers) if described.digest == layer.layer_digest]
        return layers[positions[0] + 1 :] if positions else ()

    # Layers

    def _begin(self, layer: LayerLabels, annotations: Mapping[str, str]) -> Future[Resolved]:
        """Ask for *layer* and ahead for those above it."""
        with self._lock:
            self._expire()
            is_asked = _flight_key(layer.layer_digest, annotations) in self._flights
        own = self._fly(layer.reference, layer.layer_digest, annotations)
        self._look_ahead(layer, anew=not is_asked)
        return own

    def _look_ahead(self, layer: LayerLabels, *, anew: bool) -> None:
        """Resolve the layers above *layer* too, as soon as the manifest is here, without waiting for it.

        With *anew* also those that have failed: nobody has asked ahead for *layer*, so a pull begins with it.
        """
        if len(layer.layers_upward) == 1:
            return
        future = self._manifest(layer)
        if future is not None:
            future.add_done_callback(lambda done: self._fly_all(layer, done, anew=anew))

    def _fly_all(self, layer: LayerLabels, manifest: Future[tuple[ManifestLayer, ...]], *, anew: bool) -> None:
        if manifest.cancelled() or manifest.exception() is not None:
            return
        above = self._above(layer) or ()
        for described in above:
            if promises_lazy(described.annotations):
                self._fly(layer.reference, described.digest, described.annotations, anew=anew)

    def _fly(
        self, reference: str, digest: Digest, annotations: Mapping[str, str], *, anew: bool = False
    ) -> Future[Resolved]:
        key = _flight_key(digest, annotations)
        with self._lock:
            self._expire()
            flight = self._flights.get(key)
            if flight is None or (anew and flight.has_failed):
                request = ResolveRequest(reference, digest, dict(annotations))
                flight = _Flight(self._resolve_pool.submit(self._resolve, request), self._clock())
                self._flights[key] = flight
            return flight.future

    def _resolve(self, request: ResolveRequest) -> Resolved:
        with self._layer_locks.hold(request.layer_digest):
            return self._loader.resolve(request)

    def _landed(self, digest: Digest, annotations: Mapping[str, str]) -> None:
        with self._lock:
            self._flights.pop(_flight_key(digest, annotations), None)

    def _expire(self) -> None:
        now_s = self._clock()
        for key, flight in list(self._flights.items()):
            if now_s - flight.started_s > (_FAILURE_AGE_S if flight.has_failed else _FLIGHT_AGE_S):
                del self._flights[key]


def _is_from(reference: str, registries: Sequence[str]) -> bool:
    """Say whether *reference* is of one of *registries*; everything is, if there are none."""
    if not registries:
        return True
    try:
        name = Reference.parse(reference).name
    except InvalidArgument:  # what names no registry is of none of them
        return False
    return any(name.startswith(f"{entry}/") or name == entry for entry in registries)


def _flight_key(digest: Digest, annotations: Mapping[str, str]) -> _FlightKey:
    """Only requests that promise the same table of contents for a blob are the same request.

    Labels lack the annotations without containerd's prefix, so the latter decide only where there is no other.
    """
    promised = (annotations.get(TOC_DIGEST), annotations.get(INDEX))
    checksums = (annotations.get(ZSTD_CHUNKED_CHECKSUM), annotations.get(OLD_ZSTD_CHUNKED_CHECKSUM))
    return digest, promised if any(promised) else checksums
