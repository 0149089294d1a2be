"""Reads eStargz layers: find the TOC in the tail of the blob, then parse it.

location = locate(tail, blob_size)            # None: not such a layer
toc = parse_toc(blob[location.offset:][:location.length], location, expected_digest)
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from apparate.errors import FormatError, IntegrityError
from apparate.format.estargz.footer import FOOTER_BYTES, FORMAT, parse_footer
from apparate.format.inflate import inflate_bounded
from apparate.format.limits import MAX_TOC_BYTES, MAX_TOC_JSON_BYTES
from apparate.format.tar import EntryHeader, TarParser
from apparate.format.toc import TOC_ENTRY_NAME, Compression, EntryType, TableOfContents, TocLocation
from apparate.format.tocjson import parse_toc_json
from apparate.oci.digest import Digest

#: How much of the end of a blob `locate` wants to see.
TAIL_BYTES: Final = FOOTER_BYTES
#: Headers, padding and the end of the archive around the JSON.
_TAR_OVERHEAD_BYTES: Final = 1 << 20


def locate(tail: bytes, blob_size: int) -> TocLocation | None:
    """Return where the compressed TOC is; None: the layer is not eStargz. *tail*: the blob's last TAIL_BYTES or more.

    Raises:
        FormatError: it is, but its footer cannot be right, or the TOC is larger than we handle.
    """
    location = parse_footer(tail, blob_size)
    if location is not None and location.length > MAX_TOC_BYTES:
        raise FormatError(FORMAT, "TOC", f"{location.length} compressed bytes are above the limit of {MAX_TOC_BYTES}")
    return location


def parse_toc(
    compressed: bytes | memoryview,
    location: TocLocation,
    expected_digest: Digest | None,
    *,
    data_end: int | None = None,
) -> TableOfContents:
    """Parse the blob's bytes at *location*. None as digest: nothing that the result says is proven.

    *data_end*: where the last member ends, if known (an embedded index lies between it and the TOC).

    Raises:
        IntegrityError: the JSON does not hash to *expected_digest*.
        FormatError, Unsupported: see `tocjson.parse_toc_json`.
    """
    document = read_document(compressed)
    if expected_digest is not None and sha256(document).hexdigest() != expected_digest.hex:
        raise IntegrityError("TOC", str(expected_digest), "sha256:" + sha256(document).hexdigest())
    end = location.offset if data_end is None else data_end
    return parse_toc_json(document, Compression.GZIP, FORMAT, end)


def read_document(compressed: bytes | memoryview) -> bytes:
    """Return the JSON inside the compressed TOC: the file `stargz.index.json` of a small tar."""
    limit = MAX_TOC_JSON_BYTES + _TAR_OVERHEAD_BYTES
    archive = inflate_bounded(Compression.GZIP, compressed, limit)
    if len(archive) == limit:
        raise FormatError(FORMAT, "TOC", f"inflates to more than the limit of {MAX_TOC_JSON_BYTES} bytes")
    for event in TarParser(payload=False).feed(archive):
        if isinstance(event, EntryHeader) and event.entry.path == TOC_ENTRY_NAME:
            document = archive[event.payload_offset : event.payload_offset + event.stored_length]
            if event.entry.type is EntryType.REG and len(document) == event.entry.size:
                return document
    raise FormatError(FORMAT, "TOC", f"the tar at the end has no file {TOC_ENTRY_NAME.decode()}")
