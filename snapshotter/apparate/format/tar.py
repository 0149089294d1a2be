"""Streaming tar parser, sans-I/O: bytes in pieces of any size go in, entries and payload come out.

It accepts and refuses what Go's archive/tar and containerd's unpacking do (old GNU sparse files, which containerd cannot
unpack, are accepted as well), so that a layer means the same to us as to a plain pull. pax global headers are skipped, as
containerd skips them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from apparate.errors import FormatError
from apparate.format import tar_header as th
from apparate.format.paths import clean_path
from apparate.format.toc import NO_XATTRS, Entry, EntryType
from apparate.format.writer import SourceEntry, Span

Buffer = bytes | bytearray | memoryview

_TYPES: Final = {
    b"0": EntryType.REG,
    b"\0": EntryType.REG,
    b"S": EntryType.REG,
    b"1": EntryType.HARDLINK,
    b"2": EntryType.SYMLINK,
    b"3": EntryType.CHAR,
    b"4": EntryType.BLOCK,
    b"5": EntryType.DIR,
    b"6": EntryType.FIFO,
}
_PERMISSIONS: Final = 0o7777
_DEVICES: Final = (EntryType.CHAR, EntryType.BLOCK)
_LINKS: Final = (EntryType.HARDLINK, EntryType.SYMLINK)


@dataclass(frozen=True, slots=True)
class EntryHeader:
    """An entry begins. `raw` is all its header blocks as they lie in the tar, from byte `offset` of it.

    `stored_length` bytes of payload follow, at `payload_offset`; `runs` places them in a sparse file, None: they are the file.
    """

    entry: Entry
    raw: bytes
    offset: int
    payload_offset: int
    stored_length: int
    runs: tuple[tuple[int, int], ...] | None = None

    def source(self) -> SourceEntry:
        """Return what `LayerFormat.plan` wants to know."""
        header = Span(self.offset, len(self.raw))
        return SourceEntry(self.entry, header, Span(self.payload_offset, self.stored_length), self.runs)


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes of the current file from *offset* in the file. `data` is a view of what was fed: use it before the next feed."""

    offset: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class EntryEnd:
    """The payload of the current entry is complete (also after entries without one)."""


Event = EntryHeader | Payload | EntryEnd
_END: Final = EntryEnd()


class TarParser:
    """One tar stream. Feed it all bytes in order, then call `finish`.

    Args:
        payload: give `Payload` events; without them only the structure is parsed, at the speed of skipping.
    """

    def __init__(self, *, payload: bool = True) -> None:
        self._want_payload = payload
        self._position = 0
        self._block = bytearray()
        self._wanted = th.BLOCK_BYTES
        self._handler: Callable[[bytes, list[Event]], None] = self._on_header
        self._payload_left = 0
        self._padding_left = 0
        self._file_offset = 0
        self._runs_left: list[tuple[int, int]] = []
        self._zero_blocks = 0
        self._ended = False
        self._begin_entry()

    def feed(self, data: Buffer) -> list[Event]:
        """Take the next bytes of the tar and return what they complete. Bytes behind the end of the archive are ignored.

        Raises:
            FormatError: this is no tar that containerd would unpack; the parser is of no further use.
        """
        view = memoryview(data)
        events: list[Event] = []
        at = 0
        while at < len(view) and not self._ended:
            if self._payload_left:
                taken = min(self._payload_left, len(view) - at)
                self._on_payload(view[at : at + taken], events)
            elif self._padding_left:
                taken = min(self._padding_left, len(view) - at)
                self._padding_left -= taken
            else:
                taken = min(self._wanted - len(self._block), len(view) - at)
                self._block += view[at : at + taken]
            at += taken
            self._position += taken
            if len(self._block) == self._wanted:
                block = bytes(self._block)
                self._block.clear()
                self._handler(block, events)
        self._position += len(view) - at
        return events

    def finish(self) -> None:
        """Say that the stream ends here.

        Raises:
            FormatError: it ends inside an entry.
        """
        inside = self._block or self._payload_left or self._header
        if inside and not self._ended:
            raise FormatError("tar", "stream", "ends in the middle of an entry", self._position)

    def _begin_entry(self) -> None:
        self._raw: list[bytes] = []
        self._start = self._position
        self._pax: dict[bytes, bytes] = {}
        self._long_name = b""
        self._long_link = b""
        self._header: th.Header | None = None
        self._expect(th.BLOCK_BYTES, self._on_header)

    def _expect(self, length: int, handler: Callable[[bytes, list[Event]], None]) -> None:
        self._wanted = length
        self._handler = handler

    def _on_header(self, block: bytes, events: list[Event]) -> None:
        if block == th.ZERO_BLOCK:
            self._zero_blocks += 1
            self._ended = self._zero_blocks == 2
            return
        offset = self._position - th.BLOCK_BYTES
        if self._zero_blocks:
            raise FormatError("tar", "header", "a zero block inside the archive", offset)
        if not self._raw:
            self._start = offset
        self._raw.append(block)
        header = th.parse_header(block, offset)
        if header.typeflag in th.SPECIAL_TYPES:
            self._special(header, offset, events)
            return
        if self._pax:
            th.merge_pax(header, self._pax, offset)
        header.name = self._long_name or header.name
        header.linkname = self._long_link or header.linkname
        self._header = header
        if header.typeflag == b"S":
            self._old_sparse(block, events)
        else:
            self._pax_sparse(events)

    def _special(self, header: th.Header, offset: int, events: list[Event]) -> None:
        if not 0 <= header.size <= th.MAX_SPECIAL_BYTES:
            raise FormatError("tar", "size", f"{header.size} is too large for a header's data", offset)
        handlers = {b"x": self._on_pax, b"g": self._on_global, b"L": self._on_long_name, b"K": self._on_long_link}
        handler = handlers[header.typeflag]
        self._special_size = header.size
        if header.size:
            self._expect(header.size + th.padding(header.size), handler)
        else:
            handler(b"", events)

    def _special_data(self, data: bytes) -> bytes:
        self._raw.append(data)
        self._expect(th.BLOCK_BYTES, self._on_header)
        return data[: self._special_size]

    def _on_pax(self, data: bytes, _events: list[Event]) -> None:
        start = self._position - len(data)
        self._pax = th.parse_pax(self._special_data(data), start)

    def _on_global(self, data: bytes, _events: list[Event]) -> None:
        th.parse_pax(self._special_data(data), self._position - len(data))
        self._begin_entry()

    def _on_long_name(self, data: bytes, _events: list[Event]) -> None:
        self._long_name = self._special_data(data).partition(b"\0")[0]

    def _on_long_link(self, data: bytes, _events: list[Event]) -> None:
        self._long_link = self._special_data(data).partition(b"\0")[0]

    def _old_sparse(self, block: bytes, events: list[Event]) -> None:
        header = self._current()
        if not header.is_gnu:
            raise FormatError("tar", "typeflag", "a sparse file that is not of the GNU format", self._start)
        self._stored = header.size
        header.size = th.gnu_real_size(block, self._start)
        self._runs, more = th.gnu_sparse_runs(block, self._start, extension=False)
        if more:
            self._expect(th.BLOCK_BYTES, self._on_sparse_extension)
        else:
            self._complete(self._stored, self._runs, events)

    def _on_sparse_extension(self, block: bytes, events: list[Event]) -> None:
        self._raw.append(block)
        if len(self._raw) * th.BLOCK_BYTES > th.MAX_SPECIAL_BYTES:
            raise FormatError("tar", "sparse", "the map is too long", self._start)
        runs, more = th.gnu_sparse_runs(block, self._start, extension=True)
        self._runs += runs
        if not more:
            self._complete(self._stored, self._runs, events)

    def _pax_sparse(self, events: list[Event]) -> None:
        """Take the sparse map from the pax records, or expect it in front of the payload (format 1.0)."""
        header, pax = self._current(), self._pax
        if not pax:
            self._complete(header.size, None, events)
            return
        version = (pax.get(b"GNU.sparse.major", b""), pax.get(b"GNU.sparse.minor", b""))
        old = version in ((b"0", b"0"), (b"0", b"1")) or (version == (b"", b"") and bool(pax.get(th.SPARSE_MAP)))
        if not old and version != (b"1", b"0"):
            self._complete(header.size, None, events)
            return
        stored = header.size
        header.name = pax.get(b"GNU.sparse.name") or header.name
        size = pax.get(b"GNU.sparse.size") or pax.get(b"GNU.sparse.realsize")
        if size:
            header.size = th.decimal(size, "GNU.sparse.size", self._start)
        if old:
            self._complete(stored, th.pax_sparse_runs(pax, self._start), events)
            return
        self._stored = stored
        self._map = bytearray()
        self._map_lines = 0
        self._map_runs = -1
        self._expect(th.BLOCK_BYTES, self._on_sparse_map)

    def _on_sparse_map(self, block: bytes, events: list[Event]) -> None:
        """Collect the map of format 1.0: a count, then that many pairs, decimal lines, padded to a block."""
        self._raw.append(block)
        self._map += block
        self._map_lines += block.count(b"\n")
        self._stored -= len(block)
        if len(self._map) > th.MAX_SPECIAL_BYTES or self._stored < 0:
            raise FormatError("tar", "sparse", "the map is longer than the file's data", self._start)
        if self._map_runs < 0 and self._map_lines:
            self._map_runs = th.decimal(bytes(self._map[: self._map.index(b"\n")]), "sparse", self._start)
            if not 0 <= self._map_runs <= th.MAX_SPECIAL_BYTES:
                raise FormatError("tar", "sparse", f"{self._map_runs} runs", self._start)
        if not self._map_lines or self._map_lines < 2 * self._map_runs + 1:
            return
        lines = bytes(self._map).split(b"\n")[1 : 2 * self._map_runs + 1]
        numbers = [th.decimal(line, "sparse", self._start) for line in lines]
        self._complete(self._stored, list(zip(numbers[::2], numbers[1::2], strict=True)), events)

    def _complete(self, stored: int, runs: th.Runs | None, events: list[Event]) -> None:
        """All headers of an entry are read: give it, and get ready for its payload."""
        header = self._current()
        kind = _TYPES.get(header.typeflag)
        if kind is None:
            raise FormatError("tar", "typeflag", f"{header.typeflag!r} cannot be unpacked", self._start)
        if header.typeflag == b"\0" and header.name.endswith(b"/"):
            kind = EntryType.DIR
        if kind is not EntryType.REG:
            if runs is not None:
                raise FormatError("tar", "sparse", f"a sparse {kind.value}", self._start)
            stored = header.size = 0
        if stored < 0 or header.size < 0:
            raise FormatError("tar", "size", "is negative", self._start)
        placed = None if runs is None else th.check_runs(runs, header.size, stored, self._start)
        entry = _entry(header, kind, self._pax)
        events.append(EntryHeader(entry, b"".join(self._raw), self._start, self._position, stored, placed))
        self._runs_left = list(placed[::-1]) if placed else []
        self._file_offset = 0
        self._payload_left = stored
        self._padding_left = th.padding(stored)
        self._begin_entry()
        if not stored:
            events.append(_END)

    def _on_payload(self, data: memoryview, events: list[Event]) -> None:
        self._payload_left -= len(data)
        if self._want_payload:
            self._emit(data, events)
        if not self._payload_left:
            events.append(_END)

    def _emit(self, data: memoryview, events: list[Event]) -> None:
        while self._runs_left and len(data):
            start, length = self._runs_left.pop()
            taken = min(length, len(data))
            events.append(Payload(start, data[:taken]))
            data = data[taken:]
            if taken < length:
                self._runs_left.append((start + taken, length - taken))
        if len(data):
            events.append(Payload(self._file_offset, data))
            self._file_offset += len(data)

    def _current(self) -> th.Header:
        assert self._header is not None
        return self._header


def _entry(header: th.Header, kind: EntryType, pax: dict[bytes, bytes]) -> Entry:
    link = header.linkname if kind in _LINKS else b""
    if kind is EntryType.HARDLINK:
        link = clean_path(link, "tar", "linkname")
    xattrs = NO_XATTRS
    if pax:
        prefix = len(th.XATTR_PREFIX)
        xattrs = {key[prefix:]: value for key, value in pax.items() if key.startswith(th.XATTR_PREFIX)} or NO_XATTRS
    has_device = kind in _DEVICES
    return Entry(
        clean_path(header.name, "tar", "name"),
        kind,
        header.mode & _PERMISSIONS,
        header.uid,
        header.gid,
        header.size if kind is EntryType.REG else 0,
        header.mtime_ns,
        link,
        xattrs,
        header.devmajor if has_device else 0,
        header.devminor if has_device else 0,
    )
