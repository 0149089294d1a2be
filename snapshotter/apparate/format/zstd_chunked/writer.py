"""Writes zstd:chunked layers (docs/formats/zstd-chunked.md), stargz-snapshotter's dialect: `LayerFormat` for zstd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Final

import zstandard

from apparate.errors import FormatError, InvalidArgument
from apparate.format.layout import chunk_digests, table_of_contents, toc_document
from apparate.format.limits import MAX_TOC_BYTES
from apparate.format.plan import check_options, plan_layer
from apparate.format.prefetch import PrefetchRange
from apparate.format.toc import Compression, TableOfContents, TocLocation
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
from apparate.format.zstd_chunked.footer import FORMAT, MANIFEST_TYPE, build_footer, skippable
from apparate.oci import names

MAX_LEVEL: Final = 22
_FRAME_HEAD_BYTES: Final = 8
_OLD_CHECKSUM: Final = "io.containers.zstd-chunked.manifest-checksum"
_OLD_POSITION: Final = "io.containers.zstd-chunked.manifest-position"


class ZstdChunkedFormat:
    """Members are zstd frames that state their length. The last one ends the tar: no reader needs the TOC for that."""

    compression: Final = Compression.ZSTD
    media_type: Final = names.OCI_LAYER_ZSTD

    def __init__(self, options: LayerOptions) -> None:
        """Take the options.

        Raises:
            InvalidArgument: an option is out of its range.
        """
        check_options(options)
        if not 1 <= options.level <= MAX_LEVEL:
            raise InvalidArgument(f"level must be 1 to {MAX_LEVEL} for zstd, not {options.level}")
        self._options = options

    @property
    def codec(self) -> str:
        return f"zstandard/{zstandard.__version__}/{self._options.level}"

    def plan(self, source: Sequence[SourceEntry], prefetch: Sequence[PrefetchRange] | None) -> LayerPlan:
        return plan_layer(source, self._options, prefetch, ends_archive=True)

    def encode(self, member: MemberPlan, raw: bytes) -> EncodedMember:
        digests = chunk_digests(member, raw)
        data = self._compress(raw)
        return EncodedMember(data, MemberSummary(len(data), len(raw), digests))

    def table(self, plan: LayerPlan, members: Sequence[MemberSummary]) -> TableOfContents:
        return table_of_contents(plan, members, self.compression)

    def document(self, toc: TableOfContents, file_digests: Mapping[int, bytes]) -> TocDocument:
        return toc_document(toc, file_digests, FORMAT)

    def finish(self, plan: LayerPlan, document: TocDocument, members_end: int, region: bytes = b"") -> Trailer:
        packed = self._compress(document.json)
        if len(packed) > MAX_TOC_BYTES:
            raise FormatError(FORMAT, "TOC", f"{len(packed)} compressed bytes are above the limit of {MAX_TOC_BYTES}")
        offset = members_end + len(region) + _FRAME_HEAD_BYTES
        location = TocLocation(offset, len(packed), len(document.json))
        annotations = {
            names.TOC_DIGEST: f"sha256:{document.digest.hex()}",
            names.UNCOMPRESSED_SIZE: str(sum(member.raw_length for member in plan.members)),
            _OLD_CHECKSUM: f"sha256:{sha256(packed).hexdigest()}",
            _OLD_POSITION: f"{offset}:{len(packed)}:{len(document.json)}:{MANIFEST_TYPE}",
        }
        data = b"".join((region, skippable(packed), build_footer(location)))
        return Trailer(data, b"", annotations, members_end)

    def _compress(self, raw: bytes) -> bytes:
        # A compressor belongs to one thread; making one costs microseconds.
        return zstandard.ZstdCompressor(level=self._options.level).compress(raw)
