"""Damaged and hostile metadata images: refused by name, in bounded time."""

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import erofs

from apparate.errors import FormatError
from apparate.format.erofs import ondisk, writer
from apparate.format.erofs.reader import ErofsReader
from apparate.format.toc import Compression, Entry, EntryType, TableOfContents
from apparate.format.tree import build_tree

SB = ondisk.SUPERBLOCK_OFFSET


def image() -> bytearray:
    entries = [
        Entry(b"dir/file", EntryType.REG, size=5000, xattrs={b"user.a": b"value", b"user.b": b"x" * 100}),
        Entry(b"dir/link", EntryType.SYMLINK, link=b"target"),
        Entry(b"other", EntryType.REG, xattrs={b"user.a": b"value"}),
    ]
    return bytearray(writer.build(build_tree(TableOfContents(entries, [], Compression.GZIP))).metadata)


def sealed(metadata: bytearray) -> bytes:
    ondisk.seal(metadata)
    return bytes(metadata)


def read_all(reader: ErofsReader) -> int:
    """Follow everything there is; return the number of names."""
    names = 0
    for path, inode in reader.walk():
        names += 1
        reader.xattrs(inode)
        reader.address(inode)
        if inode.kind == 0o120000:
            reader.symlink(inode)
        elif inode.kind == 0o040000:
            reader.lookup(inode, path.rpartition(b"/")[2] or b"file")
    return names


def offset_of(path: bytes) -> int:
    reader = ErofsReader(bytes(image()))
    return dict(reader.walk())[path].nid << ondisk.SLOT_BITS


@pytest.mark.parametrize(
    ("offset", "form", "value", "field"),
    [
        (SB, "<I", 0x12345678, "magic"),
        (SB + 12, "<B", 9, "blkszbits"),
        (SB + 13, "<B", 1, "blkszbits"),
        (SB + 14, "<H", 0xFFFF, "nid"),
        (SB + 32, "<I", 10**9, "fixed_nsec"),
        (SB + 36, "<I", 1, "i_u"),
        (SB + 40, "<I", 0xFFFFFFFF, "nid"),
        (SB + 44, "<I", 0xFFFFFFFF, "xattr"),
        (SB + 80, "<I", 1, "feature_incompat"),
        (SB + 80, "<I", 0x80000000, "feature_incompat"),
        (SB + 86, "<H", 1, "feature_incompat"),
        (SB + 90, "<B", 1, "blkszbits"),
        (SB + 91, "<B", 1, "feature_incompat"),
    ],
)
def test_a_superblock_field_that_lies_is_named(offset: int, form: str, value: int, field: str) -> None:
    metadata = image()
    struct.pack_into(form, metadata, offset, value)
    with pytest.raises(FormatError) as caught:
        read_all(ErofsReader(sealed(metadata)))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("path", "offset", "form", "value", "field"),
    [
        (b"dir/file", 0, "<H", 3 << 1, "i_format"),
        (b"dir/file", 0, "<H", 0x100, "i_format"),
        (b"dir/file", 0, "<H", 2 << 1, "i_format"),
        (b"dir/file", 2, "<H", 0xFFFF, "i_xattr_icount"),
        (b"dir/file", 8, "<I", 0xFFFFFFFF, "i_u"),
        (b"dir/file", 16, "<I", 0, "i_u"),
        (b"dir/link", 8, "<I", 4096, "i_size"),
        (b"dir/link", 8, "<I", 0, "i_size"),
        (b"dir/link", 8, "<I", 4090, "i_size"),
        (b"dir/link", 0, "<H", 0, "i_u"),
        (b"dir", 8, "<I", 0xFFFFFFFF, "i_u"),
        (b"dir", 8, "<I", 5, "i_size"),
    ],
)
def test_an_inode_field_that_lies_is_named(path: bytes, offset: int, form: str, value: int, field: str) -> None:
    metadata = image()
    struct.pack_into(form, metadata, offset_of(path) + offset, value)
    with pytest.raises(FormatError) as caught:
        read_all(ErofsReader(sealed(metadata)))
    assert caught.value.field == field


def entries_at(metadata: bytearray) -> int:
    """Where the entries of `dir` begin."""
    reader = ErofsReader(bytes(metadata))
    inode = dict(reader.walk())[b"dir"]
    return inode.body_offset + inode.body_bytes


def entry(number: int, form: str, offset: int, value: int) -> Callable[[bytearray], None]:
    def change(metadata: bytearray) -> None:
        struct.pack_into(form, metadata, entries_at(metadata) + ondisk.DIRENT_BYTES * number + offset, value)

    return change


def rename(old: bytes, new: bytes) -> Callable[[bytearray], None]:
    def change(metadata: bytearray) -> None:
        start = metadata.index(old, entries_at(metadata))
        metadata[start : start + len(old)] = new

    return change


def to_root(metadata: bytearray) -> None:
    root = ErofsReader(bytes(metadata)).root_nid
    struct.pack_into("<QHB", metadata, entries_at(metadata) + ondisk.DIRENT_BYTES * 2, root, 48 + 3, 2)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (entry(0, "<H", 8, 0), "nameoff"),
        (entry(0, "<H", 8, 13), "nameoff"),
        (entry(0, "<H", 8, 0xFFFC), "nameoff"),
        (entry(1, "<H", 8, 0), "nameoff"),
        (entry(2, "<H", 8, 0xFFFF), "nameoff"),
        (entry(2, "<B", 10, 9), "file_type"),
        (entry(2, "<Q", 0, 1 << 63), "nid"),
        (rename(b"filelink", b"fi/elink"), "name"),
        (rename(b"filelink", b"fi\0elink"), "name"),
        (rename(b"filelink", b"zilelink"), "name"),
        (rename(b"filelink", b"file\0ink"), "name"),
        (to_root, "nid"),
    ],
)
def test_a_directory_that_lies_is_named(change: Callable[[bytearray], None], field: str) -> None:
    metadata = image()
    change(metadata)
    with pytest.raises(FormatError) as caught:
        read_all(ErofsReader(sealed(metadata)))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("offset", "value", "field"), [(4, 200, "h_shared_count"), (16, 255, "xattr"), (17, 77, "xattr")]
)
def test_attributes_that_lie_are_named(offset: int, value: int, field: str) -> None:
    metadata = image()
    reader = ErofsReader(bytes(metadata))
    inode = dict(reader.walk())[b"dir/file"]
    metadata[inode.body_offset + offset] = value
    with pytest.raises(FormatError) as caught:
        read_all(ErofsReader(sealed(metadata)))
    assert caught.value.field == field


@pytest.mark.parametrize("length", [0, 1, 1024, 1200, 4095])
def test_a_cut_image_is_refused(length: int) -> None:
    with pytest.raises(FormatError) as caught:
        ErofsReader(bytes(image()[:length]))
    assert caught.value.field == "superblock"


def test_directories_that_share_blocks_do_not_take_quadratic_time() -> None:
    """1,000 directories, each of which claims the same large block run of names as its own."""
    block = b"".join(
        ondisk.DIRENT.pack(36 + 2 * number, ondisk.DIRENT_BYTES * 150 + 10 * number, 2) for number in range(150)
    ) + b"".join(b"%010d" % number for number in range(150))
    blocks = block.ljust(ondisk.BLOCK_BYTES, b"\0")
    inodes = bytearray()
    for number in range(2000):
        inodes += ondisk.EXTENDED_INODE.pack(1, 0, 0o40755, 0, 2000 * 4096, 33, 36 + 2 * number, 0, 0, 0, 0, 2)
    head = ondisk.pack_superblock(ondisk.Superblock(36, 2000, 0, 0, 3000, 0, 0, bytes(16)))
    metadata = bytearray(SB) + head + inodes
    metadata += bytes(-len(metadata) % ondisk.BLOCK_BYTES)
    metadata = metadata.ljust(33 * ondisk.BLOCK_BYTES, b"\0") + blocks * 2000
    reader = ErofsReader(sealed(metadata))
    with pytest.raises(FormatError):
        read_all(reader)


@functools.cache
def torture() -> bytes:
    return writer.build(build_tree(erofs.torture().toc)).metadata


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_give_our_error_or_another_tree(data: st.DataObject) -> None:
    metadata = image()
    for _ in range(data.draw(st.integers(1, 4))):
        offset = data.draw(st.integers(SB, 2400) | st.integers(SB, len(metadata) - 1))
        metadata[offset] = data.draw(st.sampled_from([0, 1, 2, 12, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    with contextlib.suppress(FormatError):
        assert read_all(ErofsReader(sealed(metadata))) < 1000


@given(st.integers(SB, 400_000), st.binary(min_size=1, max_size=64))
@settings(max_examples=30, deadline=None)
def test_changed_bytes_in_a_large_tree_give_our_error_or_another_tree(offset: int, junk: bytes) -> None:
    metadata = bytearray(torture())
    offset %= len(metadata)
    metadata[offset : offset + len(junk)] = junk
    del metadata[len(torture()) :]
    with contextlib.suppress(FormatError):
        read_all(ErofsReader(sealed(metadata)))
