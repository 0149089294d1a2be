"""Which layers make up the images of a node, and how each got there: read from the metadata, whether the snapshotter runs or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apparate.errors import InvalidArgument
from apparate.oci.digest import Digest
from apparate.oci.reference import Reference
from apparate.snapshot.labels import annotations_of, layer_of, promises_lazy
from apparate.snapshot.model import Kind, Origin, Record, SnapshotId


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """One layer of an image, as it was prepared."""

    layer_digest: Digest | None  # None: containerd did not say which layer it unpacked
    origin: Origin
    reason: str  # why it is not lazy; "" where nobody asked for that
    promised: bool = False  # its labels announce a table of contents, so that somebody expects it to be lazy


@dataclass(frozen=True, slots=True)
class Image:
    """An image by the reference it was pulled with first; layers base first."""

    reference: str
    layers: tuple[ImageLayer, ...]
    containers: int

    @property
    def is_lazy(self) -> bool:
        """Whether every layer is loaded on demand or was, until it was complete."""
        return all(layer.origin is Origin.LAZY for layer in self.layers)

    @property
    def lazy_layers(self) -> list[Digest]:
        """The layers that are loaded on demand or were, base first, each once."""
        lazy = [layer.layer_digest for layer in self.layers if layer.origin is Origin.LAZY]
        return list(dict.fromkeys(digest for digest in lazy if digest is not None))

    @property
    def is_accelerated(self) -> bool:
        """Whether it was made to be loaded on demand: a layer is, was unpacked by us below such layers, or promises to be."""
        return any(layer.promised or layer.origin is not Origin.ORDINARY for layer in self.layers)

    def is_fallback(self, layer: ImageLayer) -> bool:
        """Whether *layer* of this image was to be loaded on demand and is not. A layer of an ordinary image never is."""
        return layer.origin is Origin.UNPACKED or (
            layer.origin is Origin.ORDINARY and bool(layer.reason) and self.is_accelerated
        )


def images(records: Sequence[Record]) -> list[Image]:
    """Return the images that *records* hold, by reference.

    An image is a committed snapshot that no committed snapshot of the same reference stands on, with its ancestors. Snapshots
    that name no image (made by a client without annotations) are listed under the reference "".
    """
    by_id = {record.id: record for record in records}
    covered = _covered(records, by_id)
    tops = [record for record in records if record.info.kind is Kind.COMMITTED and record.id not in covered]
    found = [_image(top, by_id, _containers(top, records)) for top in tops]
    return sorted(found, key=lambda image: image.reference)


def find(all_images: Sequence[Image], reference: str) -> list[Image]:
    """Return the images pulled as *reference*, which may be written in any of its forms."""
    wanted = str(Reference.parse(reference))
    return [image for image in all_images if _normal(image.reference) == wanted]


def _normal(reference: str) -> str:
    try:
        return str(Reference.parse(reference))
    except InvalidArgument:  # a label is somebody else's text; what cannot be read is not what was asked for
        return reference


def _reference(record: Record) -> str:
    try:
        labels = layer_of(record.info.labels)
    except InvalidArgument:
        return ""
    return labels.reference if labels else ""


def _covered(records: Sequence[Record], by_id: Mapping[SnapshotId, Record]) -> set[SnapshotId]:
    """Return the committed snapshots on which another of the same image stands."""
    covered = set()
    for record in records:
        if record.info.kind is Kind.COMMITTED and record.parent_id is not None:
            parent = by_id.get(record.parent_id)
            if parent is not None and _reference(parent) == _reference(record):
                covered.add(parent.id)
    return covered


def _containers(record: Record, records: Sequence[Record]) -> int:
    return sum(1 for other in records if other.parent_id == record.id and other.info.kind is not Kind.COMMITTED)


def _image(top: Record, by_id: Mapping[SnapshotId, Record], containers: int) -> Image:
    layers = []
    record: Record | None = top
    while record is not None:
        layers.append(ImageLayer(_digest(record), record.origin, record.reason, _promised(record)))
        record = by_id.get(record.parent_id) if record.parent_id is not None else None
    return Image(_reference(top), tuple(reversed(layers)), containers)


def _digest(record: Record) -> Digest | None:
    if record.layer is not None:
        return record.layer
    try:
        labels = layer_of(record.info.labels)
    except InvalidArgument:
        return None
    return labels.layer_digest if labels else None


def _promised(record: Record) -> bool:
    return promises_lazy(annotations_of(record.info.labels))
