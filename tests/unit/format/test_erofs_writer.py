"""Metadata images: what the writer writes, the reader reads back."""

from __future__ import annotations

import stat
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import erofs

from apparate.errors import FormatError
from apparate.format.erofs import ondisk, writer
from apparate.format.erofs.reader import ErofsReader, Inode
from apparate.format.toc import Compression, Entry, EntryType, TableOfContents
from apparate.format.tree import Node, Tree, build_tree

NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: not set(name) & {0, 0x2F} and name not in (b".", b".."))
TIMES = st.sampled_from([0, erofs.TIME_NS, erofs.TIME_NS + 999_999_999, 2**63 - 1]) | st.integers(0, 2**63 - 1)
IDS = st.sampled_from([0, 1000, 0xFFFF, 0x10000, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF)
XATTRS = st.dictionaries(
    st.sampled_from(
        [b"user.a", b"user.b", b"security.capability", b"system.posix_acl_access", b"trusted.overlay.opaque"]
    )
    | st.binary(min_size=1, max_size=200).map(lambda rest: b"user." + rest.replace(b"\0", b"0")),
    st.binary(max_size=40) | st.integers(0, 5000).map(lambda length: b"x" * length),
    max_size=4,
)


@st.composite
def nodes(draw: st.DrawFn, kind: EntryType) -> Node:
    node = Node(
        kind,
        draw(st.integers(0, 0o7777)),
        uid=draw(IDS),
        gid=draw(IDS),
        mtime_ns=draw(TIMES),
        xattrs=draw(XATTRS) if draw(st.booleans()) else {},
    )
    if kind is EntryType.REG:
        node.size = draw(st.sampled_from([0, 1, 4096, 5000, 2**32, 2**33]))
    elif kind is EntryType.SYMLINK:
        node.link = b"t" * draw(st.sampled_from([1, 60, 3999, 4032, 4064, 4095]) | st.integers(1, 4095))
    elif kind in (EntryType.CHAR, EntryType.BLOCK):
        node.devmajor = draw(st.integers(0, ondisk.MAJOR_MAX))
        node.devminor = draw(st.integers(0, ondisk.MINOR_MAX))
    elif kind is EntryType.DIR:
        node.children = {}
        node.nlink = 2
    return node


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Trees of any shape, with hard links and directories of several blocks."""
    root = draw(nodes(EntryType.DIR))
    directories = [root]
    others: list[Node] = []
    count = 1
    for _ in range(draw(st.integers(0, 25))):
        parent = draw(st.sampled_from(directories))
        assert parent.children is not None
        name = draw(NAMES)
        if name in parent.children:
            continue
        if others and draw(st.integers(0, 9)) == 0:
            node = draw(st.sampled_from(others))
            node.nlink += 1
        else:
            node = draw(nodes(draw(st.sampled_from([kind for kind in EntryType if kind is not EntryType.HARDLINK]))))
            count += 1
            if node.type is EntryType.DIR:
                parent.nlink += 1
                directories.append(node)
            else:
                others.append(node)
        parent.children[name] = node
    if draw(st.booleans()):
        count += fill(draw(st.sampled_from(directories)), draw(st.integers(0, 300)), draw(st.integers(8, 200)))
    files = [node for node in others if node.type is EntryType.REG and node.size]
    return Tree(root, files, count)


def fill(directory: Node, entries: int, length: int) -> int:
    assert directory.children is not None
    before = len(directory.children)
    for number in range(entries):
        directory.children.setdefault(b"%0*d" % (length, number), Node(EntryType.FIFO, 0o600))
    return len(directory.children) - before


def tree_of(*entries: Entry) -> Tree:
    return build_tree(TableOfContents(list(entries), [], Compression.GZIP))


def read_back(tree: Tree) -> tuple[ErofsReader, dict[bytes, Inode]]:
    reader = ErofsReader(writer.build(tree).metadata)
    return reader, dict(reader.walk())


@given(trees())
@settings(max_examples=150, deadline=None)
def test_every_tree_is_read_back_as_it_was(tree: Tree) -> None:
    layout = writer.build(tree)
    reader = ErofsReader(layout.metadata)
    wanted = dict(tree.walk())
    found = dict(reader.walk())
    assert list(found) == list(wanted)
    addresses = {id(node): address for node, address in zip(tree.files, layout.addresses, strict=True)}
    numbers: dict[int, int] = {}
    for path, node in wanted.items():
        inode = found[path]
        assert inode.mode == erofs.KINDS[node.type] | node.mode
        assert (inode.uid, inode.gid, inode.nlink) == (node.uid, node.gid, node.nlink)
        assert inode.mtime_ns == node.mtime_ns
        assert inode.device == (node.devmajor, node.devminor)
        assert reader.xattrs(inode) == dict(node.xattrs)
        assert numbers.setdefault(id(node), inode.nid) == inode.nid
        if node.type is EntryType.REG:
            assert inode.size == node.size
            assert reader.address(inode) == addresses.get(id(node), 0)
        elif node.type is EntryType.SYMLINK:
            assert reader.symlink(inode) == node.link
    assert len(set(numbers.values())) == len(numbers) == tree.inode_count == reader.superblock.inodes
    assert reader.image_size == layout.image_size
    check_placement(reader, found, layout)


def check_placement(reader: ErofsReader, found: dict[bytes, Inode], layout: writer.ErofsLayout) -> None:
    """What kernels of any age need: no inode over a block border, nor one with its inline data."""
    assert layout.image_size % ondisk.BLOCK_BYTES == len(layout.metadata) % ondisk.BLOCK_BYTES == 0
    for inode in found.values():
        start = inode.nid << ondisk.SLOT_BITS
        head = inode.body_offset - start
        end = inode.body_offset + inode.body_bytes if inode.layout == ondisk.LAYOUT_INLINE else start + head
        if inode.layout == ondisk.LAYOUT_INLINE:
            end += inode.size % ondisk.BLOCK_BYTES or ondisk.BLOCK_BYTES
        assert start // ondisk.BLOCK_BYTES == (end - 1) // ondisk.BLOCK_BYTES


@given(trees())
@settings(max_examples=50, deadline=None)
def test_every_name_is_found_and_others_are_not(tree: Tree) -> None:
    reader, found = read_back(tree)
    for path, inode in found.items():
        if inode.kind != stat.S_IFDIR:
            continue
        prefix = path + b"/" if path else b""
        names = {entry.name for entry in reader.entries(inode)}
        for name in names - {b".", b".."}:
            assert reader.lookup(inode, name) == found[prefix + name].nid
            for other in (name + b"\x01", name[:-1], name[:-1] + bytes([name[-1] ^ 1])):
                assert (reader.lookup(inode, other) is not None) == (other in names)
        assert reader.lookup(inode, b".") == inode.nid


def test_a_cursor_continues_where_it_was_taken() -> None:
    tree = tree_of(*(Entry(b"%0100d" % number, EntryType.FIFO) for number in range(200)))
    reader, _ = read_back(tree)
    root = reader.inode(reader.root_nid)
    everything = list(reader.entries(root))
    assert len(everything) == 202
    for number, entry in enumerate(everything):
        assert list(reader.entries(root, entry.cursor))[:3] == everything[number + 1 : number + 4]
    assert list(reader.entries(root, 1 << 60)) == []


def test_the_most_common_time_makes_compact_inodes() -> None:
    entries = [Entry(b"%d" % number, EntryType.REG, mtime_ns=erofs.TIME_NS + 5) for number in range(10)]
    entries.append(Entry(b"other", EntryType.REG, mtime_ns=erofs.TIME_NS))
    entries.append(Entry(b"owner", EntryType.REG, mtime_ns=erofs.TIME_NS + 5, uid=70_000))
    reader, found = read_back(tree_of(*entries))
    sizes = {path: inode.body_offset - (inode.nid << ondisk.SLOT_BITS) for path, inode in found.items()}
    assert sizes.pop(b"") == ondisk.EXTENDED_BYTES
    assert {sizes.pop(b"other"), sizes.pop(b"owner")} == {ondisk.EXTENDED_BYTES}
    assert set(sizes.values()) == {ondisk.COMPACT_BYTES}
    assert (reader.superblock.epoch_s, reader.superblock.fixed_nsec) == divmod(erofs.TIME_NS + 5, 10**9)


def test_attributes_of_several_inodes_are_stored_once() -> None:
    value = bytes(range(256)) * 8
    xattrs = {b"user.large": value}
    tree = tree_of(*(Entry(b"%d" % number, EntryType.REG, xattrs=xattrs) for number in range(100)))
    layout = writer.build(tree)
    assert layout.metadata.count(value) == 1
    reader = ErofsReader(layout.metadata)
    assert all(reader.xattrs(inode) == xattrs for path, inode in reader.walk() if path)


def test_attributes_that_erofs_cannot_name_are_left_out() -> None:
    tree = tree_of(Entry(b"file", EntryType.REG))
    assert tree.root.children is not None
    tree.root.children[b"file"].xattrs = {b"system.other": b"1", b"user.": b"2", b"user.kept": b"3"}
    reader, found = read_back(tree)
    assert reader.xattrs(found[b"file"]) == {b"user.kept": b"3"}


def test_more_attributes_than_an_inode_can_hold_are_refused() -> None:
    xattrs = {b"user.%d" % number: bytes(65_535) for number in range(5)}
    with pytest.raises(FormatError) as caught:
        writer.build(tree_of(Entry(b"file", EntryType.REG, xattrs=xattrs)))
    assert caught.value.field == "xattrs"


def test_an_image_above_the_limit_is_refused() -> None:
    tree = tree_of(Entry(b"file", EntryType.REG, size=1 << 40))
    tree.files[0].size = ondisk.IMAGE_BYTES_MAX
    with pytest.raises(FormatError) as caught:
        writer.build(tree)
    assert caught.value.field == "blocks"


def test_the_same_tree_gives_the_same_bytes_and_another_one_another_uuid() -> None:
    first = writer.build(build_tree(erofs.torture().toc)).metadata
    assert writer.build(build_tree(erofs.torture().toc)).metadata == first
    other = writer.build(tree_of(Entry(b"file", EntryType.REG))).metadata
    identities = {uuid.UUID(bytes=ErofsReader(metadata).superblock.uuid) for metadata in (first, other)}
    assert len(identities) == 2
    assert uuid.UUID(int=0) not in identities


def test_device_numbers_survive() -> None:
    for device in ((0, 0), (1, 3), (8, 255), (259, 256), (ondisk.MAJOR_MAX, ondisk.MINOR_MAX)):
        assert ondisk.decode_device(ondisk.encode_device(*device)) == device
