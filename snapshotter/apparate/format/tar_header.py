"""Tar header blocks: the fields of one 512-byte block, pax records, sparse maps, and new headers.

As liberal as Go's archive/tar, by which containerd reads: v7, ustar, pax, star and GNU blocks; numbers in octal or base-256;
checksums of signed or unsigned bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from apparate.errors import FormatError
from apparate.format.toc import Entry, EntryType

BLOCK_BYTES: Final = 512
ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
#: The end of an archive.
END_OF_ARCHIVE: Final = bytes(2 * BLOCK_BYTES)
#: Largest pax header, long name or sparse map (as Go's archive/tar).
MAX_SPECIAL_BYTES: Final = 1 << 20

XATTR_PREFIX: Final = b"SCHILY.xattr."
SPARSE_MAP: Final = b"GNU.sparse.map"
SPARSE_BLOCKS: Final = b"GNU.sparse.numblocks"

# Header block, 512 bytes (POSIX ustar; GNU and star give another meaning to the bytes from 345)
#   offset  size  field
#        0   100  name        100  8  mode      108  8  uid       116  8  gid       124  12  size     136  12  mtime
#      148     8  checksum    156  1  typeflag  157  100  linkname
#      257     6  magic       263  2  version   265  32  uname    297  32  gname    329  8  devmajor  337  8  devminor
#      345   155  prefix      500  12  unused
_HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12s")
_CHECKSUM: Final = slice(148, 156)
# GNU: 345 12 atime  357 12 ctime  386 4x24 sparse  482 1 isextended  483 12 realsize; extension block: 21x24, 504 1 isextended
_GNU_ATIME: Final = slice(345, 357)
_GNU_CTIME: Final = slice(357, 369)
_GNU_SPARSE: Final = (386, 4, 482)
_GNU_SPARSE_EXTENSION: Final = (0, 21, 504)
_GNU_REAL_SIZE: Final = slice(483, 495)
_SPARSE_FIELD_BYTES: Final = 12
# star: 345 131 prefix ... 508 4 "tar\0"
_STAR_PREFIX: Final = slice(345, 476)
_STAR_TRAILER: Final = slice(508, 512)

_MAGIC_USTAR: Final = b"ustar\0"
_MAGIC_GNU: Final = b"ustar "
_VERSION_GNU: Final = b" \0"
#: pax header, pax global header, GNU long name, GNU long link: blocks about the entry that follows.
SPECIAL_TYPES: Final = frozenset({b"x", b"g", b"L", b"K"})
_DEVICE_TYPES: Final = frozenset({b"3", b"4"})
_NOTHING: Final = frozenset({b"", b"\0"})
_OCTAL: Final = b"01234567"
_INT64_MAX: Final = (1 << 63) - 1
_NANO: Final = 1_000_000_000

Runs = list[tuple[int, int]]


@dataclass(slots=True)
class Header:
    """The fields of a block, pax records merged in by `merge_pax`. Numbers may be negative."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    typeflag: bytes
    linkname: bytes
    devmajor: int
    devminor: int
    is_gnu: bool


def parse_header(block: bytes, offset: int) -> Header:
    """Parse one header block; *offset* is where it lies, for errors. Of a special header only the size is looked at.

    Raises:
        FormatError: checksum or a number is wrong.
    """
    (name, mode, uid, gid, size, mtime, checksum, typeflag, linkname, magic, version, _uname, _gname, major, minor, prefix,
     _unused) = _HEADER.unpack(block)  # fmt: skip
    _check_sum(block, number(checksum, "checksum", offset), offset)
    length = number(size, "size", offset)
    is_gnu = magic == _MAGIC_GNU and version == _VERSION_GNU
    if typeflag in SPECIAL_TYPES:
        return Header(b"", 0, 0, 0, length, 0, typeflag, b"", 0, 0, is_gnu)
    is_ustar = magic == _MAGIC_USTAR
    is_device = typeflag in _DEVICE_TYPES and (is_ustar or is_gnu)
    if is_ustar and block[_STAR_TRAILER] == b"tar\0":
        prefix = block[_STAR_PREFIX]
    elif is_gnu:
        prefix = _misplaced_prefix(block, prefix, offset)
    elif not is_ustar:
        prefix = b""
    name = name.partition(b"\0")[0]
    if prefix[:1] not in _NOTHING:
        name = _string(prefix) + b"/" + name
    return Header(
        name,
        number(mode, "mode", offset),
        number(uid, "uid", offset),
        number(gid, "gid", offset),
        length,
        number(mtime, "mtime", offset) * _NANO,
        typeflag,
        linkname.partition(b"\0")[0],
        number(major, "devmajor", offset) if is_device else 0,
        number(minor, "devminor", offset) if is_device else 0,
        is_gnu,
    )


def number(field: bytes, key: str, offset: int) -> int:
    """Return a numeric field: octal digits between spaces and NULs, or base-256 when the first bit is set."""
    digits = field[:-1]
    if not field[-1] & ~0x20 and digits.isdigit() and not digits.translate(None, _OCTAL):
        return int(digits, 8)  # nearly all fields of nearly all tars
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=True) if field[0] & 0x40 else int.from_bytes(field, "big")
        if not field[0] & 0x40:
            value -= 0x80 << 8 * (len(field) - 1)
        if not -_INT64_MAX - 1 <= value <= _INT64_MAX:
            raise FormatError("tar", key, "number out of range", offset)
        return value
    digits = _string(field.strip(b" \0"))
    if not digits:
        return 0
    if not digits.isdigit():
        raise FormatError("tar", key, f"{field!r} is no octal number", offset)
    try:
        return int(digits, 8)
    except ValueError as error:
        raise FormatError("tar", key, f"{field!r} is no octal number", offset) from error


def decimal(text: bytes, key: str, offset: int) -> int:
    """Return a signed decimal number of 64 bits, as pax records have it."""
    digits = text[1:] if text[:1] in (b"+", b"-") else text
    if not digits.isdigit() or len(digits) > 32 or not -_INT64_MAX - 1 <= int(text) <= _INT64_MAX:
        raise FormatError("tar", key, f"{text[:64]!r} is no decimal number", offset)
    return int(text)


def parse_pax(data: bytes, offset: int) -> dict[bytes, bytes]:
    """Return the records of a pax header. A sparse map of version 0.0 comes back as one of version 0.1."""
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 24)
        digits = data[position:space] if space > 0 else b""
        end = position + int(digits) if digits.isdigit() else 0
        if not space + 1 < end <= len(data) or data[end - 1] != 0x0A:
            raise FormatError("tar", "pax record", "its length is wrong", offset + position)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key or b"\0" in key or (key in _NO_NUL and b"\0" in value):
            raise FormatError("tar", "pax record", "must be 'length key=value'", offset + position)
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (key == b"GNU.sparse.offset") != (len(sparse) % 2 == 0) or b"," in value:
                raise FormatError("tar", "GNU.sparse.offset", "offsets and lengths must alternate", offset + position)
            sparse.append(value)
        else:
            records[key] = value
        position = end
    if sparse:
        records[SPARSE_MAP] = b",".join(sparse)
    return records


_NO_NUL: Final = frozenset({b"path", b"linkpath", b"uname", b"gname"})


def merge_pax(header: Header, records: dict[bytes, bytes], offset: int) -> None:
    """Let *records* overrule the block; an empty value keeps what the block says."""
    if value := records.get(b"path"):
        header.name = value
    if value := records.get(b"linkpath"):
        header.linkname = value
    if value := records.get(b"uid"):
        header.uid = decimal(value, "uid", offset)
    if value := records.get(b"gid"):
        header.gid = decimal(value, "gid", offset)
    if value := records.get(b"size"):
        header.size = decimal(value, "size", offset)
    if value := records.get(b"mtime"):
        header.mtime_ns = pax_time(value, "mtime", offset)


def pax_time(text: bytes, key: str, offset: int) -> int:
    """Return nanoseconds; digits beyond the ninth are cut, so that -1.5 is -1500000000."""
    seconds, _, fraction = text.partition(b".")
    if fraction and not fraction.isdigit():
        raise FormatError("tar", key, f"{text[:64]!r} is no time", offset)
    nanos = int(fraction[:9].ljust(9, b"0")) if fraction else 0
    whole = decimal(seconds, key, offset) * _NANO
    return whole - nanos if seconds[:1] == b"-" else whole + nanos


def gnu_sparse_runs(block: bytes, offset: int, *, extension: bool) -> tuple[Runs, bool]:
    """Return the data runs of an old GNU sparse header or of an extension block, and whether another block follows."""
    start, count, flag = _GNU_SPARSE_EXTENSION if extension else _GNU_SPARSE
    runs: Runs = []
    for _ in range(count):
        middle, end = start + _SPARSE_FIELD_BYTES, start + 2 * _SPARSE_FIELD_BYTES
        if block[start] == 0:
            break
        runs.append((number(block[start:middle], "sparse", offset), number(block[middle:end], "sparse", offset)))
        start = end
    return runs, block[flag] != 0


def gnu_real_size(block: bytes, offset: int) -> int:
    """Return the size of an old GNU sparse file with its holes."""
    return number(block[_GNU_REAL_SIZE], "realsize", offset)


def pax_sparse_runs(records: dict[bytes, bytes], offset: int) -> Runs:
    """Return the data runs of sparse format 0.1."""
    text = records.get(SPARSE_MAP, b"")
    numbers = [decimal(word, "GNU.sparse.map", offset) for word in text.split(b",")] if text else []
    if len(numbers) != 2 * decimal(records.get(SPARSE_BLOCKS, b""), "GNU.sparse.numblocks", offset):
        raise FormatError("tar", "GNU.sparse.numblocks", "does not fit GNU.sparse.map", offset)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def check_runs(runs: Runs, size: int, stored: int, offset: int) -> tuple[tuple[int, int], ...]:
    """Return *runs* without empty ones: ascending, apart, within *size*, and *stored* bytes in all."""
    end = 0
    for start, length in runs:
        if start < end or length < 0 or start + length > size:
            raise FormatError("tar", "sparse", f"run {start}+{length} is out of order or beyond the file", offset)
        end = start + length
    if sum(length for _, length in runs) != stored:
        raise FormatError("tar", "sparse", f"the map does not describe the {stored} bytes that are stored", offset)
    return tuple((start, length) for start, length in runs if length)


_TYPEFLAGS: Final = {
    EntryType.REG: b"0",
    EntryType.HARDLINK: b"1",
    EntryType.SYMLINK: b"2",
    EntryType.CHAR: b"3",
    EntryType.BLOCK: b"4",
    EntryType.DIR: b"5",
    EntryType.FIFO: b"6",
}


def build_header(entry: Entry) -> bytes:
    """Return header blocks that say *entry*: a ustar block, behind a pax header where ustar cannot say it."""
    name = entry.path + b"/" if entry.type is EntryType.DIR else entry.path
    records = {XATTR_PREFIX + key: value for key, value in sorted(entry.xattrs.items())}
    if len(name) > 100:
        records[b"path"] = name
    if len(entry.link) > 100:
        records[b"linkpath"] = entry.link
    numbers = []
    for key, value, width in ((b"uid", entry.uid, 7), (b"gid", entry.gid, 7), (b"size", entry.size, 11)):
        fits = 0 <= value < 8**width
        if not fits:
            records[key] = b"%d" % value
        numbers.append(value if fits else 0)
    seconds, nanos = divmod(entry.mtime_ns, _NANO)
    if nanos or not 0 <= seconds < 8**11:
        records[b"mtime"] = _format_time(entry.mtime_ns)
        seconds = seconds if 0 <= seconds < 8**11 else 0
    devices = (entry.devmajor, entry.devminor)
    block = _block(name, entry.mode, numbers, seconds, _TYPEFLAGS[entry.type], entry.link, devices)
    if not records:
        return block
    body = b"".join(_record(key, value) for key, value in sorted(records.items()))
    # The name of a pax header is for people only: a fixed one keeps every byte of it ASCII.
    lead = _block(b"PaxHeaders.0/entry", 0o644, [0, 0, len(body)], 0, b"x", b"", (0, 0))
    return lead + body + bytes(padding(len(body))) + block


def padding(length: int) -> int:
    """Return how many bytes follow *length* bytes up to the next block."""
    return -length % BLOCK_BYTES


def _block(
    name: bytes, mode: int, numbers: list[int], seconds: int, flag: bytes, link: bytes, devices: tuple[int, int]
) -> bytes:
    uid, gid, size = numbers
    fields = _HEADER.pack(
        name[:100], b"%07o" % mode, b"%07o" % uid, b"%07o" % gid, b"%011o" % size, b"%011o" % seconds, b" " * 8, flag,
        link[:100], _MAGIC_USTAR, b"00", b"", b"", b"%07o" % devices[0], b"%07o" % devices[1], b"", b"",
    )  # fmt: skip
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def _record(key: bytes, value: bytes) -> bytes:
    body = len(key) + len(value) + 3
    length = body + len(b"%d" % body)
    length = body + len(b"%d" % length)
    return b"%d %b=%b\n" % (length, key, value)


def _format_time(time_ns: int) -> bytes:
    sign = b"-" if time_ns < 0 else b""
    seconds, nanos = divmod(abs(time_ns), _NANO)
    return (b"%b%d.%09d" % (sign, seconds, nanos)).rstrip(b"0").rstrip(b".") if nanos else b"%b%d" % (sign, seconds)


def _string(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _check_sum(block: bytes, expected: int, offset: int) -> None:
    field = block[_CHECKSUM]
    actual = sum(block) - sum(field) + 8 * 0x20
    if actual == expected:
        return
    signed = actual - 256 * sum(byte >= 0x80 for byte in block[:148] + block[156:])
    if signed != expected:
        raise FormatError("tar", "checksum", f"{expected}, the block sums to {actual}", offset)


def _misplaced_prefix(block: bytes, prefix: bytes, offset: int) -> bytes:
    """Return a name prefix that Go before 1.8 wrote over the times of a GNU header, or b""."""
    if prefix[:1] == b"\0":
        return b""
    try:
        for field in (block[_GNU_ATIME], block[_GNU_CTIME]):
            if field[0]:
                number(field, "atime", offset)
    except FormatError:
        text = _string(prefix)
        return text if text.isascii() else b""
    return b""
