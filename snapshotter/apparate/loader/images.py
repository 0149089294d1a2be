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

    def is_here(self, address: int, length: int) -> bool:
        """Return whether all these bytes are here, in memory or on the disk; does not wait."""
        ...

    def read_stored(self, address: int, length: int) -> bytes | None:
        """Return these bytes, fewer only at the image's end, if all are here; waits for the disk, never for a network."""
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
    """The layers of this node. Thread-safe; no method asks a registry, and all but `opened` may wait for the disk."""

    def opened(self, layer_id: LayerId) -> Image | None:
        """Return a layer by its number if it is open; does not wait."""
        ...

    def attach(self, digest: Digest) -> Image:
        """Return a known layer; raises NotFound or FormatError."""
        ...

    def by_id(self, layer_id: LayerId) -> Image:
        """Return a known layer by its number; raises NotFound or FormatError."""
        ...

    def known(self) -> Sequence[KnownImage]:
        """Return every known layer; none is opened for that."""
        ...


class ManagedImages:
    """The layers of a `LayerManager`."""

    def __init__(self, manager: LayerManager) -> None:
        self._manager = manager

    def opened(self, layer_id: LayerId) -> Image | None:
        """Return a layer by its number if it is open."""
        return self._manager.opened(layer_id)

    def attach(self, digest: Digest) -> Image:
        """Return a known layer."""
        return self._manager.attach(digest)

    def by_id(self, layer_id: LayerId) -> Image:
        """Return a known layer by its number."""
        return self._manager.by_id(layer_id)

    def known(self) -> Sequence[KnownImage]:
        """Return every known layer."""
        return self._manager.layers()
