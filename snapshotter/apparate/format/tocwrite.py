"""`TableOfContents` -> the TOC JSON of eStargz, which our zstd:chunked layers use as well (docs/formats/estargz.md)."""

from __future__ import annotations

import binascii
import json
import time
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, Final

from apparate.format.toc import Chunk, Entry, EntryType, TableOfContents

_EMPTY_DIGEST: Final = "sha256:" + sha256().hexdigest()
_NANO: Final = 1_000_000_000
#: RFC 3339 has years of four digits; times outside are left out, and shown as 0 as containerd does.
_FIRST_SECOND: Final = -62135596800
_END_SECOND: Final = 253402300800

_Row = dict[str, Any]


def write_toc_json(toc: TableOfContents, file_digests: Mapping[int, bytes]) -> bytes:
    """Return the JSON: one entry a line. *file_digests* has the SHA-256 of files with several chunks, by entry number."""
    encode = json.JSONEncoder(separators=(",", ":")).encode
    offsets = [member.offset for member in toc.members]
    times: dict[int, str] = {}
    lines: list[str] = []
    for number, entry in enumerate(toc.entries):
        lines += map(encode, _rows(entry, offsets, file_digests.get(number), times))
    return ('{"version":1,"entries":[\n' + ",\n".join(lines) + "\n]}\n").encode("ascii")


def _rows(entry: Entry, offsets: list[int], digest: bytes | None, times: dict[int, str]) -> Iterator[_Row]:
    name = entry.path.decode("utf-8", "surrogateescape")
    row: _Row = {"name": name, "type": entry.type.value}
    if entry.type is EntryType.DIR:
        row["name"] = name + "/" if name else "./"
    for key, value in (("size", entry.size), ("mode", entry.mode), ("uid", entry.uid), ("gid", entry.gid)):
        if value:
            row[key] = value
    if entry.mtime_ns:
        stamp = times.get(entry.mtime_ns)
        if stamp is None:
            stamp = times[entry.mtime_ns] = _time(entry.mtime_ns)
        if stamp:
            row["modtime"] = stamp
    if entry.link:
        row["linkName"] = entry.link.decode("utf-8", "surrogateescape")
    if entry.devmajor:
        row["devMajor"] = entry.devmajor
    if entry.devminor:
        row["devMinor"] = entry.devminor
    if entry.xattrs:
        row["xattrs"] = {
            key.decode("utf-8", "surrogateescape"): binascii.b2a_base64(value, newline=False).decode("ascii")
            for key, value in sorted(entry.xattrs.items())
        }
    if entry.type is EntryType.REG:
        yield from _file_rows(row, name, entry, offsets, digest)
    else:
        yield row


def _file_rows(row: _Row, name: str, entry: Entry, offsets: list[int], digest: bytes | None) -> Iterator[_Row]:
    chunks = entry.chunks
    if not chunks:
        yield {**row, "digest": _EMPTY_DIGEST}
        return
    if len(chunks) == 1:
        row["digest"] = "sha256:" + chunks[0].digest.hex()
    else:
        assert digest is not None, "a file of several chunks has a digest of its own"
        row["digest"] = "sha256:" + digest.hex()
    yield {**row, **_chunk_fields(chunks[0], offsets, is_only=len(chunks) == 1)}
    for chunk in chunks[1:]:
        yield {"name": name, "type": "chunk", **_chunk_fields(chunk, offsets, is_only=False)}


def _chunk_fields(chunk: Chunk, offsets: list[int], *, is_only: bool) -> _Row:
    fields: _Row = {}
    if offsets[chunk.member]:
        fields["offset"] = offsets[chunk.member]
    if chunk.inner_offset:
        fields["innerOffset"] = chunk.inner_offset
    if chunk.offset:
        fields["chunkOffset"] = chunk.offset
    if not is_only:
        fields["chunkSize"] = chunk.length
    fields["chunkDigest"] = "sha256:" + chunk.digest.hex()
    return fields


def _time(mtime_ns: int) -> str:
    seconds, nanos = divmod(mtime_ns, _NANO)
    if not _FIRST_SECOND <= seconds < _END_SECOND:
        return ""
    year, month, day, hour, minute, second = time.gmtime(seconds)[:6]
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}{fraction}Z"
