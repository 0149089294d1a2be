"""Where the bytes of a blob come from: the small protocol that the layer store needs of a registry, and its implementation."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from apparate.errors import ApparateError, NotFound, Unavailable
from apparate.oci.reference import Reference
from apparate.registry.ranges import RangesUnsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from apparate.format.index import LayerIndex
    from apparate.oci.digest import Digest
    from apparate.registry.deadline import Deadline
    from apparate.registry.streams import BlobStream, RangeStream

_T = TypeVar("_T")
_UNPROVEN_SHARE: Final = 0.5
"""Of the time that is left, what a reference may take that has given nothing yet while there are others."""


class Body(Protocol):
    """A part of a blob while it arrives. Whatever it yields is unverified."""

    @property
    def offset(self) -> int:
        """Where in the blob the first byte lies, as the other side said."""
        ...

    @property
    def total_size(self) -> int | None:
        """Length of the whole blob, as the other side said; None if it did not."""
        ...

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes in order, in pieces of any size."""
        ...

    def distrust(self, reason: str) -> None:
        """Say that what this answer brought was wrong: who gave it is asked last for a while."""
        ...


class BlobSource(Protocol):
    """One blob that can be read in parts. Thread-safe; each open part has a connection of its own.

    Every method raises, besides `ApparateError` of its own: RangesUnsupported, Unavailable, RegistryError, NotFound.
    """

    @property
    def host(self) -> str:
        """Names whose latency and rate are measured together."""
        ...

    @property
    def proven(self) -> str:
        """The reference by which something was given last, "" if by none yet."""
        ...

    def range(self, offset: int, length: int, *, deadline: Deadline) -> AbstractContextManager[Body]:
        """Ask for the bytes [offset, offset + length)."""
        ...

    def tail(self, length: int, *, deadline: Deadline) -> AbstractContextManager[Body]:
        """Ask for the last *length* bytes, or all of a shorter blob. The body's total size is known."""
        ...

    def whole(self, *, deadline: Deadline) -> AbstractContextManager[Body]:
        """Ask for the blob from its first byte."""
        ...


class BlobClient(Protocol):
    """What is asked of a registry client (`apparate.registry.client.RegistryClient`, where the contracts stand)."""

    def blob(self, ref: Reference, digest: Digest, *, deadline: Deadline) -> BlobStream: ...

    def blob_range(
        self, ref: Reference, digest: Digest, offset: int, length: int, *, deadline: Deadline
    ) -> RangeStream: ...

    def blob_tail(self, ref: Reference, digest: Digest, length: int, *, deadline: Deadline) -> RangeStream: ...


class SourceFactory(Protocol):
    """Makes the source of a blob. *references* is called for each request: newest first, they can change."""

    def __call__(self, references: Callable[[], Sequence[str]], digest: Digest) -> BlobSource: ...


def distrusted(body: Body, reason: str) -> Unavailable:
    """Return the error that *body* is not what was asked for; the next answer comes from somebody else, if there is one."""
    body.distrust(reason)
    return Unavailable(reason)


class BlobSize:
    """What is known of a blob's length. Nothing proves what a registry has said of it, but that the members of *index* fit in."""

    def __init__(self, index: LayerIndex, said: int) -> None:
        """*said* by a registry before, 0 if by none."""
        last = index.member(index.member_count - 1) if index.member_count else None
        self._least = last.offset + last.length if last is not None else 0
        self._said = said if said >= self._least else 0

    def check(self, body: Body) -> None:
        """Distrust who says another length. What he gives may be right all the same, and is verified."""
        size = body.total_size
        if size is not None and (size < self._least or (self._said and size != self._said)):
            body.distrust(f"registry says that the layer has {size} bytes, not {self._said or self._least} or more")


class _WholeBody:
    """A whole blob in the shape of a part."""

    def __init__(self, stream: BlobStream) -> None:
        self._stream = stream

    @property
    def offset(self) -> int:
        return 0

    @property
    def total_size(self) -> int | None:
        return self._stream.size

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def distrust(self, reason: str) -> None:
        self._stream.distrust(reason)


class RegistrySource:
    """A blob in a registry, under any of the references it was resolved with. Thread-safe.

    A blob is the same in every repository that has it, so when one does not give it (deleted, credentials gone, registry
    dead), the next reference is asked before anyone sees an error. The one that gave something last is asked first, however
    many others the layer was resolved with since.
    """

    def __init__(self, client: BlobClient, references: Callable[[], Sequence[str]], digest: Digest) -> None:
        self._client = client
        self._references = references
        self._digest = digest
        self.proven = ""
        """The reference that gave something last; asked first."""
        self._doubted = ""  # failed last; asked last

    @property
    def host(self) -> str:
        """The registry of the reference that is asked first."""
        return Reference.parse(self._ordered()[0]).registry

    @contextmanager
    def range(self, offset: int, length: int, *, deadline: Deadline) -> Iterator[Body]:
        """Ask for a part."""
        with self._first(
            lambda ref, until: self._client.blob_range(ref, self._digest, offset, length, deadline=until), deadline
        ) as body:
            yield body

    @contextmanager
    def tail(self, length: int, *, deadline: Deadline) -> Iterator[Body]:
        """Ask for the end."""
        with self._first(
            lambda ref, until: self._client.blob_tail(ref, self._digest, length, deadline=until), deadline
        ) as body:
            yield body

    @contextmanager
    def whole(self, *, deadline: Deadline) -> Iterator[Body]:
        """Ask for everything; the digest is checked by whoever reads it to the end."""
        with self._first(lambda ref, until: self._client.blob(ref, self._digest, deadline=until), deadline) as stream:
            yield _WholeBody(stream)

    def _ordered(self) -> list[str]:
        return sorted(self._references(), key=lambda text: (text != self.proven, text == self._doubted))

    @contextmanager
    def _first(
        self, opened: Callable[[Reference, Deadline], AbstractContextManager[_T]], deadline: Deadline
    ) -> Iterator[_T]:
        failures: list[ApparateError] = []
        ordered = self._ordered()
        for text in ordered:
            alone = text in (self.proven, ordered[-1])
            until = deadline if alone else deadline.capped(deadline.remaining() * _UNPROVEN_SHARE)
            with ExitStack() as stack:
                try:
                    body = stack.enter_context(opened(Reference.parse(text), until))
                except ApparateError as error:
                    self._doubt(text)
                    failures.append(error.anew())
                    continue
                self.proven = text
                try:
                    yield body
                except ApparateError as error:
                    self._doubt(text)
                    # What lies below keeps its errors, and with the traceback the frames of whoever reads.
                    raise error.with_traceback(None)  # noqa: B904 - it is the same one
                return
        failure = _verdict(failures) or NotFound(f"layer {self._digest} has no reference to fetch it by")
        failures.clear()
        try:
            raise failure
        finally:  # else this frame holds the error that holds this frame, and those of its callers
            del failure

    def _doubt(self, text: str) -> None:
        self._doubted = text
        if self.proven == text:
            self.proven = ""


def _verdict(failures: Sequence[ApparateError]) -> ApparateError | None:
    """Return the failure that leaves most hope: who has the blob but no ranges, then what may be better later, then the last."""
    whole_only = [error for error in failures if isinstance(error, RangesUnsupported)]
    temporary = [error for error in failures if error.temporary]
    return next(iter(whole_only + temporary + list(failures[-1:])), None)
