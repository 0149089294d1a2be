"""The table of contents of a layer: the one model that every layer format is read into and written from.

Values only. Who reads a TOC (`estargz.reader`, `zstd_chunked.reader`) promises the invariants stated here, so that
whoever uses one (`tree`, `index`, `erofs`) need not check them again; what is promised by `tree` alone is said there.

Chunk, Entry and Member are values and nobody changes one. They are not frozen dataclasses only because a layer has hundreds
of thousands of them and making a frozen one takes three times as long (3.7 us against 1.0 us for an Entry).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

PREFETCH_LANDMARK: Final = b".prefetch.landmark"
NO_PREFETCH_LANDMARK: Final = b".no.prefetch.landmark"
TOC_ENTRY_NAME: Final = b"stargz.index.json"
#: Names in the root of a layer that belong to the format, not to the image: no view of the layer shows them.
FORMAT_NAMES: Final = frozenset({PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK, TOC_ENTRY_NAME})

DIGEST_BYTES: Final = 32
NO_XATTRS: Final[Mapping[bytes, bytes]] = MappingProxyType({})


class Compression(enum.Enum):
    """How the members of a blob are compressed; the value is the word used in the index and in annotations."""

    GZIP = "gzip"
    ZSTD = "zstd"


class EntryType(enum.Enum):
    """What an entry is; the value is its `type` in the TOC JSON."""

    DIR = "dir"
    REG = "reg"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    CHAR = "char"
    BLOCK = "block"
    FIFO = "fifo"


@dataclass(slots=True)
class Chunk:
    """The file bytes [offset, offset + length), found *inner_offset* bytes into the inflated member number *member*."""

    offset: int
    length: int
    #: Raw SHA-256 of the uncompressed bytes of this chunk, 32 bytes.
    digest: bytes
    #: Position in `TableOfContents.members`.
    member: int
    inner_offset: int = 0


@dataclass(slots=True)
class Entry:
    """One entry of the tar, attributes as written there.

    `path` and a hard link's `link` are relative to the root of the layer: no leading or trailing '/', no empty, '.' or
    '..' component; the root is b"". A symbolic link's `link` is its target verbatim. Whiteouts are entries named `.wh.*`.

    `chunks` belong to regular files only: ascending, not overlapping, within `size`. A range of the file that no chunk
    covers is zeros (zstd:chunked says so of long runs of zeros); it has no member and no digest.
    """

    path: bytes
    type: EntryType
    #: Permission bits with set-uid, set-gid and sticky: at most 0o7777.
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    #: Wall-clock nanoseconds since 1970, possibly negative: see `tree` for what a mounted layer shows.
    mtime_ns: int = 0
    link: bytes = b""
    #: Attribute name with its prefix (b"security.capability") -> value.
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: NO_XATTRS)
    devmajor: int = 0
    devminor: int = 0
    chunks: tuple[Chunk, ...] = ()


@dataclass(slots=True)
class Member:
    """A part of the blob that inflates by itself: `length` compressed bytes at blob `offset`.

    `length` may reach beyond the last compressed byte that is needed (a TOC gives only where the next member begins),
    and the bytes may be several gzip members or zstd frames in a row. `raw_length` is the inflated length, 0 if unknown.
    """

    offset: int
    length: int
    raw_length: int = 0


@dataclass(frozen=True, slots=True)
class TableOfContents:
    """Entries in the order in which they lie in the blob; members ascending, not overlapping, inside the blob.

    Each member is named by at least one chunk; parts of the blob that hold only tar headers are no members.
    """

    entries: list[Entry]
    members: list[Member]
    compression: Compression

    def prefetch_members(self) -> int:
        """Return how many of the first members the layer's prefetch landmark wants loaded ahead; 0 without one."""
        for entry in self.entries:
            if entry.path == PREFETCH_LANDMARK and entry.chunks:
                return entry.chunks[0].member
        return 0

    def need_bytes(self) -> list[int]:
        """Return for each member how many inflated bytes its chunks reach into: what `inflate_member` must give."""
        need = [0] * len(self.members)
        for entry in self.entries:
            for chunk in entry.chunks:
                end = chunk.inner_offset + chunk.length
                if end > need[chunk.member]:
                    need[chunk.member] = end
        return need


@dataclass(frozen=True, slots=True)
class TocLocation:
    """Where a blob has its compressed table of contents. `raw_length` is its inflated length, 0 if unknown."""

    offset: int
    length: int
    raw_length: int = 0
