"""The seam between the snapshotter and the process that loads layers.

The snapshotter decides what a snapshot is; a `Loader` decides how the bytes of a layer get to the
node. The snapshotter knows nothing of registries, formats or FUSE and sees a layer as "a directory
that the loader mounts". Implementations: the loader's own service, the gRPC client that reaches it
from another process, and the fake of the conformance suite. All three pass
`tests/conformance/provider`.

Every method is blocking and thread-safe, and any of them may be repeated: the caller can die
between a call and its answer, and repeats the call after its restart.

Errors common to all methods: `Unavailable` when the loader cannot be reached or gave up for a
temporary reason; nothing has changed, or what has changed is found by the repeated call.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from apparate.oci.digest import Digest

if TYPE_CHECKING:
    from apparate.oci.manifest import Manifest


class LayerPhase(enum.Enum):
    """How much of a layer is on this node."""

    LAZY = "lazy"  # readable, some bytes still come from the registry when they are asked for
    COMPLETE = "complete"  # every byte is here and verified; the registry is out of the path
    FAILED = "failed"  # known, but its local files cannot be used; resolve() builds them again


@dataclass(frozen=True, slots=True)
class ResolveRequest:
    """One layer of one image, as the labels of a snapshot name it.

    *annotations* are the layer's annotations of the image manifest, with their full keys, and the labels
    that containerd adds below `containerd.io/snapshot/`. The author of the image wrote them: data, never trusted.
    """

    reference: str
    layer_digest: Digest
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ManifestLayer:
    """One layer as the image's manifest describes it. Written by the author of the image."""

    digest: Digest
    media_type: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)


def layers_of(manifest: Manifest) -> tuple[ManifestLayer, ...]:
    """Return the layers of *manifest*, base first."""
    return tuple(
        ManifestLayer(layer.digest, layer.media_type, layer.size, layer.annotations) for layer in manifest.layers
    )


@dataclass(frozen=True, slots=True)
class Resolved:
    """A layer that the loader can serve from now on, also after a restart without network."""

    layer_digest: Digest
    blob_size: int  # bytes of the compressed blob; 0 if the registry did not say
    image_size: int  # bytes of the file system image when every byte is present


@dataclass(frozen=True, slots=True)
class MountedLayer:
    """A mounted layer. *path* is a directory of the host, usable as a lower directory of overlayfs."""

    layer_digest: Digest
    path: str
    driver: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What something occupies on the disk of the node."""

    size: int = 0  # bytes, allocated blocks
    inodes: int = 0


@dataclass(frozen=True, slots=True)
class LayerState:
    """One layer as the loader sees it now."""

    layer_digest: Digest
    reference: str  # the last reference it was resolved with
    phase: LayerPhase
    image_size: int
    present_bytes: int  # of image_size, verified and on disk; an estimate as long as nobody has opened the layer
    fetched_bytes: int  # received from registries for this layer since it was resolved
    mounted: bool
    driver: str = ""  # how it is mounted; empty if it is not
    last_error: str = ""  # sentence of the last failed read or fetch; empty if there was none
    last_error_wall_s: float = 0.0

    @property
    def percent(self) -> float:
        """Return the share of the layer that is present, 0 to 100."""
        if self.phase is LayerPhase.COMPLETE or self.image_size <= 0:
            return 100.0 if self.phase is LayerPhase.COMPLETE else 0.0
        return 100.0 * self.present_bytes / self.image_size


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a completion has come."""

    present_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Touch:
    """One recorded access: *length* bytes from *offset* of the file *path* in the layer."""

    path: bytes
    offset: int
    length: int


class Loader(Protocol):
    """What a snapshotter needs from a loader."""

    def layers(self, reference: str, manifest_digest: Digest) -> Sequence[ManifestLayer]:
        """Return the layers of an image, base first, from its manifest (verified against its digest).

        containerd hands over the annotations of one layer at a time, and only those with its own
        prefix. With the manifest all layers of an image are resolved at once, and layers whose
        annotations have other names (zstd:chunked) are recognised. One small request.

        Raises:
            NotFound: the registry has no such manifest.
            IntegrityError, FormatError, RegistryError, Unavailable: as in `resolve`.
        """
        ...

    def resolve(self, request: ResolveRequest) -> Resolved:
        """Make the layer known and durable, so that `mount` works later without a registry.

        Resolving a known layer is cheap and asks no registry. Bounded in time by the loader. The digest of a blob
        says nothing about a table of contents that was never read together with the whole blob: a known layer
        answers only requests whose annotations promise what it was resolved with, or one image could give
        another one its bytes.

        Raises:
            Unsupported: the layer cannot be loaded lazily, or is here by another promise; the message says why, for people.
            IntegrityError: index or TOC do not match the digests of the manifest.
            FormatError: index or TOC are malformed.
            RegistryError, Unavailable: the registry refused or could not be reached.
        """
        ...

    def mount(self, layer_digest: Digest) -> MountedLayer:
        """Mount a resolved layer, or say where it is mounted already. Needs no network.

        Raises:
            NotFound: the layer is not known here; resolve it.
            FormatError: its local files are damaged; resolve it again.
        """
        ...

    def unmount(self, layer_digest: Digest) -> None:
        """Undo `mount`; a layer that is not mounted, or not known, is success.

        Raises:
            FailedPrecondition: something on the host still has the mount busy.
        """
        ...

    def forget(self, layer_digest: Digest) -> None:
        """Delete everything about a layer that no snapshot refers to; an unknown layer is success.

        Raises:
            FailedPrecondition: the layer is mounted.
        """
        ...

    def usage(self, layer_digest: Digest) -> Usage:
        """Return what the layer occupies on disk now.

        Raises:
            NotFound: the layer is not known here.
        """
        ...

    def status(self) -> Sequence[LayerState]:
        """Return every layer the loader knows, ordered by digest."""
        ...

    def complete(self, layer_digest: Digest) -> Iterator[Progress]:
        """Download the rest of the layer; yields progress, the last item with both numbers equal.

        The work goes on only while the iterator is consumed or another caller completes the same layer.

        Raises (from the iterator):
            NotFound: the layer is not known here.
            IntegrityError, RegistryError, Unavailable: as in `resolve`; what was verified stays.
        """
        ...

    def profile(self, layer_digest: Digest) -> Sequence[Touch]:
        """Return what was read of the layer since it was mounted first, in order of the first access.

        Raises:
            NotFound: the layer is not known here.
        """
        ...

    def fetch(self, reference: str, layer_digest: Digest) -> Iterator[bytes]:
        """Stream the compressed blob of a layer as the registry has it, for ordinary unpacking.

        The bytes are verified against *layer_digest* as they pass: the iterator ends normally only if
        they match, so whatever the caller made of them counts only from then on. Nothing is cached.

        Raises (from the iterator):
            IntegrityError: the bytes do not match the digest.
            RegistryError, Unavailable: as in `resolve`.
        """
        ...
