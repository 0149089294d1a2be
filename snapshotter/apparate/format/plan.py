"""Cuts a layer into members: which entries come first, which bytes of which file share a member.

- A member holds whole small files with their headers, up to the limit; a file that is larger is cut at multiples of the
  limit, and its rest shares a member with what follows.
- What a prefetch list names lies in front, in its order, each entry behind its parents and a link behind its target. Hot and
  cold bytes never share a member; ranges grow to page borders, and neighbours with a small gap become one.
- A landmark ends the front; it has a member of its own, so its blob offset says where the front ends.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from apparate.errors import InvalidArgument
from apparate.format.collector import collector_paused
from apparate.format.effective import Item, effective_items
from apparate.format.prefetch import PrefetchRange
from apparate.format.tar_header import END_OF_ARCHIVE, build_header, padding
from apparate.format.toc import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, Entry, EntryType
from apparate.format.writer import (
    LayerOptions,
    LayerPlan,
    MemberPlan,
    Piece,
    PlannedChunk,
    SourceEntry,
    Span,
    WholeFile,
    Zeros,
)

PAGE_BYTES: Final = 4096
#: Hot ranges of a file that are at most this far apart become one: the gap costs less than another request.
HOT_GAP_BYTES: Final = 16 * 1024
#: Holes of sparse files from this size on lie in members of their own, of HOLE_MEMBER_BYTES: they compress to nothing.
HOLE_BYTES: Final = 1 << 20
HOLE_MEMBER_BYTES: Final = 4 << 20
MIN_MEMBER_BYTES: Final = PAGE_BYTES
MAX_MEMBER_BYTES: Final = 16 << 20
LANDMARK_CONTENT: Final = b"\x0f"

#: (start, end, limit): file bytes that may share a member only with bytes of the same limit and heat.
_Segment = tuple[int, int, "_Heat"]


class _Heat:
    """A class of bytes that share members, and how large these are. Compared by identity."""

    __slots__ = ("limit",)

    def __init__(self, limit: int) -> None:
        self.limit = limit


def check_options(options: LayerOptions) -> None:
    """Refuse sizes that make no sense.

    Raises:
        InvalidArgument: the option is named.
    """
    for name, value in (("member_bytes", options.member_bytes), ("cold_bytes", options.cold_bytes)):
        if not MIN_MEMBER_BYTES <= value <= MAX_MEMBER_BYTES or value % PAGE_BYTES:
            raise InvalidArgument(
                f"{name} must be a multiple of {PAGE_BYTES} from {MIN_MEMBER_BYTES} to {MAX_MEMBER_BYTES}, not {value}"
            )
    if options.chunk_bytes < 0 or options.chunk_bytes % PAGE_BYTES:
        raise InvalidArgument(f"chunk_bytes must be a multiple of {PAGE_BYTES}, not {options.chunk_bytes}")


def plan_layer(
    source: Sequence[SourceEntry],
    options: LayerOptions,
    prefetch: Sequence[PrefetchRange] | None,
    *,
    ends_archive: bool,
) -> LayerPlan:
    """Return the plan of a layer; *ends_archive*: its last member ends with the zero blocks that end a tar."""
    check_options(options)
    with collector_paused():
        return _plan(source, options, prefetch, ends_archive=ends_archive)


def _plan(
    source: Sequence[SourceEntry],
    options: LayerOptions,
    prefetch: Sequence[PrefetchRange] | None,
    *,
    ends_archive: bool,
) -> LayerPlan:
    items = effective_items(source)
    front, ranges, rest = _order(items, prefetch or ())
    hot, cold, hole = _Heat(options.member_bytes), _Heat(options.cold_bytes), _Heat(HOLE_MEMBER_BYTES)
    usual = hot if prefetch is None else cold
    spans = (item.header.offset for item in source if not isinstance(item.header, bytes))
    cutter = _Cutter(options.chunk_bytes, max(spans, default=0))
    landmark = PREFETCH_LANDMARK if ranges else NO_PREFETCH_LANDMARK
    if not ranges:
        cutter.landmark(landmark, hot)
    for item in front:
        cutter.entry(item, _segments(item, ranges.get(id(item), []), hot, usual, hole))
    if ranges:
        cutter.landmark(landmark, hot)
    for item in rest:
        cutter.entry(item, _segments(item, [], hot, usual, hole))
    return cutter.finish(ends_archive=ends_archive)


def _order(
    items: list[Item], prefetch: Iterable[PrefetchRange]
) -> tuple[list[Item], dict[int, list[tuple[int, int]]], list[Item]]:
    """Return the entries in front, the hot ranges by the id() of the item, and the entries behind."""
    by_path = {item.entry.path: item for item in items}
    front: dict[int, Item] = {id(item): item for item in items if item.is_early or not item.entry.path}
    ranges: dict[int, list[tuple[int, int]]] = {}
    for wanted in prefetch:
        item = by_path.get(wanted.path)
        if item is None:
            continue
        target = item.primary or item
        size = target.entry.size
        start = min(wanted.offset, size)
        end = size if wanted.length is None else min(size, start + wanted.length)
        for placed in (target, item):
            for parent in _parents(placed.entry.path, by_path):
                front.setdefault(id(parent), parent)
            front.setdefault(id(placed), placed)
        if target.entry.type is EntryType.REG and start < end:
            ranges.setdefault(id(target), []).append((start, end))
    rest = [item for item in items if id(item) not in front]
    return list(front.values()), ranges, rest


def _parents(path: bytes, by_path: dict[bytes, Item]) -> Iterator[Item]:
    slash = path.find(b"/")
    while slash > 0:
        parent = by_path.get(path[:slash])
        if parent is not None:
            yield parent
        slash = path.find(b"/", slash + 1)


def _segments(item: Item, ranges: list[tuple[int, int]], hot: _Heat, usual: _Heat, hole: _Heat) -> list[_Segment]:
    """Split a file's bytes by heat."""
    if item.entry.type is not EntryType.REG:
        return []
    size = item.entry.size
    if not ranges and item.source.runs is None:
        return [(0, size, usual)] if size else []
    segments: list[_Segment] = []
    at = 0
    for start, end in _merge(ranges, size):
        segments += _with_holes(item.source, at, start, usual, hole)
        segments.append((start, end, hot))
        at = end
    segments += _with_holes(item.source, at, size, usual, hole)
    return segments


def _merge(ranges: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        start, end = first // PAGE_BYTES * PAGE_BYTES, min(size, -(-last // PAGE_BYTES) * PAGE_BYTES)
        if merged and start - merged[-1][1] <= HOT_GAP_BYTES:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _with_holes(source: SourceEntry, start: int, end: int, usual: _Heat, hole: _Heat) -> list[_Segment]:
    """Return the segments of [start, end): one, but for the large holes of a sparse file."""
    segments: list[_Segment] = []
    at = start
    for hole_start, hole_end in _holes(source):
        first, last = max(hole_start, at), min(hole_end, end)
        if last - first >= HOLE_BYTES:
            if first > at:
                segments.append((at, first, usual))
            segments.append((first, last, hole))
            at = last
    if at < end:
        segments.append((at, end, usual))
    return segments


def _holes(source: SourceEntry) -> Iterator[tuple[int, int]]:
    if source.runs is None:
        return
    at = 0
    for start, length in source.runs:
        if start > at:
            yield at, start
        at = start + length
    if at < source.entry.size:
        yield at, source.entry.size


def _content(source: SourceEntry) -> list[tuple[int, Span | Zeros]]:
    """Return the bytes of a file as pieces, each behind its offset in the file."""
    if source.runs is None:
        return [(0, source.payload)]
    pieces: list[tuple[int, Span | Zeros]] = []
    at, stored = 0, source.payload.offset
    for start, length in source.runs:
        if start > at:
            pieces.append((at, Zeros(start - at)))
        pieces.append((start, Span(stored, length)))
        at, stored = start + length, stored + length
    if at < source.entry.size:
        pieces.append((at, Zeros(source.entry.size - at)))
    return pieces


def _cut(content: list[tuple[int, Span | Zeros]], start: int, end: int) -> Iterator[Span | Zeros]:
    """Give the pieces of *content* that make up the file bytes [start, end)."""
    at = bisect_right(content, start, key=_offset) - 1
    while start < end:
        first, piece = content[at]
        length = min(end, first + piece.length) - start
        yield Span(piece.offset + start - first, length) if isinstance(piece, Span) else Zeros(length)
        start += length
        at += 1


def _offset(piece: tuple[int, Span | Zeros]) -> int:
    return piece[0]


class _Cutter:
    """Collects pieces into the current member and closes it where the rules say so."""

    def __init__(self, chunk_bytes: int, padded_until: int) -> None:
        self._chunk_bytes = chunk_bytes
        #: Below this offset of the source, each payload has its padding; the last one of a tar may lack it.
        self._padded_until = padded_until
        self._entries: list[Entry] = []
        self._members: list[MemberPlan] = []
        self._whole_files: list[WholeFile] = []
        self._pieces: list[Piece] = []
        #: Where in the source the last piece ends, if it is a span; it belongs to this object and may grow.
        self._span_end = -1
        self._length = 0
        self._chunks: list[PlannedChunk] = []
        self._heat: _Heat | None = None

    def entry(self, item: Item, segments: list[_Segment]) -> None:
        header = item.header
        header_length = len(header) if isinstance(header, bytes) else header.length
        limit = self._heat.limit if self._heat else MAX_MEMBER_BYTES
        if self._length + header_length > limit:
            self._close()
        self._add(header, header_length)
        number = len(self._entries)
        self._entries.append(item.entry)
        if not segments:
            return
        content = _content(item.source)
        chunks = sum(self._segment(number, content, *segment) for segment in segments)
        if chunks > 1:
            self._whole_files.append(WholeFile(number, tuple(piece for _, piece in content)))
        self._pad(item)

    def landmark(self, name: bytes, heat: _Heat) -> None:
        self._close()
        entry = Entry(name, EntryType.REG, size=len(LANDMARK_CONTENT))
        self._add(build_header(entry), len(build_header(entry)))
        self._add_chunk(len(self._entries), 0, [LANDMARK_CONTENT], len(LANDMARK_CONTENT), heat)
        self._entries.append(entry)
        self._add(Zeros(padding(len(LANDMARK_CONTENT))), padding(len(LANDMARK_CONTENT)))
        self._close()

    def finish(self, *, ends_archive: bool) -> LayerPlan:
        if ends_archive:
            self._add(Zeros(len(END_OF_ARCHIVE)), len(END_OF_ARCHIVE))
        self._close()
        return LayerPlan(self._entries, self._members, self._whole_files)

    def _segment(self, number: int, content: list[tuple[int, Span | Zeros]], start: int, end: int, heat: _Heat) -> int:
        """Add file bytes of one heat; return the number of chunks that they made."""
        shares = self._heat is heat and self._length + end - start <= heat.limit
        if self._heat is not None and not shares:
            self._close()
        elif self._heat is None and self._length > heat.limit // 4:
            self._close()  # headers only, but more of them than a reader of these bytes should inflate
        count = 0
        for first in range(start, end, heat.limit):
            last = min(end, first + heat.limit)
            step = self._chunk_bytes or heat.limit
            for at in range(first, last, step):
                stop = min(last, at + step)
                self._add_chunk(number, at, _cut(content, at, stop), stop - at, heat)
                count += 1
            if last < end:
                self._close()
        return count

    def _add_chunk(self, number: int, offset: int, pieces: Iterable[Piece], length: int, heat: _Heat) -> None:
        self._chunks.append(PlannedChunk(number, offset, length, self._length))
        self._heat = heat
        before = self._length
        for piece in pieces:
            self._add(piece, len(piece) if isinstance(piece, bytes) else piece.length)
        assert self._length == before + length

    def _pad(self, item: Item) -> None:
        """Pad to the next block, with the source's own padding where that keeps one span in one piece."""
        length = padding(item.entry.size)
        if not length:
            return
        payload = item.source.payload
        end = payload.offset + payload.length
        is_there = item.source.runs is None and end + length <= self._padded_until
        self._add(Span(end, length) if is_there else Zeros(length), length)

    def _add(self, piece: Piece, length: int) -> None:
        """Append a piece; a span that goes on where the last one ends makes that one longer."""
        if type(piece) is Span:
            if piece.offset == self._span_end:
                last = self._pieces[-1]
                assert type(last) is Span
                last.length += length
            else:
                self._pieces.append(Span(piece.offset, length))
            self._span_end = piece.offset + length
        else:
            self._pieces.append(piece)
            self._span_end = -1
        self._length += length

    def _close(self) -> None:
        if self._length:
            self._members.append(MemberPlan(tuple(self._pieces), self._length, tuple(self._chunks)))
            self._pieces = []
            self._span_end = -1
            self._chunks = []
            self._length = 0
            self._heat = None
