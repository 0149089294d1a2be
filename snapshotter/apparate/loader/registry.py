"""The registry client of a loader, loaded when a registry is asked for the first time.

HTTP, TLS and all that belong to it are a fifth of what a loader has to load. What containers read is often on the disk already,
and whoever waits for the loader to come back does not wait for that.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from apparate.errors import Unavailable

if TYPE_CHECKING:
    from apparate.oci.digest import Digest
    from apparate.oci.reference import Reference
    from apparate.registry.client import RegistryClient
    from apparate.registry.deadline import Deadline
    from apparate.registry.settings import RegistrySettings
    from apparate.registry.streams import BlobStream, RangeStream


class LateClient:
    """What a layer store asks a registry for (`apparate.layer.source.BlobClient`). Thread-safe."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._client: RegistryClient | None = None
        self._closed = threading.Event()

    def get(self) -> RegistryClient:
        """Return the client; the first call loads it.

        Raises:
            Unavailable: `close` was called before there was one.
            ApparateError: the settings cannot be used; the next call tries again.
        """
        if self._client is not None:
            return self._client
        from apparate.registry.client import RegistryClient  # see above

        with self._lock:
            if self._client is None:
                if self._closed.is_set():
                    raise Unavailable("the loader is stopping")
                self._client = RegistryClient(self._settings)
            return self._client

    def close(self) -> None:
        """Wake those who wait for a registry; may be called again."""
        self._closed.set()
        with self._lock:
            client = self._client
        if client is not None:
            client.close()

    def blob(self, ref: Reference, digest: Digest, *, deadline: Deadline) -> BlobStream:
        """Return the whole blob as it comes, unverified."""
        return self.get().blob(ref, digest, deadline=deadline)

    def blob_range(
        self, ref: Reference, digest: Digest, offset: int, length: int, *, deadline: Deadline
    ) -> RangeStream:
        """Return the bytes [offset, offset + length) of a blob, unverified."""
        return self.get().blob_range(ref, digest, offset, length, deadline=deadline)

    def blob_tail(self, ref: Reference, digest: Digest, length: int, *, deadline: Deadline) -> RangeStream:
        """Return the last *length* bytes of a blob, unverified."""
        return self.get().blob_tail(ref, digest, length, deadline=deadline)
