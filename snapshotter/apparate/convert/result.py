"""What a conversion made; `to_json` is the output of `apparate convert --json` (docs/convert.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apparate.oci.digest import Digest
    from apparate.oci.manifest import Descriptor, JsonObject, Platform


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One source layer and what became of it. Sizes in bytes."""

    source: Descriptor
    layer: Descriptor
    diff_id: Digest
    toc_digest: Digest
    raw_size: int
    """Of the new layer's tar."""
    entries: int
    members: int
    prefetch_size: int
    """Compressed bytes of the front of the layer that a start is known to touch; 0 without a list."""
    uploaded: bool
    """False: the target held the layer already."""

    def to_json(self) -> JsonObject:
        """Return the JSON object."""
        return {
            "source_digest": str(self.source.digest),
            "source_size": self.source.size,
            "digest": str(self.layer.digest),
            "size": self.layer.size,
            "media_type": self.layer.media_type,
            "diff_id": str(self.diff_id),
            "toc_digest": str(self.toc_digest),
            "uncompressed_size": self.raw_size,
            "entries": self.entries,
            "members": self.members,
            "prefetch_size": self.prefetch_size,
            "uploaded": self.uploaded,
        }


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One platform's image."""

    platform: Platform
    source_digest: Digest
    digest: Digest
    layers: tuple[LayerResult, ...]

    def to_json(self) -> JsonObject:
        """Return the JSON object."""
        return {
            "platform": str(self.platform),
            "source_digest": str(self.source_digest),
            "digest": str(self.digest),
            "layers": [layer.to_json() for layer in self.layers],
        }


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """The whole conversion."""

    source: str
    source_digest: Digest
    target: str
    digest: Digest
    changed: bool
    """False: the target held this very result already; then `images` is empty, for nothing was read."""
    images: tuple[ImageResult, ...]
    left_out: tuple[tuple[str, str], ...]
    """(platform, why) of what the source has and the result has not."""
    duration_s: float

    def to_json(self) -> JsonObject:
        """Return the JSON object."""
        return {
            "source": self.source,
            "source_digest": str(self.source_digest),
            "target": self.target,
            "digest": str(self.digest),
            "changed": self.changed,
            "images": [image.to_json() for image in self.images],
            "left_out": [{"platform": platform, "reason": reason} for platform, reason in self.left_out],
            "duration_s": round(self.duration_s, 3),
        }
