"""Which images of a source are converted, and which prefetch ranges belong to which layer. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from apparate.errors import FailedPrecondition, FormatError, NotFound, Unsupported
from apparate.format.toc import EntryType
from apparate.format.tree import OPAQUE_MARKER, WHITEOUT_PREFIX
from apparate.oci import names
from apparate.oci.manifest import Descriptor, ImageConfig, Index, Manifest, Platform

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from apparate.format.prefetch import PrefetchRange
    from apparate.format.toc import Entry

LINUX: Final = "linux"
ATTESTATION: Final = "vnd.docker.reference.type"
"""BuildKit marks manifests that are no images, but statements about one, with this annotation."""
LAZY_ANNOTATIONS: Final = (
    names.TOC_DIGEST,
    names.ZSTD_CHUNKED_CHECKSUM,
    names.OLD_ZSTD_CHUNKED_CHECKSUM,
)
"""A layer with one of these can be loaded on demand as it is."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do with the manifests of an index: convert these, leave those out and say why."""

    chosen: tuple[Descriptor, ...]
    left_out: tuple[tuple[str, str], ...]


def choose(index: Index, wanted: Sequence[Platform], name: str) -> Choice:
    """Choose the images of *index* that can be converted and are for one of *wanted* (all, if that is empty).

    Raises:
        NotFound: a platform of *wanted* is not there.
        Unsupported: nothing of the index can be converted.
    """
    chosen: list[Descriptor] = []
    left_out: list[tuple[str, str]] = []
    for descriptor in index.manifests:
        reason = _unfit(descriptor)
        platform = str(descriptor.platform or "unknown")
        if reason:
            left_out.append((platform, reason))
        elif wanted and not any(descriptor.platform and descriptor.platform.matches(one) for one in wanted):
            left_out.append((platform, "not asked for"))
        else:
            chosen.append(descriptor)
    present = [
        descriptor.platform for descriptor in index.manifests if descriptor.platform and not _is_statement(descriptor)
    ]
    _require(wanted, present, name)
    if not chosen:
        listed = "; ".join(f"{platform}: {reason}" for platform, reason in left_out) or "it is empty"
        raise Unsupported(f"{name} has no image that can be accelerated ({listed})")
    return Choice(tuple(chosen), tuple(left_out))


def require_platform(config: ImageConfig, wanted: Sequence[Platform], name: str) -> None:
    """Refuse a single image that is for none of *wanted*, or for something else than Linux.

    Raises:
        NotFound, Unsupported: as `choose`.
    """
    _require(wanted, [config.platform], name)
    if config.platform.os != LINUX:
        raise Unsupported(f"{name} is for {config.platform}; only Linux images can be accelerated")


def _require(wanted: Sequence[Platform], present: Iterable[Platform], name: str) -> None:
    have = list(present)
    for platform in wanted:
        if not any(one.matches(platform) for one in have):
            listed = ", ".join(str(one) for one in have) or "none"
            raise NotFound(f"{name} has no image for {platform}; it has {listed}")


def _unfit(descriptor: Descriptor) -> str:
    if _is_statement(descriptor):
        return "an attestation about the source image; it does not hold for the result"
    if descriptor.media_type not in names.MANIFEST_TYPES:
        return f"{descriptor.media_type} is no image manifest"
    if descriptor.artifact_type:
        return f"an artifact of type {descriptor.artifact_type}, no image"
    if descriptor.platform is not None and descriptor.platform.os != LINUX:
        return "only Linux images can be accelerated"
    return ""


def _is_statement(descriptor: Descriptor) -> bool:
    return ATTESTATION in descriptor.annotations


def refuse_accelerated(annotations: Mapping[str, str], name: str) -> None:
    """Refuse an image that we made.

    Raises:
        FailedPrecondition: says what it was made of.
    """
    if names.SOURCE_DIGEST in annotations:
        source = annotations.get(names.SOURCE_REFERENCE) or annotations[names.SOURCE_DIGEST]
        raise FailedPrecondition(f"{name} is accelerated already; convert what it was made of: {source}")


def refuse_lazy(manifest: Manifest, name: str) -> None:
    """Refuse an image whose layers another tool has made loadable on demand.

    Raises:
        FailedPrecondition: says how to convert it all the same.
    """
    lazy = [any(key in layer.annotations for key in LAZY_ANNOTATIONS) for layer in manifest.layers]
    if lazy and all(lazy):
        raise FailedPrecondition(
            f"{name} is accelerated already: its layers can be loaded on demand as they are; add --reconvert to convert it all the same"
        )


def check_layers(manifest: Manifest, config: ImageConfig, name: str) -> None:
    """Refuse layers that we cannot read, before anything is read.

    Raises:
        Unsupported: an unknown media type.
        FormatError: manifest and configuration do not agree.
    """
    for number, layer in enumerate(manifest.layers):
        if layer.media_type not in names.LAYER_TYPES:
            raise Unsupported(
                f"{name}: layer {number + 1} of {len(manifest.layers)} is of type {layer.media_type!r}; "
                "tar, tar+gzip and tar+zstd layers of Docker and OCI images can be converted"
            )
    if len(config.diff_ids) != len(manifest.layers):
        raise FormatError(
            "image config", "rootfs.diff_ids", f"has {len(config.diff_ids)} entries for {len(manifest.layers)} layers"
        )


def listed_paths(ranges: Iterable[PrefetchRange]) -> frozenset[bytes]:
    """Return the paths of a prefetch list and all that they lie in."""
    listed: set[bytes] = set()
    for item in ranges:
        path = item.path
        while path not in listed:
            listed.add(path)
            path = path.rpartition(b"/")[0]
    return frozenset(listed)


def concerning(entries: Iterable[Entry], listed: frozenset[bytes]) -> list[Entry]:
    """Return those of *entries* that make a difference to `Claims.take`; *listed* is of the whole list."""
    return [entry for entry in entries if not listed.isdisjoint(_hides(entry))] if listed else []


class Claims:
    """Gives each range of a prefetch list to the layer that finally provides the path; ask the topmost layer first."""

    def __init__(self, ranges: Sequence[PrefetchRange]) -> None:
        self._left: dict[bytes, list[tuple[int, PrefetchRange]]] = {}
        for number, item in enumerate(ranges):
            self._left.setdefault(item.path, []).append((number, item))
        self._hidden: list[bytes] = []

    @property
    def missed(self) -> list[bytes]:
        """The paths that, after the last layer, have turned out to be no file of the image."""
        return [*self._hidden, *self._left]

    @property
    def key(self) -> frozenset[bytes]:
        """What is still to be found: layers of the same entries that are asked with the same key get the same ranges."""
        return frozenset(self._left)

    def take(self, entries: Iterable[Entry]) -> list[PrefetchRange]:
        """Return the ranges of the layer with *entries*, in list order, and forget those that it hides from lower layers."""
        found: list[tuple[int, PrefetchRange]] = []
        hidden: set[bytes] = set()
        for entry in entries:
            hidden |= _hides(entry)
            if entry.type in {EntryType.REG, EntryType.HARDLINK}:
                found.extend(self._left.pop(entry.path, ()))
        if hidden:
            for path in [path for path in self._left if _below(path, hidden)]:
                del self._left[path]
                self._hidden.append(path)
        return [item for _, item in sorted(found, key=lambda pair: pair[0])]


def _hides(entry: Entry) -> set[bytes]:
    """Return the directories below which *entry* hides everything of lower layers."""
    parent, _, base = entry.path.rpartition(b"/")
    if base == OPAQUE_MARKER:
        return {parent}
    if base.startswith(WHITEOUT_PREFIX):
        name = base[len(WHITEOUT_PREFIX) :]
        return {parent + b"/" + name if parent else name}
    return set() if entry.type is EntryType.DIR else {entry.path}


def _below(path: bytes, hidden: set[bytes]) -> bool:
    """Whether *path* is one of *hidden* or lies below one."""
    if b"" in hidden:
        return True
    while path:
        if path in hidden:
            return True
        path = path.rpartition(b"/")[0]
    return False
