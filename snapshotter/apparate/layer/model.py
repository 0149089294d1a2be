"""Values and protocols of the layer store that its users meet."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NewType, Protocol

from apparate.oci.digest import Digest

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from apparate.layer.image import LayerImage

LayerId = NewType("LayerId", int)
"""Small number of a layer, the same as long as the catalogue exists and never used again for another layer."""


@dataclass(frozen=True, slots=True)
class LayerRequest:
    """A layer to be made known. *annotations* come from the author of the image: data, never trusted."""

    reference: str
    digest: Digest
    annotations: Mapping[str, str] = field(default_factory=dict)


class Priority(enum.IntEnum):
    """Why something is fetched; what is less is served first."""

    FOREGROUND = 0  # somebody waits for it
    AHEAD = 1  # a sequential reader will be there soon
    PREFETCH = 2  # the image's profile names it
    COMPLETION = 3  # somebody asked for the whole layer
    BACKGROUND = 4  # the line is idle


class IndexSource(enum.Enum):
    """Where the index of a layer came from."""

    EMBEDDED = "embedded"  # the layer carried it; one ranged request
    TOC = "toc"  # built here from the table of contents of a foreign image


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """What is known of a resolved layer without opening it."""

    digest: Digest
    layer_id: LayerId
    reference: str  # the one it was resolved with, or fetched by, last
    blob_size: int  # bytes of the compressed blob; 0 if no registry has said
    image_size: int  # bytes of the file system image
    index_source: IndexSource
    complete: bool  # every byte is here, verified and durable


@dataclass(frozen=True, slots=True)
class Usage:
    """What something occupies on disk: allocated bytes, inodes."""

    bytes: int
    inodes: int


class LayerState(enum.Enum):
    """How much of a layer is on this node."""

    LAZY = "lazy"
    COMPLETE = "complete"
    FAILED = "failed"  # its local files cannot be used; resolve() builds them again


@dataclass(frozen=True, slots=True)
class LayerStatus:
    """One layer as it is now."""

    digest: Digest
    layer_id: LayerId
    reference: str
    state: LayerState
    image_size: int
    present_bytes: int  # of image_size: verified and in the file; an estimate for a layer that is not open
    fetched_bytes: int  # received from registries for this layer, ever
    blob_size: int
    pinned: bool
    last_error: str = ""
    last_error_wall_s: float = 0.0

    @property
    def percent(self) -> float:
        """The share of the image that is present, 0 to 100."""
        if self.state is LayerState.COMPLETE:
            return 100.0
        return 100.0 * self.present_bytes / self.image_size if self.image_size else 0.0


@dataclass(frozen=True, slots=True)
class Touch:
    """One recorded access: *length* bytes from *offset* of the file *path* in the layer."""

    path: bytes
    offset: int
    length: int


class LayerListener(Protocol):
    """Who wants to know what happens to layers. Called from fetching threads: must not block and must not raise."""

    def filled(self, image: LayerImage, address: int, data: Buffer) -> None:
        """The verified bytes *data* of the image at *address* are there. The buffer may be kept; it does not change."""
        ...

    def completed(self, image: LayerImage) -> None:
        """Every byte of the image is in its file, verified and durable. Called when it becomes so, and at attach if it is."""
        ...

    def removed(self, image: LayerImage) -> None:
        """The layer is deleted; its id is never used again."""
        ...


class NoListener:
    """Listens to nothing."""

    def filled(self, image: LayerImage, address: int, data: Buffer) -> None:
        """Ignore it."""

    def completed(self, image: LayerImage) -> None:
        """Ignore it."""

    def removed(self, image: LayerImage) -> None:
        """Ignore it."""
