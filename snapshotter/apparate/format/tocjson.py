"""The TOC JSON of eStargz and zstd:chunked -> `TableOfContents` (docs/formats/estargz.md, "TOC").

Entries are decoded one at a time, so that memory holds the JSON text and the result, never the whole document as objects.
"""

from __future__ import annotations

import binascii
import calendar
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from apparate.errors import FormatError, Unsupported
from apparate.format.collector import collector_paused
from apparate.format.limits import MAX_MEMBER_BYTES, MAX_MEMBER_RAW_BYTES
from apparate.format.paths import clean_path
from apparate.format.toc import DIGEST_BYTES, NO_XATTRS, Chunk, Compression, Entry, EntryType, Member, TableOfContents

TOC_VERSION: Final = 1
MAX_INT: Final = (1 << 63) - 1

_TYPES: Final = {kind.value: kind for kind in EntryType}
_PERMISSIONS: Final = 0o7777
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_COMMA: Final = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_DIGEST_PREFIX: Final = "sha256:"
_DIGEST_CHARS: Final = len(_DIGEST_PREFIX) + 2 * DIGEST_BYTES
_TIME: Final = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))")
_USUAL_TIME_CHARS: Final = len("2020-01-02T03:04:05Z")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NANO: Final = 1_000_000_000

#: Keys that only containers/storage writes.
_ODD: Final = frozenset({"chunkType", "endOffset"})

_Row = dict[str, Any]


def parse_toc_json(document: bytes, compression: Compression, fmt: str, data_end: int) -> TableOfContents:
    """Return the table of contents that *document* says; *data_end* is where in the blob the members end at the latest.

    Raises:
        FormatError: the document is wrong; `field` is the key.
        Unsupported: chunks have no digest, so nothing could be verified.
    """
    reader = _Reader(compression, fmt, data_end)
    try:
        with collector_paused():
            for row in _rows(document.decode("utf-8", "surrogateescape"), fmt):
                reader.row(row)
    except (ValueError, RecursionError, AttributeError) as error:
        raise FormatError(fmt, "TOC", f"is no JSON of the expected form: {error}") from error
    return reader.finish()


def _rows(text: str, fmt: str) -> Iterator[_Row]:
    """Give the elements of the top-level array `entries`."""
    decode = json.JSONDecoder().raw_decode
    version: object = None
    found = False
    at = _expect(text, 0, "{")
    while not text.startswith("}", at):
        key, at = decode(text, at)
        at = _expect(text, _skip(text, at), ":")
        if key == "entries" and text.startswith("[", at):
            found = True
            at = _expect(text, at, "[")
            while not text.startswith("]", at):
                row, at = decode(text, at)
                yield row
                comma = _COMMA.match(text, at)
                at = comma.end() if comma else _skip(text, at)
                if comma is None and not text.startswith("]", at):
                    raise ValueError(f"',' or ']' expected at character {at}")
            at += 1
        else:
            value, at = decode(text, at)
            version = value if key == "version" else version
        at = _skip(text, at)
        if not text.startswith("}", at):
            at = _expect(text, at, ",")
    if version != TOC_VERSION or type(version) is not int:
        raise FormatError(fmt, "version", f"{version!r:.40}, only {TOC_VERSION} is known")
    if not found:
        raise FormatError(fmt, "entries", "is missing")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _expect(text: str, at: int, char: str) -> int:
    at = _skip(text, at)
    if not text.startswith(char, at):
        raise ValueError(f"{char!r} expected at character {at}")
    return _skip(text, at + 1)


class _Reader:
    """Builds entries from rows: a `reg` row is followed by the `chunk` rows of the same file."""

    def __init__(self, compression: Compression, fmt: str, data_end: int) -> None:
        self._compression = compression
        self._fmt = fmt
        self._data_end = data_end
        self._entries: list[Entry] = []
        self._offsets: list[int] = []
        #: Where the data of a member ends in the blob, as far as the TOC says so; 0: unknown.
        self._ends: list[int] = []
        self._inner_end = 0
        self._file: _Row | None = None
        self._chunk_rows: list[_Row] = []
        self._times: dict[str, int] = {}
        self._row = 0

    def row(self, row: _Row) -> None:
        kind = row.get("type")
        if kind == "chunk":
            if self._file is None:
                raise self._refuse("type", "a chunk that follows no file")
            self._chunk_rows.append(row)
        else:
            self._end_file()
            if kind == "reg" and row.get("size"):
                self._file = row
                self._chunk_rows = [row]
            else:
                self._entries.append(self._entry(row, 0, ()))
        self._row += 1

    def finish(self) -> TableOfContents:
        self._end_file()
        members: list[Member] = []
        bounds = [*self._offsets, self._data_end]
        for number, (offset, end) in enumerate(zip(self._offsets, self._ends, strict=True)):
            bound = bounds[number + 1]
            length = (min(end, bound) if end else bound) - offset
            if not 0 < length <= MAX_MEMBER_BYTES:
                raise self._refuse("offset", f"a member of {length} bytes at {offset}, data ends at {self._data_end}")
            members.append(Member(offset, length))
        return TableOfContents(self._entries, members, self._compression)

    def _end_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            size = self._int(file, "size")
            self._entries.append(self._entry(file, size, self._chunks(file, size)))

    def _chunks(self, file: _Row, size: int) -> tuple[Chunk, ...]:
        rows = self._chunk_rows
        if (
            len(rows) == 1
            and not file.get("chunkOffset")
            and file.get("chunkSize", size) == size
            and not _ODD & file.keys()
        ):
            return (self._chunk(file, file, 0, size),)
        chunks: list[Chunk] = []
        at = 0
        for number, row in enumerate(rows):
            if self._int(row, "chunkOffset") != at:
                raise self._refuse("chunkOffset", f"{row.get('chunkOffset')!r:.40} where {at} was due")
            is_last = number == len(rows) - 1
            length = self._int(row, "chunkSize")
            if not length:
                length = (size if is_last else self._int(rows[number + 1], "chunkOffset")) - at
            at += length
            if length <= 0 or at > size:
                raise self._refuse("chunkSize", f"{length} bytes up to {at} in a file of {size}")
            if row.get("chunkType") == "zeros":
                continue
            chunks.append(self._chunk(row, file if len(rows) == 1 else None, at - length, length))
        if at != size:
            raise self._refuse("size", f"{size}, but the chunks have {at} bytes")
        end = self._int(file, "endOffset")
        if end and chunks:
            if not self._offsets[-1] < end <= self._data_end:
                raise self._refuse("endOffset", f"{end} is not between the file's data and {self._data_end}")
            self._ends[-1] = end
        return tuple(chunks)

    def _chunk(self, row: _Row, file: _Row | None, offset: int, length: int) -> Chunk:
        digest = row.get("chunkDigest") or (file.get("digest") if file is not None else None)
        if not digest:
            raise Unsupported(
                f"not lazily loadable: the {self._fmt} TOC has no chunk digests, its data cannot be verified"
            )
        member_offset, inner = row.get("offset", 0), row.get("innerOffset", 0)
        if type(member_offset) is not int or type(inner) is not int or member_offset < 0 or inner < 0:
            member_offset, inner = self._int(row, "offset"), self._int(row, "innerOffset")
        if self._offsets and member_offset == self._offsets[-1]:
            if inner < self._inner_end:
                raise self._refuse("innerOffset", f"{inner} overlaps the chunk before, which ends at {self._inner_end}")
        else:
            if member_offset >= self._data_end or (self._offsets and member_offset < self._offsets[-1]):
                raise self._refuse(
                    "offset", f"{member_offset} is out of order or beyond the data, {self._data_end} bytes"
                )
            if self._ends and self._ends[-1] > member_offset:
                raise self._refuse("offset", f"{member_offset} lies within the file before, up to {self._ends[-1]}")
            self._offsets.append(member_offset)
            self._ends.append(0)
        self._inner_end = inner + length
        if self._inner_end > MAX_MEMBER_RAW_BYTES:
            raise self._refuse(
                "chunkSize", f"a member of {self._inner_end} bytes; at most {MAX_MEMBER_RAW_BYTES} are handled"
            )
        return Chunk(offset, length, self._digest(digest), len(self._offsets) - 1, inner)

    def _entry(self, row: _Row, size: int, chunks: tuple[Chunk, ...]) -> Entry:
        get = row.get
        name = get("type")
        kind = _TYPES.get(name) if type(name) is str else None
        if kind is None:
            raise self._refuse("type", f"{name!r:.40} is unknown")
        mode, uid, gid = get("mode", 0), get("uid", 0), get("gid", 0)
        if not (
            type(mode) is type(uid) is type(gid) is int and mode >= 0 and 0 <= uid <= MAX_INT and 0 <= gid <= MAX_INT
        ):
            mode, uid, gid = self._int(row, "mode"), self._int(row, "uid"), self._int(row, "gid")
        link, major, minor = b"", 0, 0
        if kind is EntryType.SYMLINK:
            link = self._bytes(row, "linkName")
        elif kind is EntryType.HARDLINK:
            link = clean_path(self._bytes(row, "linkName"), self._fmt, "linkName")
        elif kind is EntryType.CHAR or kind is EntryType.BLOCK:
            major, minor = self._int(row, "devMajor"), self._int(row, "devMinor")
        time, xattrs = get("modtime"), get("xattrs")
        return Entry(
            clean_path(self._bytes(row, "name"), self._fmt, "name"),
            kind,
            mode & _PERMISSIONS,
            uid,
            gid,
            size,
            self._time(time) if time else 0,
            link,
            self._xattrs(xattrs) if xattrs else NO_XATTRS,
            major,
            minor,
            chunks,
        )

    def _int(self, row: _Row, key: str) -> int:
        value = row.get(key, 0)
        if type(value) is int and 0 <= value <= MAX_INT:
            return value
        if value is None:
            return 0
        raise self._refuse(key, f"{value!r:.40} is no number from 0 to 2^63-1")

    def _bytes(self, row: _Row, key: str) -> bytes:
        value = row.get(key, "")
        if type(value) is not str:
            raise self._refuse(key, "is no string")
        return value.encode() if value.isascii() else self._encode(value, key)

    def _encode(self, text: str, key: str) -> bytes:
        try:
            return text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise FormatError(self._fmt, key, f"{text!r:.80} is no text ({self._where()})") from error

    def _digest(self, text: object) -> bytes:
        if type(text) is str and len(text) == _DIGEST_CHARS and text.startswith(_DIGEST_PREFIX):
            try:
                digest = bytes.fromhex(text[len(_DIGEST_PREFIX) :])
            except ValueError:
                digest = b""
            if len(digest) == DIGEST_BYTES:
                return digest
        raise self._refuse("chunkDigest", f"{text!r:.90} is no sha256 digest")

    def _xattrs(self, xattrs: object) -> Mapping[bytes, bytes]:
        if type(xattrs) is not dict:
            raise self._refuse("xattrs", "is no object")
        decoded = {}
        for name, value in xattrs.items():
            try:
                decoded[self._encode(name, "xattrs")] = binascii.a2b_base64(value or "", strict_mode=True)
            except (ValueError, TypeError) as error:
                raise FormatError(self._fmt, "xattrs", f"{name!r:.80} is not base64 ({self._where()})") from error
        return decoded

    def _time(self, text: object) -> int:
        if type(text) is not str:
            raise self._refuse("modtime", "is no string")
        known = self._times.get(text)
        if known is None:
            known = self._times[text] = self._parse_time(text)
        return known

    def _parse_time(self, text: str) -> int:
        if len(text) == _USUAL_TIME_CHARS and text[10] == "T" and text[19] == "Z":
            try:
                since = datetime.fromisoformat(text) - _EPOCH
            except ValueError:
                pass  # such as second 60: the general way decides
            else:
                return (since.days * 86400 + since.seconds) * _NANO
        match = _TIME.fullmatch(text)
        if match is None:
            raise self._refuse("modtime", f"{text!r:.60} is no RFC 3339 time")
        year, month, day, hour, minute, second = (int(match[group]) for group in range(1, 7))
        if not (year and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
            raise self._refuse("modtime", f"{text!r:.60} is no RFC 3339 time")
        seconds = calendar.timegm((year, month, day, hour, minute, second, 0, 0, 0))
        if match[8]:
            shift = (int(match[9]) * 60 + int(match[10])) * 60
            seconds -= shift if match[8] == "+" else -shift
        return seconds * _NANO + int((match[7] or "0")[:9].ljust(9, "0"))

    def _where(self) -> str:
        return f"entry {self._row}"

    def _refuse(self, key: str, reason: str) -> FormatError:
        return FormatError(self._fmt, key, f"{reason} ({self._where()})")
