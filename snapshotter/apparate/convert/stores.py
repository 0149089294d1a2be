"""Where images come from and go to: the seam between the converter and registries or layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from apparate.errors import InvalidArgument
from apparate.oci.manifest import Descriptor
from apparate.oci.reference import Reference

OpenStream = Callable[[], Iterable[bytes]]
"""Gives the bytes of a blob anew, from its beginning, each time it is called."""


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """The bytes of a manifest or index as they are stored, and their descriptor."""

    descriptor: Descriptor
    body: bytes


class ImageSource(Protocol):
    """One image, readable. Manifests are verified against their digests; blobs are not: their reader does that."""

    @property
    def name(self) -> str:
        """What a person calls the image."""

    @property
    def recorded_name(self) -> str:
        """The same as far as it means something on another machine (no host paths); may be empty."""

    def root(self) -> StoredManifest:
        """Return what the image's name stands for. Raises NotFound."""

    def manifest(self, descriptor: Descriptor) -> StoredManifest:
        """Return a manifest that the root names."""

    def blob(self, descriptor: Descriptor) -> AbstractContextManager[Iterable[bytes]]:
        """Open a blob for one pass."""


class ImageTarget(Protocol):
    """One place for an image, writable. Nothing is visible under its name before `publish`."""

    @property
    def name(self) -> str:
        """What a person calls the place."""

    def current(self) -> StoredManifest | None:
        """Return what the name stands for now."""

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob is there, whole."""

    def put(self, descriptor: Descriptor, open_stream: OpenStream) -> None:
        """Store a blob; it is verified on the way."""

    def put_manifest(self, body: bytes, media_type: str) -> None:
        """Store a manifest under its digest alone."""

    def publish(self, body: bytes, media_type: str) -> None:
        """Store a manifest and let the name stand for it, in one step."""


@dataclass(frozen=True, slots=True)
class RegistryImage:
    """An image in a registry."""

    reference: Reference

    def __str__(self) -> str:
        return str(self.reference)


@dataclass(frozen=True, slots=True)
class LayoutImage:
    """An image in an OCI image layout (a directory), by the tag in its `org.opencontainers.image.ref.name`; None: the only one."""

    directory: Path
    tag: str | None = None

    def __str__(self) -> str:
        return f"{self.directory}:{self.tag}" if self.tag else str(self.directory)


ImageLocation = RegistryImage | LayoutImage


def parse_location(text: str, *, layout: bool) -> ImageLocation:
    """Return the place written as *text*: a reference, or with *layout* `DIRECTORY[:TAG]`.

    Raises:
        InvalidArgument: a reference that does not parse, an empty directory.
    """
    if not layout:
        return RegistryImage(Reference.parse(text))
    directory, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        directory, tag = text, ""
    if not directory:
        raise InvalidArgument(f"layout {text!r}: write DIRECTORY or DIRECTORY:TAG")
    return LayoutImage(Path(directory), tag or None)
