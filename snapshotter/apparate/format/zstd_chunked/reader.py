"""Reads zstd:chunked layers of both dialects (containers/storage and stargz-snapshotter).

location = locate(tail, blob_size) or locate_annotated(annotations, blob_size)       # None: not such a layer
toc = parse_toc(blob[location.offset:][:location.length], location, expected_digest, compressed_digest=...)
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from apparate.errors import FormatError, IntegrityError
from apparate.format.inflate import inflate_bounded
from apparate.format.limits import MAX_TOC_BYTES, MAX_TOC_JSON_BYTES
from apparate.format.toc import Compression, TableOfContents, TocLocation
from apparate.format.tocjson import parse_toc_json
from apparate.format.zstd_chunked.footer import FOOTER_BYTES, FORMAT, MANIFEST_TYPE, check_location, parse_footer
from apparate.oci import names
from apparate.oci.digest import Digest

#: How much of the end of a blob `locate` wants to see.
TAIL_BYTES: Final = FOOTER_BYTES
_FRAME_HEAD_BYTES: Final = 8
_POSITION_FIELDS: Final = 4


def locate(tail: bytes, blob_size: int) -> TocLocation | None:
    """Return where the compressed TOC is; None: not zstd:chunked. *tail*: the blob's last TAIL_BYTES or more.

    Raises:
        FormatError: it is, but its footer cannot be right, or the TOC is larger than we handle.
    """
    location = parse_footer(tail, blob_size)
    return None if location is None else _check_sizes(location)


def locate_annotated(annotations: Mapping[str, str], blob_size: int) -> TocLocation | None:
    """Return where the layer's annotations (current or old keys) say that the TOC is; None: they do not.

    Raises:
        FormatError: the annotation is not `offset:length:raw length:1`, or not within the blob.
    """
    text = annotations.get(names.ZSTD_CHUNKED_POSITION) or annotations.get(names.OLD_ZSTD_CHUNKED_POSITION)
    if text is None:
        return None
    words = text.split(":")
    if len(words) != _POSITION_FIELDS or not all(
        word.isascii() and word.isdigit() and len(word) < 20 for word in words
    ):
        raise FormatError(FORMAT, "manifest-position", f"{text[:128]!r} is not offset:length:raw length:type")
    offset, length, raw_length, kind = map(int, words)
    if kind != MANIFEST_TYPE:
        raise FormatError(FORMAT, "manifest-position", f"type {kind} is unknown")
    return _check_sizes(check_location(TocLocation(offset, length, raw_length), blob_size))


def annotated_checksum(annotations: Mapping[str, str]) -> Digest | None:
    """Return the digest of the *compressed* TOC that the layer's annotations (current or old keys) give."""
    text = annotations.get(names.ZSTD_CHUNKED_CHECKSUM) or annotations.get(names.OLD_ZSTD_CHUNKED_CHECKSUM)
    return None if text is None else Digest.parse(text)


def parse_toc(
    compressed: bytes | memoryview,
    location: TocLocation,
    expected_digest: Digest | None,
    *,
    compressed_digest: Digest | None = None,
    data_end: int | None = None,
) -> TableOfContents:
    """Parse the blob's bytes at *location*. With neither digest, nothing that the result says is proven.

    Args:
        expected_digest: of the JSON (`toc.digest`, stargz dialect).
        compressed_digest: of the compressed bytes (`manifest-checksum`).
        data_end: where the last member ends, if known.

    Raises:
        IntegrityError: a digest differs.
        FormatError, Unsupported: see `tocjson.parse_toc_json`.
    """
    _verify("compressed TOC", compressed, compressed_digest)
    document = inflate_bounded(Compression.ZSTD, compressed, MAX_TOC_JSON_BYTES + 1)
    if len(document) > MAX_TOC_JSON_BYTES:
        raise FormatError(FORMAT, "TOC", f"inflates to more than the limit of {MAX_TOC_JSON_BYTES} bytes")
    if location.raw_length not in (0, len(document)):
        raise FormatError(FORMAT, "TOC", f"inflates to {len(document)} bytes, not to {location.raw_length}")
    _verify("TOC", document, expected_digest)
    end = location.offset - _FRAME_HEAD_BYTES if data_end is None else data_end
    return parse_toc_json(document, Compression.ZSTD, FORMAT, end)


def _check_sizes(location: TocLocation) -> TocLocation:
    if location.length > MAX_TOC_BYTES or location.raw_length > MAX_TOC_JSON_BYTES:
        reason = (
            f"{location.length} bytes, {location.raw_length} inflated, are above {MAX_TOC_BYTES}, {MAX_TOC_JSON_BYTES}"
        )
        raise FormatError(FORMAT, "TOC", reason)
    return location


def _verify(what: str, data: bytes | memoryview, digest: Digest | None) -> None:
    if digest is not None and sha256(data).hexdigest() != digest.hex:
        raise IntegrityError(what, str(digest), "sha256:" + sha256(data).hexdigest())
