"""The proof that a new layer is what it should be, from the bytes of the finished blob and nothing else.

    TOC == tar      every entry of the tar, in order, with every attribute, is in the TOC, and nothing else; each chunk of the
                    TOC lies where the tar has those bytes of that file, and hashes to its digest
    TOC == index    the embedded index equals the one that is built from the TOC; every member inflates to the length it says
    tar == plan     what the tar holds is what was planned from the source's entries

Reading the blob as an unpacker does gives the DiffID, of the very bytes that will be uploaded (their digest is checked). The members are inflated by the function that nodes use.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from apparate.convert.inflate import inflate
from apparate.convert.ordered import in_order
from apparate.convert.pieces import read_exactly
from apparate.errors import FormatError, IntegrityError
from apparate.format.embedding import extract
from apparate.format.estargz import reader as estargz
from apparate.format.index.build import build_tables
from apparate.format.index.wire import unpack_tables
from apparate.format.inflate import inflate_member
from apparate.format.tar import EntryHeader, TarParser
from apparate.format.toc import TOC_ENTRY_NAME, Compression
from apparate.format.zstd_chunked import reader as zstd_chunked
from apparate.oci.digest import Digest, Verifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from apparate.convert.layer import WrittenLayer
    from apparate.format.index.tables import IndexTables
    from apparate.format.prefetch import PrefetchRange
    from apparate.format.toc import Chunk, Entry, TableOfContents

FORMAT: Final = "converted layer"
BATCH_BYTES: Final = 512 * 1024
"""Uncompressed bytes given to a thread at once."""
BATCHES_AHEAD: Final = 4
GAP_READ_BYTES: Final = 256 * 1024
#: What a TOC can say of a time: RFC 3339 has years 1 to 9999; others are left out (docs/formats/estargz.md).
_TIME_FIRST_NS: Final = -62135596800 * 10**9
_TIME_END_NS: Final = 253402300800 * 10**9


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found while proving a layer."""

    diff_id: Digest
    raw_size: int
    entries: int
    members: int
    prefetch_size: int
    """Compressed bytes in front of the landmark."""


def prove(
    written: WrittenLayer,
    prefetch: Sequence[PrefetchRange] | None,
    pool: ThreadPoolExecutor,
    workers: int,
    advance: Callable[[int, int], None],
) -> Proof:
    """Prove the layer in *written*; *advance* is told (compressed bytes done, of how many).

    Raises:
        FormatError, IntegrityError: the layer is not what it should be; it must not be used.
    """
    toc = _read_toc(written)
    tables = _check_index(written, toc, prefetch)
    walk = _Walk(written, toc, tables, pool, workers, advance)
    walk.run()
    front = toc.prefetch_members()
    return Proof(
        diff_id=walk.diff_id,
        raw_size=walk.raw_size,
        entries=len(toc.entries),
        members=len(tables.member_offset),
        prefetch_size=toc.members[front].offset if front else 0,
    )


def _read_toc(written: WrittenLayer) -> TableOfContents:
    reader = estargz if written.compression is Compression.GZIP else zstd_chunked
    size = written.descriptor.size
    tail_bytes = min(size, reader.TAIL_BYTES)
    location = reader.locate(read_exactly(written.fd, size - tail_bytes, tail_bytes), size)
    if location is None:
        raise FormatError(FORMAT, "footer", "is not found")
    compressed = read_exactly(written.fd, location.offset, location.length)
    parse_toc = estargz.parse_toc if reader is estargz else zstd_chunked.parse_toc
    return parse_toc(compressed, location, written.toc_digest, data_end=written.index.offset)


def _check_index(written: WrittenLayer, toc: TableOfContents, prefetch: Sequence[PrefetchRange] | None) -> IndexTables:
    """Hold the embedded index against the one built from *toc*; return it."""
    region = read_exactly(written.fd, written.index.offset, written.index.length)
    written.index.verify(region)
    found = unpack_tables(extract(region, written.compression))
    made = build_tables(toc, profile=prefetch or (), toc_digest=written.toc_digest.raw)
    for name in found.__slots__:
        if name not in {"member_length", "member_raw"} and not _equal(getattr(found, name), getattr(made, name)):
            raise FormatError(FORMAT, f"index.{name}", "differs from what the TOC says")
    # A TOC tells only where the next member begins; how long this one is, inflating it will tell.
    if any(length > most for length, most in zip(found.member_length, made.member_length, strict=True)):
        raise FormatError(FORMAT, "index.member_length", "reaches into the next member")
    return found


def _equal(one: object, other: object) -> bool:
    if isinstance(one, bytes | memoryview):
        return one == other
    return (
        list(one) == list(other) if isinstance(one, list | array) and isinstance(other, list | array) else one == other
    )


def _same_entry(tar: Entry, toc: Entry) -> bool:
    mtime_ns = tar.mtime_ns if _TIME_FIRST_NS <= tar.mtime_ns < _TIME_END_NS else 0
    return _attributes(tar) == _attributes(toc) and toc.mtime_ns == mtime_ns


def _attributes(entry: Entry) -> tuple[object, ...]:
    return (
        entry.path,
        entry.type,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.size,
        entry.link,
        entry.xattrs,
        entry.devmajor,
        entry.devminor,
    )


@dataclass(frozen=True, slots=True)
class _Segment:
    """Member number *member* of the blob and what the TOC promises of it."""

    member: int
    offset: int
    length: int
    raw_length: int
    """0: all that there is."""
    chunks: list[Chunk]


class _Walk:
    """One pass over the blob in its order."""

    def __init__(
        self,
        written: WrittenLayer,
        toc: TableOfContents,
        tables: IndexTables,
        pool: ThreadPoolExecutor,
        workers: int,
        advance: Callable[[int, int], None],
    ) -> None:
        self._written = written
        self._toc = toc
        self._tables = tables
        self._pool = pool
        self._ahead = workers * BATCHES_AHEAD
        self._advance = advance
        self._hasher = hashlib.sha256()
        self._blob = Verifier(written.descriptor.digest, "converted layer")
        self._parser = TarParser(payload=False)
        self._seen = 0
        #: Where in the tar each member begins, and the data of each entry.
        self._starts = array("q")
        self._payloads = array("q")
        self.raw_size = 0

    @property
    def diff_id(self) -> Digest:
        """Of all that has been read."""
        return Digest("sha256", self._hasher.hexdigest())

    def run(self) -> None:
        """Read everything, then compare what only the end can tell."""
        end = 0
        for run in self._runs():
            self._gap(end, run[0].offset)
            jobs = (self._pool.submit(self._inflate, batch) for batch in _batches(run))
            for data, members in in_order(jobs, self._ahead):
                self._blob.update(data)
                for raw in members:
                    self._starts.append(self.raw_size)
                    self._take(raw)
            end = run[-1].offset + run[-1].length
            self._advance(end, self._written.descriptor.size)
        self._gap(end, self._written.descriptor.size)
        self._advance(self._written.descriptor.size, self._written.descriptor.size)
        self._parser.finish()
        self._blob.finish()
        if self._seen != len(self._toc.entries):
            raise FormatError(FORMAT, "TOC", f"has {len(self._toc.entries)} entries, the tar {self._seen}")
        self._check_places()

    def _runs(self) -> Iterator[list[_Segment]]:
        """Yield the members in lists; inside of one they lie back to back."""
        chunks: list[list[Chunk]] = [[] for _ in self._toc.members]
        for entry in self._toc.entries:
            for chunk in entry.chunks:
                chunks[chunk.member].append(chunk)
        tables = self._tables
        exact = dict(zip(tables.member_offset, zip(tables.member_length, tables.member_raw, strict=True), strict=True))
        run: list[_Segment] = []
        end = -1
        for number, (member, promised) in enumerate(zip(self._toc.members, chunks, strict=True)):
            # The index has no members of landmarks: of these it is known only where the next one begins.
            length, raw_length = exact.get(member.offset, (member.length, 0))
            if run and member.offset != end:
                yield run
                run = []
            run.append(_Segment(number, member.offset, length, raw_length, promised))
            end = member.offset + length
        if run:
            yield run

    def _inflate(self, batch: Sequence[_Segment]) -> tuple[memoryview, list[bytes]]:
        """Return the bytes of members and what they inflate to, each chunk held against its digest; in a thread of the pool."""
        first, last = batch[0], batch[-1]
        data = memoryview(read_exactly(self._written.fd, first.offset, last.offset + last.length - first.offset))
        inflated = []
        for segment in batch:
            at = segment.offset - first.offset
            raw = self._raw(segment, data[at : at + segment.length])
            view = memoryview(raw)
            for chunk in segment.chunks:
                actual = hashlib.sha256(view[chunk.inner_offset : chunk.inner_offset + chunk.length]).digest()
                if actual != chunk.digest:
                    raise IntegrityError(f"chunk in member {segment.member}", chunk.digest.hex(), actual.hex())
            inflated.append(raw)
        return data, inflated

    def _raw(self, segment: _Segment, data: memoryview) -> bytes:
        if not segment.raw_length:
            return b"".join(inflate((bytes(data),)))
        return inflate_member(self._written.compression, data, segment.raw_length, segment.raw_length)

    def _gap(self, start: int, end: int) -> None:
        """Take what lies between members: those that hold only headers, the embedded index, TOC and footer."""
        offsets = range(start, end, GAP_READ_BYTES)
        for raw in inflate(self._read(at, min(GAP_READ_BYTES, end - at)) for at in offsets):
            self._take(raw)

    def _read(self, offset: int, length: int) -> bytes:
        data = read_exactly(self._written.fd, offset, length)
        self._blob.update(data)
        return data

    def _take(self, raw: bytes) -> None:
        """Take the next bytes of the tar."""
        self._hasher.update(raw)
        self.raw_size += len(raw)
        for event in self._parser.feed(raw):
            if isinstance(event, EntryHeader) and event.entry.path != TOC_ENTRY_NAME:
                self._compare(event)

    def _compare(self, event: EntryHeader) -> None:
        number, path = self._seen, event.entry.path
        self._seen += 1
        if number >= len(self._toc.entries) or not _same_entry(event.entry, self._toc.entries[number]):
            raise FormatError(FORMAT, "TOC", f"entry {number} differs from the tar's {path!r:.200}")
        planned = self._written.entries[number]
        if _attributes(event.entry) != _attributes(planned) or event.entry.mtime_ns != planned.mtime_ns:
            raise FormatError(FORMAT, "tar", f"{path!r:.200} differs from the source's entry")
        if event.runs is not None:
            raise FormatError(FORMAT, "tar", f"{path!r:.200} is a sparse file; readers of a TOC do not know these")
        self._payloads.append(event.payload_offset)

    def _check_places(self) -> None:
        """Hold the place of each chunk, by the TOC, against the place of the file's data in the tar."""
        for entry, payload in zip(self._toc.entries, self._payloads, strict=True):
            at = 0
            for chunk in entry.chunks:
                if self._starts[chunk.member] + chunk.inner_offset != payload + chunk.offset or chunk.offset != at:
                    raise FormatError(FORMAT, "TOC", f"a chunk of {entry.path!r:.200} is not where the tar has it")
                at += chunk.length
            if at != entry.size:
                raise FormatError(FORMAT, "TOC", f"the chunks of {entry.path!r:.200} have {at} of {entry.size} bytes")


def _batches(run: Sequence[_Segment]) -> Iterator[list[_Segment]]:
    batch: list[_Segment] = []
    size = 0
    for segment in run:
        batch.append(segment)
        size += segment.raw_length
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
