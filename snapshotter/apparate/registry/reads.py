"""Reading blobs: whole, a range, the end; from whichever endpoint has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from apparate.errors import InvalidArgument, RegistryError, Unavailable
from apparate.oci.digest import Digest, Verifier
from apparate.registry.endpoint import Capability
from apparate.registry.exchange import Call
from apparate.registry.ranges import Piece, RangesUnsupported, check_blob, range_header, ranged, ranged_tail
from apparate.registry.redact import redact_url
from apparate.registry.streams import BlobStream, Chunks, RangeStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from apparate.oci.reference import Reference
    from apparate.registry.attempts import Attempts
    from apparate.registry.breakers import Breakers
    from apparate.registry.deadline import Deadline
    from apparate.registry.endpoint import Endpoint
    from apparate.registry.exchange import Exchange
    from apparate.registry.hosts import HostTable
    from apparate.registry.transport import Response

T = TypeVar("T")
_SUFFIX_REFUSED = frozenset({400, 416, 501})
"""What servers answer that know ranges and do not know a range counted from the end."""


class Reads:
    """Opens streams of blobs; thread-safe."""

    def __init__(self, exchange: Exchange, attempts: Attempts, breakers: Breakers, hosts: HostTable) -> None:
        self.exchange = exchange
        self.attempts = attempts
        self.breakers = breakers
        self.hosts = hosts

    def whole(self, ref: Reference, digest: Digest, deadline: Deadline, *, verify: bool) -> BlobStream:
        """See RegistryClient.blob."""
        source = _Source(self, ref, digest, deadline)
        piece = source.ask("", _whole)
        return BlobStream(piece.chunks, piece.total, source, Verifier(digest) if verify else None)

    def range(self, ref: Reference, digest: Digest, offset: int, length: int, deadline: Deadline) -> RangeStream:
        """See RegistryClient.blob_range."""
        if offset < 0 or length <= 0:
            raise InvalidArgument(f"range at {offset} of {length} bytes")
        source = _Source(self, ref, digest, deadline)
        piece = source.ask(range_header(offset, length), lambda response: ranged(response, offset, length))
        return RangeStream(piece.chunks, piece.offset, piece.length, piece.total, source)

    def tail(self, ref: Reference, digest: Digest, length: int, deadline: Deadline) -> RangeStream:
        """See RegistryClient.blob_tail."""
        if length <= 0:
            raise InvalidArgument(f"tail of {length} bytes")
        source = _Source(self, ref, digest, deadline)
        try:
            piece = source.ask(f"bytes=-{length}", lambda response: ranged_tail(response, length))
        except (RangesUnsupported, RegistryError) as error:
            if isinstance(error, RegistryError) and error.status not in _SUFFIX_REFUSED:
                raise
            # The size comes from a range, not from HEAD: a signed address that allows GET may refuse HEAD.
            with self.range(ref, digest, 0, 1, deadline) as probe:
                size = probe.total_size
            return self.range(ref, digest, max(size - length, 0), min(size, length), deadline)
        return RangeStream(piece.chunks, piece.offset, piece.length, piece.total, source)


class _Source:
    """Where one stream comes from (see streams.Origin)."""

    def __init__(self, reads: Reads, ref: Reference, digest: Digest, deadline: Deadline) -> None:
        self._reads = reads
        self._ref = ref
        self._digest = digest
        self._deadline = deadline
        self._endpoint: Endpoint | None = None
        self._broken: set[Endpoint] = set()
        self._start = 0
        self._length = 0
        self._total = 0

    def ask(self, range_value: str, use: Callable[[Response], Piece]) -> Piece:
        """Return what *use* makes of the first answer that fits; *range_value* is the Range header, empty for none."""
        piece = self._opened(range_value, use)
        self._start, self._length, self._total = piece.offset, piece.length, piece.total
        return piece

    def reopen(self, done: int, error: Unavailable) -> Chunks:
        """See streams.Origin."""
        if self._endpoint is not None:
            self._reads.breakers.failed(self._endpoint, error)
            self._broken.add(self._endpoint)
        offset, length = self._start + done, self._length - done
        try:
            piece = self._opened(range_header(offset, length), lambda response: ranged(response, offset, length))
        except RangesUnsupported:
            raise error from None  # it can only be begun anew, which is the reader's to decide
        if piece.total != self._total or piece.length != length:
            piece.chunks.close()
            raise Unavailable(f"blob {self._digest}: it had {self._total} bytes, now it has {piece.total}")
        return piece.chunks

    def finished(self) -> None:
        """See streams.Origin."""
        if self._endpoint is not None:
            self._reads.breakers.answered(self._endpoint)

    def distrust(self, reason: str) -> None:
        """See streams.Origin."""
        if self._endpoint is not None:
            self._reads.breakers.distrusted(self._endpoint, reason)

    def _opened(self, range_value: str, use: Callable[[Response], Piece]) -> Piece:
        call = Call(
            "GET",
            f"{self._ref.repository}/blobs/{self._digest}",
            headers=(("Range", range_value),) if range_value else (),
            scopes=(f"repository:{self._ref.repository}:pull",),
            accepted=frozenset({200, 206}) if range_value else frozenset({200}),
            keep_target=True,
        )

        def attempt(endpoint: Endpoint) -> Piece:
            response = self._reads.exchange.perform(endpoint, call, self._deadline)
            try:
                piece = use(response)
            except BaseException:
                response.close()
                raise
            self._endpoint = endpoint
            return piece

        endpoints = self._reads.hosts.endpoints(self._ref.registry, Capability.PULL)
        # One that broke off may do so again at the same byte: others go first for the rest of this stream.
        endpoints = tuple(sorted(endpoints, key=self._broken.__contains__))
        return self._reads.attempts.run(endpoints, attempt, self._deadline, confirms=False)


def _whole(response: Response) -> Piece:
    check_blob(response)
    size = response.content_length
    if size is None:
        raise Unavailable(f"GET {redact_url(response.url)}: the answer does not say how long the blob is")
    return Piece(0, size, size, response)
