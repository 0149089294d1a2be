"""Stand-ins for what the data path meets: images in memory, a courier that only takes notes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from apparate.errors import NotFound
from apparate.format.erofs import writer
from apparate.format.toc import Compression, Entry, TableOfContents
from apparate.format.tree import build_tree
from apparate.layer.model import LayerId
from apparate.oci.digest import Digest

PAGE = 4096


class MemoryIndex:
    """Metadata in memory."""

    def __init__(self, metadata: bytes) -> None:
        self.metadata_size = len(metadata)
        self.prefetch: Sequence[tuple[int, int]] = ()
        self._metadata = memoryview(metadata)

    def metadata(self) -> memoryview:
        return self._metadata


class MemoryImage:
    """An image of which the pages in `present` are here; a read of others calls `fetch`."""

    def __init__(self, data: bytes, layer_id: int = 5, metadata_size: int = PAGE) -> None:
        self.data = data
        self.digest = Digest.of(data)
        self.layer_id = LayerId(layer_id)
        self.image_size = len(data)
        self.index = MemoryIndex(data[:metadata_size])
        self.is_complete = False
        self.path = Path("/nonexistent")
        self.present: set[int] = set()
        self.stored: set[int] = set()
        """Pages on the disk that are not in the page cache."""
        self.recorded: list[tuple[int, int]] = []
        self.fetch: Callable[[int, int], bytes] = lambda address, length: data[address : address + length]

    def read_cached(self, address: int, length: int, *, record: bool = True) -> bytes | None:
        if record:
            self.recorded.append((address, length))
        if self.present.issuperset(range(address // PAGE, (address + length - 1) // PAGE + 1)):
            return self.data[address : address + length]
        return None

    def is_here(self, address: int, length: int) -> bool:
        return (self.present | self.stored).issuperset(range(address // PAGE, (address + length - 1) // PAGE + 1))

    def read_stored(self, address: int, length: int) -> bytes | None:
        return self.data[address : address + length] if self.is_here(address, length) else None

    def read(self, address: int, length: int) -> bytes:
        return self.fetch(address, length)


class MemoryImages:
    """Images by digest and number."""

    def __init__(self, *images: MemoryImage) -> None:
        self.images = list(images)
        self.closed = False
        """Every image has to be opened each time."""

    def attach(self, digest: Digest) -> MemoryImage:
        return self._find(lambda image: image.digest == digest)

    def by_id(self, layer_id: LayerId) -> MemoryImage:
        return self._find(lambda image: image.layer_id == layer_id)

    def _find(self, wanted: Callable[[MemoryImage], bool]) -> MemoryImage:
        for image in self.images:
            if wanted(image):
                return image
        raise NotFound("no such layer here")

    def known(self) -> Sequence[MemoryImage]:
        return self.images

    def opened(self, layer_id: LayerId) -> MemoryImage | None:
        return None if self.closed else next((image for image in self.images if image.layer_id == layer_id), None)


def image_of(entries: Sequence[Entry], layer_id: int = 5) -> MemoryImage:
    """Return the image of a tree without file data."""
    layout = writer.build(build_tree(TableOfContents(list(entries), [], Compression.GZIP)))
    data = layout.metadata.ljust(layout.image_size, b"\0")
    return MemoryImage(data, layer_id, len(layout.metadata))
