"""What both layer formats do alike once the members are compressed: chunk digests, and the table of contents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from apparate.errors import InvalidArgument
from apparate.format.toc import Chunk, Compression, Member, TableOfContents
from apparate.format.writer import LayerPlan, MemberPlan, MemberSummary


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
    entries = [
        replace(entry, chunks=tuple(own)) if own else entry for entry, own in zip(plan.entries, chunks, strict=True)
    ]
    return TableOfContents(entries, members, compression)
