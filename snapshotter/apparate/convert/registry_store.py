"""Registries as source and target of a conversion."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from apparate.convert.stores import OpenStream, StoredManifest
from apparate.errors import InvalidArgument, NotFound, Unavailable
from apparate.oci.manifest import Descriptor
from apparate.registry.deadline import Deadline
from apparate.registry.ranges import RangesUnsupported

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from apparate.oci.reference import Reference
    from apparate.registry.client import RegistryClient
    from apparate.registry.streams import BlobStream, RangeStream

SLOWEST_BYTES_PER_S: Final = 64 * 1024
"""A transfer may take as long as it does at this rate, besides the patience for a single request."""
RESUMES_MAX: Final = 20
"""How often the rest of one blob is asked for after its body ended early."""


class RegistrySource:
    """One image in a registry, to be read."""

    def __init__(self, client: RegistryClient, reference: Reference, patience_s: float) -> None:
        self._client = client
        self._reference = reference
        self._patience_s = patience_s
        self.name = str(reference)
        self.recorded_name = str(reference)

    def root(self) -> StoredManifest:
        """Return what the reference stands for."""
        fetched = self._client.manifest(self._reference, deadline=Deadline.after(self._patience_s))
        return StoredManifest(fetched.descriptor, fetched.body)

    def manifest(self, descriptor: Descriptor) -> StoredManifest:
        """Return a manifest of this repository by its digest."""
        reference = self._reference.with_digest(descriptor.digest)
        fetched = self._client.manifest(reference, deadline=Deadline.after(self._patience_s))
        return StoredManifest(fetched.descriptor, fetched.body)

    @contextlib.contextmanager
    def blob(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        """Open a blob for one pass; a body that ends early is resumed where the registry can."""
        with contextlib.closing(self._resuming(descriptor)) as chunks:
            yield chunks

    def _resuming(self, descriptor: Descriptor) -> Generator[bytes]:
        deadline = transfer_deadline(self._patience_s, descriptor.size)
        done = 0
        for attempt in range(RESUMES_MAX + 1):
            try:
                for chunk in self._rest(descriptor, done, deadline):
                    done += len(chunk)
                    yield chunk
            except Unavailable:
                if attempt == RESUMES_MAX or deadline.expired or not 0 < done < descriptor.size:
                    raise
            else:
                return

    def _rest(self, descriptor: Descriptor, done: int, deadline: Deadline) -> Iterator[bytes]:
        stream: BlobStream | RangeStream
        try:
            if done:
                stream = self._client.blob_range(
                    self._reference, descriptor.digest, done, descriptor.size - done, deadline=deadline
                )
            else:
                stream = self._client.blob(self._reference, descriptor.digest, deadline=deadline)
        except RangesUnsupported as error:
            raise Unavailable(f"blob {descriptor.digest} broke off after {done} bytes and cannot be resumed") from error
        with stream:
            yield from stream


class RegistryTarget:
    """A tag of a registry, to be written."""

    def __init__(self, client: RegistryClient, reference: Reference, patience_s: float) -> None:
        if reference.tag is None:
            raise InvalidArgument(f"target {reference}: give it a tag; its digest is known only when it is made")
        self._client = client
        self._reference = reference
        self._patience_s = patience_s
        self.name = str(reference)

    def current(self) -> StoredManifest | None:
        """Return what the tag stands for now."""
        try:
            fetched = self._client.manifest(self._reference, deadline=Deadline.after(self._patience_s))
        except NotFound:
            return None
        return StoredManifest(fetched.descriptor, fetched.body)

    def has(self, descriptor: Descriptor) -> bool:
        """Whether the repository has the blob."""
        deadline = Deadline.after(self._patience_s)
        return self._client.blob_exists(self._reference, descriptor.digest, deadline=deadline)

    def put(self, descriptor: Descriptor, open_stream: OpenStream) -> None:
        """Upload a blob; the registry verifies it."""
        deadline = transfer_deadline(self._patience_s, descriptor.size)
        self._client.upload_blob(self._reference, descriptor.digest, descriptor.size, open_stream, deadline=deadline)

    def put_manifest(self, body: bytes, media_type: str) -> None:
        """Store a manifest under its digest alone."""
        digest = Descriptor.of(body, media_type).digest
        reference = self._reference.with_digest(digest)
        self._client.put_manifest(reference, body, media_type, deadline=Deadline.after(self._patience_s))

    def publish(self, body: bytes, media_type: str) -> None:
        """Store a manifest and let the tag stand for it."""
        self._client.put_manifest(self._reference, body, media_type, deadline=Deadline.after(self._patience_s))


def transfer_deadline(patience_s: float, size: int) -> Deadline:
    """Return the deadline of a transfer of *size* bytes."""
    return Deadline.after(patience_s + size / SLOWEST_BYTES_PER_S)
