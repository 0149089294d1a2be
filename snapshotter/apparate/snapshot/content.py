"""Manifests that containerd has fetched already, read where it keeps them.

containerd stores the manifest of an image before it prepares the first layer, also of an image that was imported from a file.
So a registry need not be asked for it, which matters when there is none: a registry that does not answer costs seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from apparate.errors import FormatError, IntegrityError
from apparate.oci.digest import Verifier
from apparate.oci.manifest import MANIFEST_BYTES_MAX, Manifest, parse_manifest
from apparate.snapshot.remote import ManifestLayer, layers_of
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from apparate.oci.digest import Digest

_log = get_logger("snapshot.content")

_STORE_NAME: Final = "io.containerd.content.v1.content"
"""containerd's content store, beside the root of each snapshotter; the same since containerd 1.0."""


class ContentStore:
    """containerd's content store, read only. Thread-safe."""

    def __init__(self, snapshotter_root: Path) -> None:
        self._blobs = snapshotter_root.parent / _STORE_NAME / "blobs"

    def layers(self, manifest: Digest) -> tuple[ManifestLayer, ...] | None:
        """Return the layers of an image, base first, from its verified manifest; None if that is not to be had here."""
        path = self._blobs / manifest.algorithm / manifest.hex
        try:
            with path.open("rb") as file:
                body = file.read(MANIFEST_BYTES_MAX + 1)
        except OSError:  # containerd keeps its content elsewhere, or does not have it: the registry has
            return None
        try:
            verifier = Verifier(manifest, f"manifest {manifest}")
            verifier.update(body)
            verifier.finish()
            parsed = parse_manifest(body)
        except (FormatError, IntegrityError) as error:
            _log.info("manifest in containerd's store cannot be used", manifest=str(manifest), error=str(error))
            return None
        return layers_of(parsed) if isinstance(parsed, Manifest) else None
