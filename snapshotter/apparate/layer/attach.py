"""How a node comes by the index of a layer: the one it carries, else one built from its table of contents.

Nothing here is trusted before its digest, which the manifest gave, has been checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from apparate.errors import FormatError, IntegrityError, Unavailable, Unsupported
from apparate.format.embedding import IndexLocation, extract
from apparate.format.estargz import reader as estargz
from apparate.format.index import build_local, unpack
from apparate.format.toc import Compression
from apparate.format.zstd_chunked import reader as zstd_chunked
from apparate.layer.model import IndexSource
from apparate.layer.source import distrusted
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apparate.format.index import LayerIndex
    from apparate.format.toc import TableOfContents, TocLocation
    from apparate.layer.source import BlobSource, Body
    from apparate.registry.deadline import Deadline

TAIL_BYTES: Final = 64 * 1024
"""One request for the end of a foreign layer: footer, and the TOC too if the layer is small."""
MEMBER_BYTES_MAX: Final = 64 * 1024 * 1024
"""A larger member, compressed or inflated, is refused: members are held in memory."""
NO_DIGEST: Final = bytes(32)
_REPLACED: Final = "\N{REPLACEMENT CHARACTER}".encode()
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_CHECKSUMS: Final = (names.ZSTD_CHUNKED_CHECKSUM, names.OLD_ZSTD_CHUNKED_CHECKSUM)

log = get_logger("layer.attach")


@dataclass(frozen=True, slots=True)
class Obtained:
    """An index in its local form, with what was learnt on the way."""

    local: bytes
    source: IndexSource
    promise: str  # the one of `promises` that it was verified against
    blob_size: int
    fetched_bytes: int


def promises(annotations: Mapping[str, str]) -> list[str]:
    """Return what *annotations* promise of the layer's content, best first, each in a form that can be kept and compared."""
    compressed = zstd_chunked.annotated_checksum(annotations)
    given = (("index", annotations.get(names.INDEX)), ("toc", annotations.get(names.TOC_DIGEST)), ("zstd", compressed))
    return [f"{kind} {value}" for kind, value in given if value is not None]


def kept_to(annotations: Mapping[str, str], promise: str) -> dict[str, str]:
    """Return *annotations* without what could give a layer another index than *promise*, which is one of theirs."""
    kind = promise.partition(" ")[0]
    foreign = {
        "index": (names.TOC_DIGEST, *_ZSTD_CHECKSUMS),
        "toc": (names.INDEX,),
        "zstd": (names.INDEX, names.TOC_DIGEST),
    }
    return {key: value for key, value in annotations.items() if key not in foreign[kind]}


def obtain_index(source: BlobSource, annotations: Mapping[str, str], deadline: Deadline) -> Obtained:
    """Return the verified index of the layer that *source* reads and *annotations* describe.

    Raises:
        Unsupported: nothing in the annotations lets us verify the layer part by part, or it has no TOC.
        IntegrityError, FormatError: what the registry gave is not what the manifest promised.
        RegistryError, Unavailable, NotFound: it could not be had.
    """
    embedded = names.INDEX in annotations
    has_toc = names.TOC_DIGEST in annotations or zstd_chunked.annotated_checksum(annotations) is not None
    if not embedded and not has_toc:
        raise Unsupported("not lazily loadable: the layer's annotations name neither an index nor a table of contents")
    if embedded:
        try:
            obtained = _embedded(source, annotations[names.INDEX], deadline)
        except FormatError as error:
            if isinstance(error, IntegrityError) or not has_toc:
                raise
            log.warning("embedded index cannot be used; building one from the table of contents", error=str(error))
        else:
            if obtained is not None:
                return obtained
    if not has_toc:
        raise Unsupported(
            "not lazily loadable: the layer's index is of an unknown version and it names no table of contents"
        )
    return _from_toc(source, annotations, deadline)


def check_limits(index: LayerIndex) -> None:
    """Refuse an index whose members would not fit in memory.

    Raises:
        Unsupported: a member is too large.
    """
    members = map(index.member, range(index.member_count))
    largest = max((max(member.length, member.need_bytes) for member in members), default=0)
    if largest > MEMBER_BYTES_MAX:
        raise Unsupported(f"not lazily loadable: a member of {largest} bytes is above the limit of {MEMBER_BYTES_MAX}")


def read_exactly(body: Body, offset: int, length: int) -> bytes:
    """Return the *length* bytes that were asked for from *offset*.

    Raises:
        Unavailable: the other side gave another part of the blob, or less.
    """
    if body.offset != offset:
        raise distrusted(
            body, f"registry gave the bytes from {body.offset} on where those from {offset} on were asked for"
        )
    parts = bytearray()
    for data in body:
        parts += data
        if len(parts) > length:
            raise distrusted(body, f"registry gave more than the {length} bytes that were asked for")
    if len(parts) < length:
        raise distrusted(body, f"registry gave {len(parts)} of {length} bytes")
    return bytes(parts)


def _embedded(source: BlobSource, annotation: str, deadline: Deadline) -> Obtained | None:
    location = IndexLocation.from_annotation(annotation)
    if location is None:
        return None
    with source.range(location.offset, location.length, deadline=deadline) as body:
        region = read_exactly(body, location.offset, location.length)
        blob_size = body.total_size or 0
        try:
            location.verify(region)
        except IntegrityError as error:
            body.distrust(str(error))
            raise
    compression = Compression.GZIP if region.startswith(_GZIP_MAGIC) else Compression.ZSTD
    local = unpack(extract(region, compression))
    return Obtained(local, IndexSource.EMBEDDED, f"index {annotation}", blob_size, len(region))


def _from_toc(source: BlobSource, annotations: Mapping[str, str], deadline: Deadline) -> Obtained:
    with source.tail(TAIL_BYTES, deadline=deadline) as body:
        if body.total_size is None:
            raise Unavailable("registry does not say how long the layer is")
        blob_size = body.total_size
        tail = read_exactly(body, max(0, blob_size - TAIL_BYTES), min(TAIL_BYTES, blob_size))
    fetched = len(tail)

    def read(location: TocLocation) -> bytes:
        nonlocal fetched
        begin = location.offset - (blob_size - len(tail))
        if begin >= 0:
            return tail[begin : begin + location.length]
        with source.range(location.offset, location.length, deadline=deadline) as body:
            fetched += location.length
            return read_exactly(body, location.offset, location.length)

    toc = _estargz_toc(tail, blob_size, annotations, read) or _zstd_toc(tail, blob_size, annotations, read)
    if toc is None:
        raise Unsupported("not lazily loadable: the layer ends in no footer of eStargz or zstd:chunked")
    _check_names(toc)
    digest = Digest.parse(annotations[names.TOC_DIGEST]).raw if names.TOC_DIGEST in annotations else NO_DIGEST
    promise = next(promise for promise in promises(annotations) if not promise.startswith("index "))
    return Obtained(build_local(toc, toc_digest=digest), IndexSource.TOC, promise, blob_size, fetched)


def _check_names(toc: TableOfContents) -> None:
    """Refuse names that may be others in the layer's tar: JSON holds no bytes that are no UTF-8, and Go replaces them.

    Raises:
        Unsupported: there is one. Unpacking the layer gives its right name.
    """
    for entry in toc.entries:
        if _REPLACED in entry.path or _REPLACED in entry.link:
            raise Unsupported(
                f"not lazily loadable: its table of contents has lost bytes of a name that is no UTF-8: {entry.path!r:.100}"
            )


def _estargz_toc(
    tail: bytes, blob_size: int, annotations: Mapping[str, str], read: Callable[[TocLocation], bytes]
) -> TableOfContents | None:
    location = estargz.locate(tail, blob_size)
    if location is None:
        return None
    if names.TOC_DIGEST not in annotations:
        raise Unsupported("not lazily loadable: the annotations of the eStargz layer do not give its TOC digest")
    return estargz.parse_toc(read(location), location, Digest.parse(annotations[names.TOC_DIGEST]))


def _zstd_toc(
    tail: bytes, blob_size: int, annotations: Mapping[str, str], read: Callable[[TocLocation], bytes]
) -> TableOfContents | None:
    location = zstd_chunked.locate_annotated(annotations, blob_size) or zstd_chunked.locate(tail, blob_size)
    if location is None:
        return None
    plain = Digest.parse(annotations[names.TOC_DIGEST]) if names.TOC_DIGEST in annotations else None
    compressed = zstd_chunked.annotated_checksum(annotations)
    return zstd_chunked.parse_toc(read(location), location, plain, compressed_digest=compressed)
