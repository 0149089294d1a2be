"""`TableOfContents` -> the TOC JSON of eStargz, which our zstd:chunked layers use as well (docs/formats/estargz.md)."""

from __future__ import annotations

import json
import time
from binascii import b2a_base64
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Final

from apparate.format.toc import Chunk, Entry, EntryType, TableOfContents

_EMPTY_DIGEST: Final = "sha256:" + sha256().hexdigest()
_NANO: Final = 1_000_000_000
#: RFC 3339 has years of four digits; times outside are left out, and shown as 0 as containerd does.
_FIRST_SECOND: Final = -62135596800
_END_SECOND: Final = 253402300800

_quote: Final = json.encoder.encode_basestring_ascii


def write_toc_json(toc: TableOfContents, file_digests: Mapping[int, bytes]) -> bytes:
    """Return the JSON: one entry a line. *file_digests* has the SHA-256 of files with several chunks, by entry number."""
    offsets = [member.offset for member in toc.members]
    times: dict[int, str] = {0: ""}
    lines: list[str] = []
    for number, entry in enumerate(toc.entries):
        name = _quote(entry.path.decode("utf-8", "surrogateescape"))
        fields = _fields(entry, name, times)
        if entry.type is not EntryType.REG:
            lines.append(fields + "}")
        elif not entry.chunks:
            lines.append(f'{fields},"digest":"{_EMPTY_DIGEST}"}}')
        else:
            lines += _file_lines(fields, name, entry.chunks, offsets, file_digests.get(number))
    return ('{"version":1,"entries":[\n' + ",\n".join(lines) + "\n]}\n").encode("ascii")


def _fields(entry: Entry, name: str, times: dict[int, str]) -> str:
    """Return the beginning of an entry's object, without its data."""
    if entry.type is EntryType.DIR:
        name = f'{name[:-1]}/"' if entry.path else '"./"'
    parts = [f'{{"name":{name},"type":"{entry.type.value}"']
    if entry.size:
        parts.append(f'"size":{entry.size}')
    if entry.mode:
        parts.append(f'"mode":{entry.mode}')
    if entry.uid:
        parts.append(f'"uid":{entry.uid}')
    if entry.gid:
        parts.append(f'"gid":{entry.gid}')
    time = times.get(entry.mtime_ns)
    if time is None:
        time = times[entry.mtime_ns] = _time(entry.mtime_ns)
    if time:
        parts.append(f'"modtime":"{time}"')
    if entry.link:
        parts.append(f'"linkName":{_quote(entry.link.decode("utf-8", "surrogateescape"))}')
    if entry.devmajor:
        parts.append(f'"devMajor":{entry.devmajor}')
    if entry.devminor:
        parts.append(f'"devMinor":{entry.devminor}')
    if entry.xattrs:
        parts.append(f'"xattrs":{{{_xattrs(entry.xattrs)}}}')
    return ",".join(parts)


def _xattrs(xattrs: Mapping[bytes, bytes]) -> str:
    return ",".join(
        f'{_quote(key.decode("utf-8", "surrogateescape"))}:"{b2a_base64(value, newline=False).decode("ascii")}"'
        for key, value in sorted(xattrs.items())
    )


def _file_lines(
    fields: str, name: str, chunks: tuple[Chunk, ...], offsets: list[int], digest: bytes | None
) -> Iterator[str]:
    first = chunks[0]
    if len(chunks) == 1:
        yield f'{fields},"digest":"sha256:{first.digest.hex()}"{_place(first, offsets)}}}'
        return
    assert digest is not None, "a file of several chunks has a digest of its own"
    yield f'{fields},"digest":"sha256:{digest.hex()}","chunkSize":{first.length}{_place(first, offsets)}}}'
    for chunk in chunks[1:]:
        span = f'"chunkOffset":{chunk.offset},"chunkSize":{chunk.length}'
        yield f'{{"name":{name},"type":"chunk",{span}{_place(chunk, offsets)}}}'


def _place(chunk: Chunk, offsets: list[int]) -> str:
    """Return where the chunk lies, and its digest; zeros are left out."""
    offset = offsets[chunk.member]
    return (
        (f',"offset":{offset}' if offset else "")
        + (f',"innerOffset":{chunk.inner_offset}' if chunk.inner_offset else "")
        + f',"chunkDigest":"sha256:{chunk.digest.hex()}"'
    )


def _time(mtime_ns: int) -> str:
    seconds, nanos = divmod(mtime_ns, _NANO)
    if not _FIRST_SECOND <= seconds < _END_SECOND:
        return ""
    year, month, day, hour, minute, second = time.gmtime(seconds)[:6]
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}{fraction}Z"
