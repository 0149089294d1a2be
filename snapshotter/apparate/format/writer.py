"""How a layer is written, whatever its format: the seam between `convert` (I/O, threads) and the formats (decisions).

    # while spooling the tar
    source = [event.source() for event in parser.feed(data) if isinstance(event, tar.EntryHeader)]
    layer_format = formats.layer_format_for(Compression.GZIP, options)          # apparate.format.formats
    plan = layer_format.plan(source, prefetch)                # pure: same arguments, same plan

    for member in plan.members:                               # any order, any thread
        raw = b"".join(...)                                   # resolve member.pieces: Span -> spool, Zeros, bytes
        encoded = layer_format.encode(member, raw)            # releases the GIL; compressed bytes, chunk digests
    digests = {f.entry: sha256 over f.pieces for f in plan.whole_files}       # any thread

    toc = layer_format.table(plan, [e.summary for e in encoded])   # offsets follow from the compressed lengths
    document = layer_format.document(toc, digests)            # TOC JSON and its digest, which the index wants to know
    # region: the embedded index (`format.embedding`), or b""; members_end: where it begins
    trailer = layer_format.finish(plan, document, members_end, region)

    blob   = compressed bytes of the members in plan order + trailer.data
    DiffID = SHA-256 of the raw bytes of the members in plan order + trailer.raw

The spool holds the *uncompressed* source tar, unchanged; a `Span` is a range of it. Tar headers are taken over byte for
byte, except those of sparse files (written out in full, holes are `Zeros`) and of the few entries that only a new header
can keep right (`format.effective`). Every layer gets exactly one landmark. Duplicate, overwritten and format entries are
dropped, so any reader, first or last entry wins, sees one tree.

Values are not changed once they are handed over; those that a layer has hundreds of thousands of are not frozen
dataclasses for the reason given in `format.toc`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from apparate.format.prefetch import PrefetchRange
from apparate.format.toc import Compression, Entry, TableOfContents

KIB: Final = 1024
DEFAULT_MEMBER_BYTES: Final = 64 * KIB
DEFAULT_COLD_BYTES: Final = 128 * KIB
DEFAULT_LEVEL: Final = 6


@dataclass(slots=True)
class Span:
    """The bytes [offset, offset + length) of the spooled source tar."""

    offset: int
    length: int


@dataclass(slots=True)
class Zeros:
    """`length` zero bytes: padding, and the holes of a sparse file."""

    length: int


#: A part of a member: from the source tar, zeros, or literal bytes (a new header, a landmark).
Piece = Span | Zeros | bytes


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """Sizes are of uncompressed bytes. Options that change the output are part of a conversion's identity."""

    #: A member holds about this much; smaller files share a member, larger ones are cut into members of this size.
    member_bytes: int = DEFAULT_MEMBER_BYTES
    #: The same for what a given prefetch list does not name.
    cold_bytes: int = DEFAULT_COLD_BYTES
    #: Cut chunks (the unit that has a digest) to this size inside a member; 0: as large as the member allows.
    chunk_bytes: int = 0
    #: Of the codec: libdeflate 1 to 12, zstd 1 to 22.
    level: int = DEFAULT_LEVEL


@dataclass(slots=True)
class SourceEntry:
    """An entry of the source tar and where its bytes are.

    `header` spans all its header blocks (pax, GNU long name, ustar), or is a new header: of an entry that the source tar
    lacks. `payload` is the stored bytes, without padding.
    `runs`, for sparse files only, gives the data runs (file offset, length) that the payload holds back to back; None:
    the payload is the file.
    """

    entry: Entry
    header: Span | bytes
    payload: Span
    runs: tuple[tuple[int, int], ...] | None = None


@dataclass(slots=True)
class PlannedChunk:
    """`length` bytes at *offset* of the file `LayerPlan.entries[entry]`, *inner_offset* into the member's raw bytes."""

    entry: int
    offset: int
    length: int
    inner_offset: int


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """One member: its raw bytes are its pieces in a row, `raw_length` in all. `chunks` may be empty (only headers)."""

    pieces: tuple[Piece, ...]
    raw_length: int
    chunks: tuple[PlannedChunk, ...]


@dataclass(frozen=True, slots=True)
class WholeFile:
    """A file of several chunks: the TOC wants the SHA-256 of all of it, `pieces` in a row."""

    entry: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Entries in output order, without chunks; members in blob order."""

    entries: list[Entry]
    members: list[MemberPlan]
    whole_files: list[WholeFile]


@dataclass(frozen=True, slots=True)
class MemberSummary:
    """What is kept of a member when its compressed bytes are written: their count, the digest of each planned chunk."""

    length: int
    raw_length: int
    chunk_digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class EncodedMember:
    """`data` is the compressed member, ready to be appended to the blob."""

    data: bytes
    summary: MemberSummary


@dataclass(frozen=True, slots=True)
class TocDocument:
    """The TOC JSON and its raw SHA-256."""

    json: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class Trailer:
    """What follows the members: `data` in the blob, `raw` in the decompressed tar (for the DiffID).

    `annotations` are those of the layer descriptor, `region_offset` is where in the blob the embedded index begins.
    """

    data: bytes
    raw: bytes
    annotations: Mapping[str, str]
    region_offset: int


class LayerFormat(Protocol):
    """A way to write layers. Implementations keep no state between calls; all methods may be called from any thread."""

    @property
    def compression(self) -> Compression: ...

    @property
    def media_type(self) -> str: ...

    @property
    def codec(self) -> str:
        """Codec, version and level (`deflate 0.9.0 level 6`): what digests depend on beside source and options."""
        ...

    def plan(self, source: Sequence[SourceEntry], prefetch: Sequence[PrefetchRange] | None) -> LayerPlan:
        """Decide the order of the entries and the cut into members.

        *prefetch* None: no list, all members are of `member_bytes`. A list, even an empty one (it names only files of
        other layers): what it names goes to the front, in its order, and the rest sits in members of `cold_bytes`.
        Paths that the layer does not have are ignored.

        Raises:
            FormatError: the entries do not make a tree (`format.tree` says what is refused).
        """
        ...

    def encode(self, member: MemberPlan, raw: bytes) -> EncodedMember: ...

    def table(self, plan: LayerPlan, members: Sequence[MemberSummary]) -> TableOfContents:
        """Return the TOC of the layer: exact member lengths, chunk digests filled in, members without chunks left out."""
        ...

    def document(self, toc: TableOfContents, file_digests: Mapping[int, bytes]) -> TocDocument:
        """Return the JSON of *toc*. *file_digests* maps `WholeFile.entry` to the file's raw SHA-256.

        Raises:
            FormatError: it is larger than a reader would accept.
        """
        ...

    def finish(self, plan: LayerPlan, document: TocDocument, members_end: int, region: bytes = b"") -> Trailer:
        """Return the end of the blob. *members_end* is the sum of the compressed lengths: where *region* begins."""
        ...
