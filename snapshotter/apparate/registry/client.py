"""The registry client: what the rest of apparate asks a registry for."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from apparate.errors import FormatError, IntegrityError, InvalidArgument, NotFound
from apparate.oci import names
from apparate.oci.digest import Digest, Verifier
from apparate.oci.manifest import MANIFEST_BYTES_MAX, Descriptor
from apparate.registry.attempts import Attempts
from apparate.registry.auth import Authorizer
from apparate.registry.breakers import Breakers
from apparate.registry.deadline import Deadline
from apparate.registry.endpoint import Capability, Endpoint
from apparate.registry.exchange import Call, Exchange
from apparate.registry.hosts import HostTable
from apparate.registry.keychain import Keychain
from apparate.registry.proxies import ProxyRules
from apparate.registry.reads import Reads
from apparate.registry.transport import Response, Transport
from apparate.registry.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from apparate.oci.reference import Reference
    from apparate.registry.settings import RegistrySettings
    from apparate.registry.streams import BlobStream, RangeStream
    from apparate.registry.transport import Sender

T = TypeVar("T")

MANIFEST_ACCEPT = (names.OCI_INDEX, names.OCI_MANIFEST, names.DOCKER_LIST, names.DOCKER_MANIFEST)
"""All of them, always: a registry may convert, or answer 404, when the stored type is missing from Accept."""


@dataclass(frozen=True, slots=True)
class FetchedManifest:
    """A manifest or index as served; *body* hashes to `descriptor.digest`."""

    descriptor: Descriptor
    body: bytes


class RegistryClient:
    """Asks registries and their mirrors; thread-safe.

    Each method takes a deadline and raises Unavailable when nothing was to be had before it; NotFound when no endpoint has
    the content; RegistryError when the registry refused, 401 and 403 among them; FailedPrecondition when our own
    certificates or hosts.toml cannot be used.
    """

    def __init__(self, settings: RegistrySettings, *, sender: Sender | None = None) -> None:
        self._closing = threading.Event()
        self._sender = sender or Transport(settings, ProxyRules.from_environment(os.environ))
        self._hosts = HostTable(settings)
        self._exchange = Exchange(self._sender, Authorizer(self._sender, Keychain(settings)))
        self._breakers = Breakers()
        self._attempts = Attempts(self._breakers, self._closing)
        self._reads = Reads(self._exchange, self._attempts, self._breakers, self._hosts)
        self._uploads = Uploads(self._exchange, self._attempts, self._hosts)

    def close(self) -> None:
        """Wake those who wait for another attempt (they raise Unavailable) and close idle connections."""
        self._closing.set()
        self._sender.close()

    def manifest(
        self, ref: Reference, *, deadline: Deadline, accept: tuple[str, ...] = MANIFEST_ACCEPT
    ) -> FetchedManifest:
        """Return the manifest that *ref* names, by digest if it has one.

        Raises:
            IntegrityError: every endpoint served bytes that do not hash to the digest.
            FormatError: larger than 4 MiB.
        """
        call = Call("GET", _manifest_path(ref), headers=(("Accept", ", ".join(accept)),), scopes=(_pull(ref),))

        def once(endpoint: Endpoint) -> FetchedManifest:
            with self._exchange.perform(endpoint, call, deadline) as response:
                return _fetched(ref, response, response.read_at_most(MANIFEST_BYTES_MAX))

        def attempt(endpoint: Endpoint) -> FetchedManifest:
            try:
                return once(endpoint)
            except IntegrityError as error:
                self._breakers.distrusted(endpoint, str(error))
                return once(endpoint)  # a flipped bit on the way is healed by asking again; a wrong store is not

        return self._run(ref, Capability.PULL if ref.digest else Capability.RESOLVE, attempt, deadline)

    def head_manifest(
        self, ref: Reference, *, deadline: Deadline, accept: tuple[str, ...] = MANIFEST_ACCEPT
    ) -> Descriptor | None:
        """Return type, digest and size of what *ref* names, as the registry says, or None if it does not exist."""
        call = Call("HEAD", _manifest_path(ref), headers=(("Accept", ", ".join(accept)),), scopes=(_pull(ref),))

        def attempt(endpoint: Endpoint) -> tuple[str, str, int | None]:
            with self._exchange.perform(endpoint, call, deadline) as response:
                return (
                    response.header("content-type").partition(";")[0].strip(),
                    response.header("docker-content-digest") or str(ref.digest or ""),
                    response.content_length,
                )

        try:
            media_type, digest, size = self._run(
                ref, Capability.PULL if ref.digest else Capability.RESOLVE, attempt, deadline
            )
        except NotFound:
            return None
        if not digest or size is None:
            return self.manifest(ref, deadline=deadline, accept=accept).descriptor
        return Descriptor(media_type, _digest(digest, "Docker-Content-Digest"), size)

    def blob(self, ref: Reference, digest: Digest, *, deadline: Deadline, verify: bool = False) -> BlobStream:
        """Return the whole blob as it comes. The digest is the caller's to check, unless *verify* is set (see BlobStream)."""
        return self._reads.whole(ref, digest, deadline, verify=verify)

    def blob_range(
        self, ref: Reference, digest: Digest, offset: int, length: int, *, deadline: Deadline
    ) -> RangeStream:
        """Return bytes [offset, offset + length) of a blob, fewer only where the blob ends; they are not verified.

        Raises:
            RangesUnsupported: whoever has the blob would send all of it.
            RegistryError: status 416: *offset* lies at or beyond the end.
            InvalidArgument: *offset* is negative or *length* is not positive.
        """
        return self._reads.range(ref, digest, offset, length, deadline)

    def blob_tail(self, ref: Reference, digest: Digest, length: int, *, deadline: Deadline) -> RangeStream:
        """Return the last *length* bytes of a blob, all of it if it has fewer; raises as `blob_range`."""
        return self._reads.tail(ref, digest, length, deadline)

    def blob_exists(self, ref: Reference, digest: Digest, *, deadline: Deadline | None = None) -> bool:
        """Whether the registry itself, not a mirror, has the blob in *ref*'s repository."""
        return self._uploads.blob_exists(ref, digest, deadline or Deadline.never())

    def mount_blob(
        self, ref: Reference, digest: Digest, from_repository: str, *, deadline: Deadline | None = None
    ) -> bool:
        """Make a blob of *from_repository*, in the same registry, appear in *ref*'s; False if it has to be uploaded."""
        return self._uploads.mount(ref, digest, from_repository, deadline or Deadline.never())

    def upload_blob(
        self,
        ref: Reference,
        digest: Digest,
        size: int,
        open_stream: Callable[[], Iterable[bytes]],
        *,
        deadline: Deadline | None = None,
    ) -> None:
        """Upload *size* bytes that hash to *digest* in one request; *open_stream* gives them anew for each attempt."""
        self._uploads.monolithic(ref, digest, size, open_stream, deadline or Deadline.never())

    def upload_stream(
        self, ref: Reference, chunks: Iterable[bytes], *, deadline: Deadline | None = None
    ) -> tuple[Digest, int]:
        """Upload bytes whose length and digest are known only at their end; return both."""
        return self._uploads.chunked(ref, chunks, deadline or Deadline.never())

    def put_manifest(
        self, ref: Reference, body: bytes, media_type: str, *, deadline: Deadline | None = None
    ) -> Descriptor:
        """Store *body* under *ref*'s tag, or under its own digest if *ref* has no tag."""
        return self._uploads.put_manifest(ref, body, media_type, deadline or Deadline.never())

    def delete_manifest(self, ref: Reference, *, deadline: Deadline | None = None) -> None:
        """Delete the manifest with *ref*'s digest, or, where the registry can, its tag alone."""
        self._uploads.delete(ref, _manifest_path(ref), deadline or Deadline.never())

    def delete_blob(self, ref: Reference, digest: Digest, *, deadline: Deadline | None = None) -> None:
        """Delete a blob from *ref*'s repository."""
        self._uploads.delete(ref, f"{ref.repository}/blobs/{digest}", deadline or Deadline.never())

    def _run(self, ref: Reference, needed: Capability, attempt: Callable[[Endpoint], T], deadline: Deadline) -> T:
        return self._attempts.run(self._hosts.endpoints(ref.registry, needed), attempt, deadline)


def _fetched(ref: Reference, response: Response, body: bytes) -> FetchedManifest:
    if len(body) > MANIFEST_BYTES_MAX:
        raise FormatError("manifest", "size", f"more than {MANIFEST_BYTES_MAX} bytes")
    promised = ref.digest
    said = response.header("docker-content-digest")
    if promised is None and said:
        promised = _digest(said, "Docker-Content-Digest")
    if promised is not None:
        verifier = Verifier(promised, f"manifest {ref}")
        verifier.update(body)
        verifier.finish()
    media_type = response.header("content-type").partition(";")[0].strip()
    return FetchedManifest(Descriptor(media_type, promised or Digest.of(body), len(body)), body)


def _digest(text: str, where: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidArgument as error:
        raise FormatError("registry answer", where, str(error)) from error


def _manifest_path(ref: Reference) -> str:
    return f"{ref.repository}/manifests/{ref.digest or ref.tag}"


def _pull(ref: Reference) -> str:
    return f"repository:{ref.repository}:pull"
