"""A layer written by `apparate.format` from a tar in memory: what `convert` does, without files, threads and a registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from apparate.format.estargz import reader as estargz
from apparate.format.formats import layer_format_for
from apparate.format.inflate import inflate_member
from apparate.format.prefetch import PrefetchRange
from apparate.format.tar import EntryHeader, TarParser
from apparate.format.toc import Compression, TableOfContents
from apparate.format.tree import Node
from apparate.format.writer import LayerOptions, LayerPlan, Piece, SourceEntry, TocDocument, Trailer, Zeros
from apparate.format.zstd_chunked import reader as zstd_chunked
from apparate.oci.digest import Digest


@dataclass(frozen=True)
class WrittenLayer:
    """`blob` is the layer, `raw` the tar that it inflates to, `toc` what the writer says of itself."""

    blob: bytes
    raw: bytes
    plan: LayerPlan
    toc: TableOfContents
    document: TocDocument
    trailer: Trailer
    compression: Compression

    def parse(self, *, data_end: int | None = None) -> TableOfContents:
        """Return the TOC as a reader finds it in the blob."""
        digest = Digest("sha256", self.document.digest.hex())
        if self.compression is Compression.GZIP:
            location = estargz.locate(self.blob[-estargz.TAIL_BYTES :], len(self.blob))
            assert location is not None
            compressed = self.blob[location.offset : location.offset + location.length]
            return estargz.parse_toc(compressed, location, digest, data_end=data_end)
        location = zstd_chunked.locate(self.blob[-zstd_chunked.TAIL_BYTES :], len(self.blob))
        assert location is not None
        compressed = self.blob[location.offset : location.offset + location.length]
        return zstd_chunked.parse_toc(compressed, location, digest, data_end=data_end)


def source_of(tar: bytes) -> list[SourceEntry]:
    """Return the entries of *tar*."""
    parser = TarParser(payload=False)
    source = [event.source() for event in parser.feed(tar) if isinstance(event, EntryHeader)]
    parser.finish()
    return source


def resolve(pieces: Sequence[Piece], tar: bytes) -> bytes:
    """Return the bytes that *pieces* stand for."""
    parts = []
    for piece in pieces:
        if isinstance(piece, bytes):
            parts.append(piece)
        elif isinstance(piece, Zeros):
            parts.append(bytes(piece.length))
        else:
            assert piece.offset + piece.length <= len(tar), "a span beyond the source"
            parts.append(tar[piece.offset : piece.offset + piece.length])
    return b"".join(parts)


def write_layer(
    tar: bytes,
    compression: Compression = Compression.GZIP,
    *,
    options: LayerOptions | None = None,
    prefetch: Sequence[PrefetchRange] | None = None,
    region: bytes = b"",
) -> WrittenLayer:
    """Return the layer that the writer makes of *tar*."""
    layer_format = layer_format_for(compression, options or LayerOptions())
    plan = layer_format.plan(source_of(tar), prefetch)
    raws = [resolve(member.pieces, tar) for member in plan.members]
    encoded = [layer_format.encode(member, raw) for member, raw in zip(plan.members, raws, strict=True)]
    digests = {file.entry: sha256(resolve(file.pieces, tar)).digest() for file in plan.whole_files}
    toc = layer_format.table(plan, [member.summary for member in encoded])
    blob = b"".join(member.data for member in encoded)
    document = layer_format.document(toc, digests)
    trailer = layer_format.finish(plan, document, len(blob), region)
    return WrittenLayer(blob + trailer.data, b"".join(raws) + trailer.raw, plan, toc, document, trailer, compression)


def read_file(blob: bytes, toc: TableOfContents, node: Node) -> bytes:
    """Return the content of a regular file, each chunk checked against its digest."""
    need = toc.need_bytes()
    content = bytearray(node.size)
    for chunk in node.chunks:
        member = toc.members[chunk.member]
        data = blob[member.offset : member.offset + member.length]
        raw = inflate_member(toc.compression, data, member.raw_length, need[chunk.member])
        part = raw[chunk.inner_offset : chunk.inner_offset + chunk.length]
        assert sha256(part).digest() == chunk.digest
        content[chunk.offset : chunk.offset + chunk.length] = part
    return bytes(content)
