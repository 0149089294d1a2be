"""Writes eStargz layers (docs/formats/estargz.md): `LayerFormat` for gzip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Final

import deflate

from apparate.errors import FormatError, InvalidArgument
from apparate.format.estargz.footer import FORMAT, build_footer
from apparate.format.layout import chunk_digests, table_of_contents, toc_document
from apparate.format.limits import MAX_TOC_BYTES
from apparate.format.plan import check_options, plan_layer
from apparate.format.prefetch import PrefetchRange
from apparate.format.tar_header import END_OF_ARCHIVE, build_header, padding
from apparate.format.toc import TOC_ENTRY_NAME, Compression, Entry, EntryType, TableOfContents
from apparate.format.writer import (
    EncodedMember,
    LayerOptions,
    LayerPlan,
    MemberPlan,
    MemberSummary,
    SourceEntry,
    TocDocument,
    Trailer,
)
from apparate.oci import names

MAX_LEVEL: Final = 12
_TOC_MODE: Final = 0o444


class EstargzFormat:
    """Members are gzip members of libdeflate."""

    compression: Final = Compression.GZIP
    media_type: Final = names.OCI_LAYER_GZIP

    def __init__(self, options: LayerOptions) -> None:
        """Take the options.

        Raises:
            InvalidArgument: an option is out of its range.
        """
        check_options(options)
        if not 1 <= options.level <= MAX_LEVEL:
            raise InvalidArgument(f"level must be 1 to {MAX_LEVEL} for gzip, not {options.level}")
        self._options = options

    @property
    def codec(self) -> str:
        return f"deflate/{version('deflate')}/{self._options.level}"

    def plan(self, source: Sequence[SourceEntry], prefetch: Sequence[PrefetchRange] | None) -> LayerPlan:
        return plan_layer(source, self._options, prefetch, ends_archive=False)

    def encode(self, member: MemberPlan, raw: bytes) -> EncodedMember:
        digests = chunk_digests(member, raw)
        data = self._compress(raw)
        return EncodedMember(data, MemberSummary(len(data), len(raw), digests))

    def table(self, plan: LayerPlan, members: Sequence[MemberSummary]) -> TableOfContents:
        return table_of_contents(plan, members, self.compression)

    def document(self, toc: TableOfContents, file_digests: Mapping[int, bytes]) -> TocDocument:
        return toc_document(toc, file_digests, FORMAT)

    def finish(self, plan: LayerPlan, document: TocDocument, members_end: int, region: bytes = b"") -> Trailer:
        size = len(document.json)
        header = build_header(Entry(TOC_ENTRY_NAME, EntryType.REG, _TOC_MODE, size=size))
        raw = b"".join((header, document.json, bytes(padding(size)), END_OF_ARCHIVE))
        packed = self._compress(raw)
        if len(packed) > MAX_TOC_BYTES:
            raise FormatError(FORMAT, "TOC", f"{len(packed)} compressed bytes are above the limit of {MAX_TOC_BYTES}")
        raw_size = sum(member.raw_length for member in plan.members) + len(raw)
        annotations = {names.TOC_DIGEST: f"sha256:{document.digest.hex()}", names.UNCOMPRESSED_SIZE: str(raw_size)}
        data = b"".join((region, packed, build_footer(members_end + len(region))))
        return Trailer(data, raw, annotations, members_end)

    def _compress(self, raw: bytes) -> bytes:
        return bytes(deflate.gzip_compress(raw, self._options.level))
