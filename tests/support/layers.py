"""Layers for tests of the layer store: built in memory member by member, and a registry without a network.

`FakeBlob` passes tests/conformance/test_layer.py together with the client of a real registry.
"""

from __future__ import annotations

import gzip
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256

from apparate.errors import ApparateError
from apparate.format.embedding import IndexLocation, embed
from apparate.format.index import build_index
from apparate.format.prefetch import PrefetchRange
from apparate.format.toc import Chunk, Compression, Entry, EntryType, Member, TableOfContents
from apparate.layer.source import BlobSource, Body
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.registry.deadline import Deadline

HEADER_BYTES = 512


@dataclass(frozen=True)
class BuiltLayer:
    """A layer with an embedded index: the blob, its annotations, and what its files must read as."""

    blob: bytes
    annotations: dict[str, str]
    files: dict[bytes, bytes]
    toc: TableOfContents

    @property
    def digest(self) -> Digest:
        return Digest.of(self.blob)


def incompressible(length: int, seed: int) -> bytes:
    """Return *length* bytes that do not compress, the same for the same *seed*."""
    return random.Random(seed).randbytes(length)


def build_layer(
    files: dict[bytes, bytes], *, member_bytes: int = 64 * 1024, profile: Sequence[PrefetchRange] = ()
) -> BuiltLayer:
    """Return a gzip layer: large files cut into members, small ones sharing members, an embedded index behind them."""
    blob, entries = bytearray(), [Entry(b"", EntryType.DIR, 0o755)]
    members: list[Member] = []
    pending: list[tuple[bytes, bytes]] = []

    def flush() -> list[tuple[bytes, Chunk]]:
        chunks, raw = [], bytearray()
        for name, data in pending:
            chunks.append((name, Chunk(0, len(data), sha256(data).digest(), len(members), len(raw))))
            raw += data + bytes(-len(data) % 512) + bytes(HEADER_BYTES)
        if raw:
            _add_member(blob, members, bytes(raw))
        pending.clear()
        return chunks

    made: dict[bytes, list[Chunk]] = {}
    for name, data in files.items():
        if not data:
            made[name] = []
        elif len(data) < member_bytes:
            if sum(len(other) for _, other in pending) + len(data) > member_bytes:
                made.update((owner, [chunk]) for owner, chunk in flush())
            pending.append((name, data))
            made[name] = []
        else:
            made.update((owner, [chunk]) for owner, chunk in flush())
            made[name] = []
            for offset in range(0, len(data), member_bytes):
                part = data[offset : offset + member_bytes]
                made[name].append(Chunk(offset, len(part), sha256(part).digest(), len(members)))
                _add_member(blob, members, part)
    made.update((owner, [chunk]) for owner, chunk in flush())
    entries += [
        Entry(name, EntryType.REG, 0o644, size=len(data), chunks=tuple(made[name])) for name, data in files.items()
    ]
    toc = TableOfContents(entries, members, Compression.GZIP)
    region = embed(build_index(toc, profile=profile), Compression.GZIP)
    location = IndexLocation.of(region, len(blob))
    blob += region + gzip.compress(b"the end", mtime=0)
    return BuiltLayer(bytes(blob), {names.INDEX: location.to_annotation()}, dict(files), toc)


def _add_member(blob: bytearray, members: list[Member], raw: bytes) -> None:
    packed = gzip.compress(raw, 6, mtime=0)
    members.append(Member(len(blob), len(packed), len(raw)))
    blob += packed


@dataclass
class FakeBody:
    """A part of a blob that arrives in pieces."""

    data: bytes
    offset: int
    total_size: int | None
    step: int = 16 * 1024
    distrusted: str = ""

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self.data), self.step):
            yield self.data[start : start + self.step]

    def distrust(self, reason: str) -> None:
        """Remember it."""
        self.distrusted = reason


@dataclass
class FakeRegistry:
    """Holds blobs; every request is recorded, and can be spoilt by `fault`."""

    blobs: dict[Digest, bytes] = field(default_factory=dict)
    requests: list[tuple[int, int]] = field(default_factory=list)
    fault: Callable[[int, int, bytes], Body | None] | None = None
    """Called with (offset, length, right answer); may raise, or return another answer."""
    gone: set[str] = field(default_factory=set)
    """References that give nothing: the next one does."""
    asked_by: list[str] = field(default_factory=list)
    """The references of the last request, in the order in which they are tried."""

    def add(self, layer: BuiltLayer) -> Digest:
        self.blobs[layer.digest] = layer.blob
        return layer.digest

    @property
    def fetched_bytes(self) -> int:
        return sum(length for _, length in self.requests)

    def fetched_twice(self) -> int:
        """Return how many bytes of the blob were asked for more than once."""
        twice, end = 0, 0
        for offset, length in sorted(self.requests):
            twice += max(0, min(end, offset + length) - offset)
            end = max(end, offset + length)
        return twice

    def source(self, references: Callable[[], Sequence[str]], digest: Digest) -> BlobSource:
        return FakeBlob(self, references, digest)


class FakeBlob:
    """One blob of a FakeRegistry."""

    def __init__(self, registry: FakeRegistry, references: Callable[[], Sequence[str]], digest: Digest) -> None:
        self._registry = registry
        self._references = references
        self._digest = digest
        self._lock = threading.Lock()
        self.proven = ""

    @property
    def host(self) -> str:
        return "registry.test"

    @contextmanager
    def range(self, offset: int, length: int, *, deadline: Deadline) -> Iterator[Body]:
        yield self._answer(offset, length, deadline)

    @contextmanager
    def tail(self, length: int, *, deadline: Deadline) -> Iterator[Body]:
        size = len(self._registry.blobs[self._digest])
        yield self._answer(max(0, size - length), min(size, length), deadline)

    @contextmanager
    def whole(self, *, deadline: Deadline) -> Iterator[Body]:
        yield self._answer(0, len(self._registry.blobs[self._digest]), deadline)

    def _answer(self, offset: int, length: int, deadline: Deadline) -> Body:
        deadline.check()
        self._registry.asked_by = list(self._references())
        self.proven = next((text for text in self._registry.asked_by if text not in self._registry.gone), "")
        blob = self._registry.blobs[self._digest]
        right = blob[offset : offset + length]
        with self._lock:
            self._registry.requests.append((offset, length))
        if self._registry.fault is not None:
            other = self._registry.fault(offset, length, right)
            if other is not None:
                return other
        return FakeBody(right, offset, len(blob))


class Refused(ApparateError):
    """What a test makes a FakeRegistry raise."""

    temporary = True
