"""What the labels of a snapshot say about its layer (docs/snapshots.md, "Labels").

Labels come from containerd, from the annotations of the image manifest, and for containers from pod
annotations, so their content is data of strangers: it may choose *what* is loaded, never from which
path, URL or account.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from apparate.errors import InvalidArgument
from apparate.oci import names
from apparate.oci.digest import Digest

_METASTORE_PREFIX = re.compile(r"[^/]+/\d+/")
_EXTRACT_PREFIX = "extract-"

_LAZY_ANNOTATIONS = (names.INDEX, names.TOC_DIGEST, names.ZSTD_CHUNKED_CHECKSUM, names.OLD_ZSTD_CHUNKED_CHECKSUM)


@dataclass(frozen=True, slots=True)
class LayerLabels:
    """The layer that a snapshot is to hold, and the image it belongs to."""

    reference: str
    layer_digest: Digest
    manifest_digest: Digest | None
    layers_upward: tuple[Digest, ...]  # this layer and those above it; may be cut short or empty


def target_of(key: str, labels: Mapping[str, str]) -> str:
    """Return the chain id that an extraction wants to end up with, or "" for every other snapshot.

    Only an unpacker names its keys `extract-…`; a label on a container's own snapshot was put there by
    the author of a pod and means nothing.
    """
    client_key = _METASTORE_PREFIX.sub("", key, count=1)
    return labels.get(names.TARGET_SNAPSHOT, "") if client_key.startswith(_EXTRACT_PREFIX) else ""


def layer_of(labels: Mapping[str, str]) -> LayerLabels | None:
    """Return the layer that *labels* name in CRI's or in stargz' way; None if they name none.

    Raises:
        InvalidArgument: they name one in a way that cannot be read.
    """
    for reference_key, digest_key, layers_key in (
        (names.CRI_IMAGE_REF, names.CRI_LAYER_DIGEST, names.CRI_IMAGE_LAYERS),
        (names.REMOTE_REFERENCE, names.REMOTE_DIGEST, names.REMOTE_LAYERS),
    ):
        reference, digest = labels.get(reference_key, ""), labels.get(digest_key, "")
        if reference and digest:
            manifest = labels.get(names.CRI_MANIFEST_DIGEST, "")
            return LayerLabels(
                reference,
                Digest.parse(digest),
                Digest.parse(manifest) if manifest else None,
                _digests(labels.get(layers_key, "")),
            )
    return None


def _digests(joined: str) -> tuple[Digest, ...]:
    digests = []
    for text in filter(None, joined.split(",")):
        try:
            digests.append(Digest.parse(text))
        except InvalidArgument:  # the list is a hint that containerd cuts at 4096 bytes
            break
    return tuple(digests)


def annotations_of(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that carry annotations of the layer."""
    return {key: value for key, value in labels.items() if key.startswith(names.SNAPSHOT_PREFIX)}


def promises_lazy(annotations: Mapping[str, str]) -> bool:
    """Say whether *annotations* announce a table of contents, so that asking the loader is worth a request."""
    return any(key in annotations for key in _LAZY_ANNOTATIONS)


def without_empty(labels: Mapping[str, str]) -> dict[str, str]:
    """Return *labels* as they are stored: containerd treats an empty value as absence."""
    return {key: value for key, value in labels.items() if value}
