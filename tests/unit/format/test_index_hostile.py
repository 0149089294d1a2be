"""Indexes that lie, in both forms: refused by the name of the field, before anything large is allocated."""

from __future__ import annotations

import contextlib
import mmap
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from apparate.errors import FormatError, Unsupported
from apparate.format.index import LayerIndex, build_index, build_tables, local, tables, unpack, wire
from apparate.format.index.check import check_tree
from apparate.format.toc import Chunk, Compression, Entry, EntryType, Member, TableOfContents

HEADER = wire._HEADER.size
TABLE = wire._TABLE_BYTES
NAMES = [name for name, _ in wire._SECTIONS]
PAGE = 4096


def toc() -> TableOfContents:
    entries = [
        Entry(b"a", EntryType.REG, size=5000, chunks=(Chunk(0, 5000, b"a" * 32, 0, 0),)),
        Entry(b"b", EntryType.REG, size=100, chunks=(Chunk(0, 100, b"b" * 32, 0, 5632),)),
        Entry(
            b"c", EntryType.REG, size=9000, chunks=(Chunk(0, 4000, b"c" * 32, 1, 0), Chunk(5000, 4000, b"d" * 32, 2, 0))
        ),
    ]
    return TableOfContents(entries, [Member(0, 900, 6144), Member(900, 800, 4000), Member(1800, 700)], Compression.GZIP)


def field_of(call: Callable[[], object]) -> str:
    with pytest.raises(FormatError) as caught:
        call()
    return caught.value.field


# --- tables ---


@pytest.mark.parametrize(
    ("field", "values", "named"),
    [
        ("member_offset", [0, 899, 1800], "member_offset"),
        ("member_offset", [900, 0, 1800], "member_offset"),
        ("member_offset", [0, 900, 1 << 63], "member_offset"),
        ("member_offset", [-1, 900, 1800], "member_offset"),
        ("member_length", [900, 901, 700], "member_offset"),
        ("member_length", [900, 0, 700], "member_length"),
        ("member_raw", [5700, 4000, 0], "member_raw"),
        ("member_piece", [0, 2, 2, 4], "member_piece"),
        ("member_piece", [0, 3, 2, 4], "member_piece"),
        ("member_piece", [1, 2, 3, 4], "member_piece"),
        ("member_piece", [0, 2, 3, 5], "member_piece"),
        ("member_piece", [0, 2, 4], "member_piece"),
        ("piece_address", [PAGE, PAGE * 3, PAGE * 3 + 50, PAGE * 4 + 5000], "piece_address"),
        ("piece_address", [PAGE * 3, PAGE, PAGE * 4, PAGE * 4 + 5000], "piece_address"),
        ("piece_address", [0, PAGE * 3, PAGE * 4, PAGE * 4 + 5000], "piece_address"),
        ("piece_address", [PAGE, PAGE * 3, PAGE * 4, 1 << 50], "piece_address"),
        ("piece_inner", [0, 4999, 0, 0], "piece_inner"),
        ("piece_inner", [0, 5632, 0, (1 << 32) - 10], "piece_inner"),
        ("piece_length", [5000, 0, 4000, 4000], "piece_length"),
        ("digests", b"x" * 95, "digests"),
        ("prefetch_address", [0], "prefetch_address"),
        ("prefetch_length", [1 << 40], "prefetch_address"),
        ("prefetch_length", [], "prefetch"),
        ("image_size", PAGE, "image_size"),
        ("image_size", 1 << 60, "image_size"),
        ("metadata", bytes(PAGE), "magic"),
        ("metadata", b"", "superblock"),
    ],
)
def test_a_table_that_lies_is_named(field: str, values: Any, named: str) -> None:
    good = replace(build_tables(toc()), prefetch_address=[PAGE], prefetch_length=[10])
    good.check()
    assert field_of(replace(good, **{field: values}).check) == named


def test_chunks_against_the_order_of_the_blob_are_refused() -> None:
    source = toc()
    first, second = source.entries[2].chunks
    crossed = (replace(first, member=2), replace(second, member=1))
    source.entries[2] = replace(source.entries[2], chunks=crossed)
    assert field_of(lambda: build_tables(source)) == "chunks"


def test_a_layer_too_large_for_an_index_is_not_loaded_lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apparate.format.index.build.MAX_PIECES", 3)
    with pytest.raises(Unsupported, match="4 chunks"):
        build_tables(toc())


@pytest.mark.parametrize("member", [Member(900, 1 << 32, 4000), Member(900, 800, 1 << 32)])
def test_a_member_of_4_gib_is_not_loaded_lazily(member: Member) -> None:
    source = toc()
    source.members[1:] = [member, Member(1 << 40, 700)]
    with pytest.raises(Unsupported, match="bytes in a member"):
        build_tables(source)


def test_a_tree_that_contradicts_the_pieces_is_refused() -> None:
    good = build_tables(toc())
    check_tree(LayerIndex(local.write_local(good)))
    outside = replace(good, piece_length=[5000, 101, 4000, 4000])
    assert field_of(lambda: check_tree(LayerIndex(local.write_local(outside)))) == "piece_address"
    assert field_of(lambda: check_tree(LayerIndex(local.write_local(replace(good, inode_count=5))))) == "inode_count"


# --- wire form ---


def sealed_wire(packed: bytearray) -> bytes:
    packed = bytearray(packed)
    struct.pack_into("<I", packed, TABLE, zlib.crc32(packed[:TABLE]))
    return bytes(packed)


@pytest.mark.parametrize(
    ("offset", "form", "value", "field"),
    [
        (0, "<B", 0, "magic"),
        (8, "<H", 2, "version"),
        (10, "<H", 3, "compression"),
        (12, "<I", 1, "inode_count"),
        (16, "<I", 4, "digests"),
        (16, "<I", tables.MAX_MEMBERS + 1, "member_count"),
        (16, "<I", tables.MAX_MEMBERS, "digests"),
        (20, "<I", 3, "piece_place"),
        (20, "<I", 0xFFFFFFFF, "piece_count"),
        (24, "<I", 1, "prefetch_address"),
        (24, "<I", tables.MAX_PREFETCH + 1, "prefetch_count"),
        (28, "<I", 10, "version"),
        (32, "<Q", PAGE * 2, "metadata"),
        (32, "<Q", PAGE + 1, "metadata_size"),
        (32, "<Q", 0, "metadata_size"),
        (32, "<Q", 1 << 63, "metadata_size"),
        (40, "<Q", 0, "image_size"),
        (40, "<Q", 1 << 63, "image_size"),
        (HEADER, "<B", 9, "metadata"),
        (HEADER + 1, "<B", 2, "metadata"),
        (HEADER + 1, "<B", 3, "metadata"),
        (HEADER + 4, "<I", 0xFFFFFFFF, "metadata"),
        (HEADER + 4, "<I", 0, "metadata"),
    ],
)
def test_a_header_field_of_the_wire_form_that_lies_is_named(offset: int, form: str, value: int, field: str) -> None:
    packed = bytearray(build_index(toc()))
    struct.pack_into(form, packed, offset, value)
    assert field_of(lambda: unpack(sealed_wire(packed))) == field
    if field not in {"magic", "version"}:
        assert field_of(lambda: unpack(bytes(packed))) == "header_crc"


@pytest.mark.parametrize("says", [64 << 20, 0, PAGE])
def test_a_bomb_is_not_inflated(says: int) -> None:
    """The section should be 4 KiB and inflates to 64 MiB, whatever its frame says of itself."""
    frame = bytearray(zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20)))
    if says == 0:
        frame = bytearray(zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(64 << 20)))
    elif says:
        assert struct.unpack_from("<I", frame, 6) == (64 << 20,)  # behind magic, descriptor and window
        struct.pack_into("<I", frame, 6, says)
    packed = bytearray(build_index(toc()))
    (length,) = struct.unpack_from("<I", packed, HEADER + 4)
    struct.pack_into("<BBHI", packed, HEADER, 1, 1, 0, len(frame))
    start = TABLE + 4
    packed[start : start + length] = frame
    whole = sealed_wire(packed)
    tracemalloc.start()
    try:
        assert field_of(lambda: unpack(whole)) == "metadata"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [0, 10, HEADER, TABLE, TABLE + 4, -1])
def test_a_cut_wire_form_is_refused(length: int) -> None:
    field_of(lambda: unpack(build_index(toc())[:length]))


def test_bytes_behind_the_wire_form_are_refused() -> None:
    assert field_of(lambda: unpack(build_index(toc()) + b"\0")) == "size"


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_a_changed_wire_form_gives_our_error_or_a_sound_index(data: st.DataObject) -> None:
    packed = bytearray(build_index(toc()))
    for _ in range(data.draw(st.integers(1, 4))):
        offset = data.draw(st.integers(0, TABLE - 1) | st.integers(TABLE + 4, len(packed) - 1))
        packed[offset] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        use(LayerIndex(unpack(sealed_wire(packed))))


def use(index: LayerIndex) -> None:
    """Everything that a caller may do must work on an index that was accepted."""
    assert len(index.metadata()) == index.metadata_size
    covered = 0
    for number in range(index.member_count):
        member = index.member(number)
        assert member.offset + member.length <= index.blob_end
        for piece in index.pieces(number):
            assert index.metadata_size <= piece.address
            assert piece.address + piece.length <= index.image_size
            assert piece.inner_offset + piece.length <= member.need_bytes
            assert number in index.members_in(piece.address, piece.length)
            covered += piece.length
        assert member.raw_length == 0 or member.raw_length >= member.need_bytes
    assert covered <= index.image_size
    assert len(index.members_in(0, index.image_size)) == index.member_count
    assert all(address + length <= index.image_size for address, length in index.prefetch)


# --- local form ---


def sealed_local(content: bytearray) -> bytes:
    content = bytearray(content)
    struct.pack_into("=I", content, 36, zlib.crc32(content[PAGE:]))
    struct.pack_into("=I", content, 124, zlib.crc32(content[:124]))
    return bytes(content)


@pytest.mark.parametrize(
    ("offset", "form", "value", "field"),
    [
        (0, "=B", 0, "magic"),
        (8, "=I", 0x04030201, "magic"),
        (12, "=I", 2, "version"),
        (16, "=I", 0, "compression"),
        (24, "=I", 4, "size"),
        (24, "=I", 0xFFFFFFFF, "member_count"),
        (28, "=I", 0, "size"),
        (32, "=I", 1, "size"),
        (40, "=Q", 0, "metadata_size"),
        (40, "=Q", PAGE * 2, "size"),
        (48, "=Q", PAGE, "image_size"),
        (PAGE + 1024, "=I", 0, "magic"),
        (PAGE * 2, "=Q", 1 << 40, "member_offset"),
        (PAGE * 2 + 24, "=Q", 0, "member_address"),
        (PAGE * 2 + 48, "=Q", 1 << 40, "piece_address"),
    ],
)
def test_a_field_of_the_local_form_that_lies_is_named(offset: int, form: str, value: int, field: str) -> None:
    content = bytearray(unpack(build_index(toc())))
    struct.pack_into(form, content, offset, value)
    assert field_of(lambda: LayerIndex(sealed_local(content))) == field
    if offset >= PAGE:
        assert field_of(lambda: LayerIndex(bytes(content))) in {"header_crc", "body_crc"}


@pytest.mark.parametrize("length", [0, 100, PAGE, PAGE * 2, PAGE * 2 + 5, -1])
def test_a_cut_local_form_is_refused(length: int) -> None:
    assert field_of(lambda: LayerIndex(unpack(build_index(toc()))[:length])) == "size"


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_a_changed_local_form_gives_our_error_or_a_sound_index(data: st.DataObject) -> None:
    content = bytearray(unpack(build_index(toc())))
    places = st.integers(0, 123) | st.integers(PAGE + 1024, PAGE + 1200) | st.integers(PAGE * 2, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(places)] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        use(LayerIndex(sealed_local(content)))


def test_every_changed_byte_is_noticed_without_a_new_checksum() -> None:
    content = unpack(build_index(toc()))
    for offset in [*range(128), *range(PAGE, len(content), 7)]:
        changed = bytearray(content)
        changed[offset] ^= 0x20
        field_of(lambda bytes_=bytes(changed): LayerIndex(bytes_))  # type: ignore[misc]  # bound now, not later


def test_an_index_is_used_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.write_bytes(unpack(build_index(toc())))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        index = LayerIndex(mapped)
        use(index)
        again = LayerIndex(mapped, trusted=True)
        use(again)
        index.close()
        again.close()
