"""The writing half of the client (distribution specification, "Push")."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode

from apparate.errors import ApparateError, FailedPrecondition, FormatError, IntegrityError, NotFound, Unavailable
from apparate.oci.digest import Digest
from apparate.oci.manifest import Descriptor
from apparate.registry.answers import redirected
from apparate.registry.endpoint import Capability, Endpoint
from apparate.registry.exchange import Call
from apparate.registry.redact import redact_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from apparate.oci.reference import Reference
    from apparate.registry.attempts import Attempts
    from apparate.registry.deadline import Deadline
    from apparate.registry.exchange import Exchange
    from apparate.registry.hosts import HostTable
    from apparate.registry.transport import Response

T = TypeVar("T")

CHUNK_BYTES = 16 * 1024 * 1024
"""Size of a chunk of a chunked upload; one is kept in memory, to be sent again after a failure."""


class SessionLost(FailedPrecondition):
    """A chunked upload cannot be resumed; only whoever has its bytes from the start can begin anew."""


_OCTETS = ("Content-Type", "application/octet-stream")


class Uploads:
    """Writes to a registry itself, never to a mirror that was not given the capability `push`."""

    def __init__(self, exchange: Exchange, attempts: Attempts, hosts: HostTable) -> None:
        self._exchange = exchange
        self._attempts = attempts
        self._hosts = hosts

    def blob_exists(self, ref: Reference, digest: Digest, deadline: Deadline) -> bool:
        """See RegistryClient."""
        call = Call("HEAD", f"{ref.repository}/blobs/{digest}", scopes=_scopes(ref))
        try:
            self._run(ref, lambda endpoint: self._done(endpoint, call, deadline), deadline)
        except NotFound:
            return False
        return True

    def mount(self, ref: Reference, digest: Digest, from_repository: str, deadline: Deadline) -> bool:
        """See RegistryClient."""
        call = Call(
            "POST",
            f"{ref.repository}/blobs/uploads/",
            query=(("mount", str(digest)), ("from", from_repository)),
            headers=(("Content-Length", "0"),),
            scopes=(*_scopes(ref), f"repository:{from_repository}:pull"),
            accepted=frozenset({201, 202}),
            follow=False,
        )

        def attempt(endpoint: Endpoint) -> bool:
            with self._exchange.perform(endpoint, call, deadline) as response:
                if response.status == 201:
                    return True
                session = _location(response)
            # 202: not mounted, an upload began instead. Ending it is a courtesy; sessions expire by themselves.
            with contextlib.suppress(ApparateError):
                self._done(endpoint, _session_call("DELETE", ref, session, frozenset({204, 202, 200})), deadline)
            return False

        return self._run(ref, attempt, deadline)

    def monolithic(
        self,
        ref: Reference,
        digest: Digest,
        size: int,
        open_stream: Callable[[], Iterable[bytes]],
        deadline: Deadline,
    ) -> None:
        """See RegistryClient."""

        def attempt(endpoint: Endpoint) -> None:
            session = self._begin(endpoint, ref, deadline)
            call = _session_call(
                "PUT",
                ref,
                _with_query(session, digest=str(digest)),
                frozenset({201, 204}),
                headers=(_OCTETS, ("Content-Length", str(size))),
                body=lambda: _exactly(open_stream(), size, deadline),
            )
            self._done(endpoint, call, deadline)

        self._run(ref, attempt, deadline)

    def chunked(self, ref: Reference, chunks: Iterable[bytes], deadline: Deadline) -> tuple[Digest, int]:
        """See RegistryClient."""
        endpoint = self._endpoints(ref)[0]
        session = self._attempts.run([endpoint], lambda it: self._begin(it, ref, deadline), deadline)
        sha256, offset = hashlib.sha256(), 0
        for chunk in _regrouped(chunks, CHUNK_BYTES):
            sha256.update(chunk)
            session = self._send_chunk(endpoint, ref, session, offset, chunk, deadline)
            offset += len(chunk)
        digest = Digest("sha256", sha256.hexdigest())
        call = _session_call(
            "PUT",
            ref,
            _with_query(session, digest=str(digest)),
            frozenset({201, 204}),
            headers=(_OCTETS, ("Content-Length", "0")),
        )
        self._attempts.run([endpoint], lambda it: self._done(it, call, deadline), deadline)
        return digest, offset

    def put_manifest(self, ref: Reference, body: bytes, media_type: str, deadline: Deadline) -> Descriptor:
        """See RegistryClient."""
        descriptor = Descriptor.of(body, media_type)
        if ref.digest is not None and ref.digest != descriptor.digest:
            raise IntegrityError(f"manifest {ref}", str(ref.digest), str(descriptor.digest))
        call = Call(
            "PUT",
            f"{ref.repository}/manifests/{ref.tag or descriptor.digest}",
            headers=(("Content-Type", media_type),),
            body=lambda: body,
            scopes=_scopes(ref),
            accepted=frozenset({200, 201, 202}),
            follow=False,
        )
        said = self._run(ref, lambda endpoint: self._done(endpoint, call, deadline), deadline)
        if said and said != str(descriptor.digest):
            raise IntegrityError(f"manifest {ref} as stored", str(descriptor.digest), said[:140])
        return descriptor

    def delete(self, ref: Reference, path: str, deadline: Deadline) -> None:
        """See RegistryClient."""
        scopes = (f"repository:{ref.repository}:delete,pull",)
        call = Call("DELETE", path, scopes=scopes, accepted=frozenset({200, 202, 204}))
        self._run(ref, lambda endpoint: self._done(endpoint, call, deadline), deadline)

    def _begin(self, endpoint: Endpoint, ref: Reference, deadline: Deadline) -> str:
        """Start an upload session and return its Location."""
        call = Call(
            "POST",
            f"{ref.repository}/blobs/uploads/",
            headers=(("Content-Length", "0"),),
            scopes=_scopes(ref),
            accepted=frozenset({202}),
            follow=False,
        )
        with self._exchange.perform(endpoint, call, deadline) as response:
            return _location(response)

    def _send_chunk(
        self, endpoint: Endpoint, ref: Reference, session: str, offset: int, chunk: bytes, deadline: Deadline
    ) -> str:
        """Append *chunk* at *offset*, asking after a failure how much arrived; return the Location for the next."""
        location, sent, failed = session, 0, False

        def attempt(target: Endpoint) -> str:
            nonlocal location, sent, failed
            if failed:
                location, sent = self._status(target, ref, location, offset, len(chunk), deadline)
                if sent == len(chunk):
                    return location
            failed = True
            call = _session_call(
                "PATCH",
                ref,
                location,
                frozenset({202, 201, 204}),
                headers=(
                    _OCTETS,
                    ("Content-Range", f"{offset + sent}-{offset + len(chunk) - 1}"),
                    ("Content-Length", str(len(chunk) - sent)),
                ),
                body=lambda: _exactly([chunk[sent:]], len(chunk) - sent, deadline),
            )
            with self._exchange.perform(target, call, deadline) as response:
                return _location(response)

        return self._attempts.run([endpoint], attempt, deadline)

    def _status(
        self, endpoint: Endpoint, ref: Reference, session: str, offset: int, length: int, deadline: Deadline
    ) -> tuple[str, int]:
        """Return the session's Location and how many of *length* bytes after *offset* the registry has."""
        call = _session_call("GET", ref, session, frozenset({204, 202, 200}))
        try:
            answer = self._exchange.perform(endpoint, call, deadline)
        except NotFound as error:
            # CNCF Distribution keeps the offset in the Location, and drops a session that is asked about with an old one.
            raise SessionLost(
                f"{ref.name}: the registry has dropped the upload after a failure; upload again"
            ) from error
        with answer as response:
            first, dash, last = response.header("range").rpartition("=")[2].partition("-")
            if dash and not (first.isdigit() and last.isdigit()):
                raise FormatError("registry answer", "Range", f"{response.header('range')[:80]!r} does not parse")
            # Distribution says 0-0 for a session without any byte.
            received = int(last) + 1 if dash and last != "0" else 0
            location = response.header("location")
            moved = redirected(response.url, location) if location else session
        if not offset <= received <= offset + length:
            raise FormatError(
                "registry answer", "Range", f"the upload has {received} bytes, {offset} were acknowledged"
            )
        return moved, received - offset

    def _done(self, endpoint: Endpoint, call: Call, deadline: Deadline) -> str:
        """Perform *call* for its effect; return the digest the registry names."""
        with self._exchange.perform(endpoint, call, deadline) as response:
            return response.header("docker-content-digest")

    def _endpoints(self, ref: Reference) -> tuple[Endpoint, ...]:
        # Like containerd, which pushes to the first host that may be pushed to and to no other.
        endpoints = self._hosts.endpoints(ref.registry, Capability.PUSH)[:1]
        if not endpoints:
            raise NotFound(f"no host in hosts.toml of {ref.registry} has the capability push")
        return endpoints

    def _run(self, ref: Reference, attempt: Callable[[Endpoint], T], deadline: Deadline) -> T:
        return self._attempts.run(self._endpoints(ref), attempt, deadline)


def _scopes(ref: Reference) -> tuple[str, ...]:
    return (f"repository:{ref.repository}:pull,push",)


def _session_call(
    method: str,
    ref: Reference,
    url: str,
    accepted: frozenset[int],
    *,
    headers: tuple[tuple[str, str], ...] = (),
    body: Callable[[], Iterable[bytes]] | None = None,
) -> Call:
    return Call(method, "", headers=headers, body=body, scopes=_scopes(ref), accepted=accepted, url=url, follow=False)


def _location(response: Response) -> str:
    """Return the absolute URL of the upload session named by *response*."""
    location = response.header("location")
    if not location:
        raise Unavailable(f"{response.method} {redact_url(response.url)}: the answer has no Location")
    return redirected(response.url, location)


def _with_query(url: str, **more: str) -> str:
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}{urlencode(more, safe=':')}"


def _exactly(pieces: Iterable[bytes], size: int, deadline: Deadline) -> Iterator[bytes]:
    """Yield *pieces*; raise IntegrityError when they are not *size* bytes, so that no short body is ever completed."""
    count = 0
    for piece in _readable(pieces):
        deadline.check("upload")
        count += len(piece)
        if count > size:
            break
        yield piece
    if count != size:
        raise IntegrityError("upload source", f"{size} bytes", f"{count} bytes" if count < size else "more")


def _readable(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield *pieces*; a local file that fails must not be taken for a connection that broke and be tried again."""
    try:
        yield from pieces
    except OSError as error:
        raise FailedPrecondition(f"what is to be uploaded cannot be read: {error.strerror or error}") from error


def _regrouped(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the bytes of *chunks* in pieces of *size*, the last one shorter."""
    held = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        while len(view):
            part = view[: size - len(held)]
            held += part
            view = view[len(part) :]
            if len(held) == size:
                yield bytes(held)
                held.clear()
    if held:
        yield bytes(held)
