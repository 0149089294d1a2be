"""What the data path needs of a layer and of whoever keeps the layers: the small part of `apparate.layer` that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from apparate.layer.model import LayerId
from apparate.oci.digest import Digest

if TYPE_CHECKING:
    from apparate.layer.manager import LayerManager


class ImageIndex(Protocol):
    """What is known of a layer without its data."""

    @property
    def metadata_size(self) -> int:
        """Bytes of the EROFS metadata in front of the image."""
        ...

    @property
    def prefetch(self) -> Sequence[tuple[int, int]]:
        """The recorded (address, length) of what a start touches; empty if nothing was recorded."""
        ...

    def metadata(self) -> memoryview:
        """The metadata themselves, verified."""
        ...


class Image(Protocol):
    """A layer's EROFS image that can be read before it is there. Thread-safe."""

    @property
    def digest(self) -> Digest:
        """The digest of the layer's blob."""
        ...

    @property
    def layer_id(self) -> LayerId:
        """The number of the layer, the same after a restart."""
        ...

    @property
    def image_size(self) -> int:
        """Bytes of the image, a multiple of its block size."""
        ...

    @property
    def index(self) -> ImageIndex:
        """What is known of the layer without its data."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether every byte is in the file at `path`, verified and durable, and stays there."""
        ...

    @property
    def path(self) -> Path:
        """The local sparse file, laid out as the image."""
        ...

    def read_cached(self, address: int, length: int, *, record: bool = True) -> bytes | None:
        """Return these bytes, fewer only at the image's end, if all are here; never waits for a network.

        Without *record* the read is not a container's: it counts neither as use nor for the layer's profile.
        """
        ...

    def read(self, address: int, length: int) -> bytes:
        """Return these bytes, fewer only at the image's end; waits for a registry, raises `ApparateError`."""
        ...


class KnownImage(Protocol):
    """What is known of a layer that is not open."""

    @property
    def digest(self) -> Digest:
        """The digest of the layer's blob."""
        ...

    @property
    def layer_id(self) -> LayerId:
        """The number of the layer."""
        ...

    @property
    def image_size(self) -> int:
        """Bytes of its image."""
        ...


class Images(Protocol):
    """The layers of this node. Thread-safe; no method asks a registry."""

    def attach(self, digest: Digest) -> Image:
        """Return a known layer; raises NotFound or FormatError."""
        ...

    def by_id(self, layer_id: LayerId) -> Image:
        """Return a known layer by its number; raises NotFound or FormatError."""
        ...

    def known(self) -> Sequence[KnownImage]:
        """Return every known layer; none is opened for that."""
        ...

    def forget(self, layer_id: LayerId) -> None:
        """Drop what is remembered of a layer that is removed."""
        ...


class ManagedImages:
    """The layers of a `LayerManager`, found by number without asking its catalogue each time."""

    def __init__(self, manager: LayerManager) -> None:
        self._manager = manager
        self._digests: dict[LayerId, Digest] = {}

    def attach(self, digest: Digest) -> Image:
        """Return a known layer."""
        return self._manager.attach(digest)

    def by_id(self, layer_id: LayerId) -> Image:
        """Return a known layer by its number."""
        digest = self._digests.get(layer_id)
        if digest is None:
            digest = self._digests[layer_id] = self._manager.by_id(layer_id).digest
        return self._manager.attach(digest)

    def known(self) -> Sequence[KnownImage]:
        """Return every known layer."""
        return self._manager.layers()

    def forget(self, layer_id: LayerId) -> None:
        """Drop what is remembered of a layer that is removed."""
        self._digests.pop(layer_id, None)
