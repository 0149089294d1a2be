"""What both layer formats do alike once the members are compressed: chunk digests, and the table of contents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

from apparate.errors import FormatError, InvalidArgument
from apparate.format.limits import MAX_TOC_JSON_BYTES
from apparate.format.toc import Chunk, Compression, Entry, Member, TableOfContents
from apparate.format.tocwrite import write_toc_json
from apparate.format.writer import LayerPlan, MemberPlan, MemberSummary, TocDocument


def chunk_digests(member: MemberPlan, raw: bytes) -> tuple[bytes, ...]:
    """Return the SHA-256 of each chunk of *member*, whose bytes are *raw*."""
    if len(raw) != member.raw_length:
        raise InvalidArgument(f"a member of {member.raw_length} bytes was planned, {len(raw)} bytes were given")
    view = memoryview(raw)
    return tuple(
        sha256(view[chunk.inner_offset : chunk.inner_offset + chunk.length]).digest() for chunk in member.chunks
    )


def table_of_contents(plan: LayerPlan, summaries: Sequence[MemberSummary], compression: Compression) -> TableOfContents:
    """Return the TOC of the members as they were compressed, one behind the other from the start of the blob."""
    members: list[Member] = []
    chunks: list[list[Chunk]] = [[] for _ in plan.entries]
    offset = 0
    for planned, summary in zip(plan.members, summaries, strict=True):
        if planned.chunks:
            for chunk, digest in zip(planned.chunks, summary.chunk_digests, strict=True):
                chunks[chunk.entry].append(Chunk(chunk.offset, chunk.length, digest, len(members), chunk.inner_offset))
            members.append(Member(offset, summary.length, summary.raw_length))
        offset += summary.length
    entries = [_with_chunks(entry, own) if own else entry for entry, own in zip(plan.entries, chunks, strict=True)]
    return TableOfContents(entries, members, compression)


def toc_document(toc: TableOfContents, file_digests: Mapping[int, bytes], fmt: str) -> TocDocument:
    """Return the JSON of *toc*.

    Raises:
        FormatError: it is larger than our own reader accepts.
    """
    document = write_toc_json(toc, file_digests)
    if len(document) > MAX_TOC_JSON_BYTES:
        raise FormatError(fmt, "TOC", f"{len(document)} bytes are above the limit of {MAX_TOC_JSON_BYTES}")
    return TocDocument(document, sha256(document).digest())


def _with_chunks(entry: Entry, chunks: list[Chunk]) -> Entry:
    # Spelled out: dataclasses.replace takes five times as long, for each file of a layer.
    return Entry(
        entry.path,
        entry.type,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.size,
        entry.mtime_ns,
        entry.link,
        entry.xattrs,
        entry.devmajor,
        entry.devminor,
        tuple(chunks),
    )
