"""Writes the metadata of an EROFS image: superblock, inodes, directories, attributes; file data get addresses only.

    byte 0        1024 zero bytes, superblock, then inodes in 32-byte slots from node number 36 (the root) on
    next block    shared extended attributes
    next block    directory blocks and symbolic links that do not fit behind their inode
    data          each regular file at a block of its own, in the order of `Tree.files`; not part of the metadata

Inodes whose time is the most common one take the compact form, all others the extended one, so times keep their nanoseconds
and owners their 32 bits. The same tree gives the same bytes. See docs/formats/erofs.md.
"""

from __future__ import annotations

import stat
import struct
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from typing import Final

from apparate.errors import FormatError
from apparate.format.erofs import ondisk
from apparate.format.erofs.xattrs import XattrArea, count
from apparate.format.toc import EntryType
from apparate.format.tree import Node, Tree

_SECOND_NS: Final = 1_000_000_000
_MASK: Final = ondisk.BLOCK_BYTES - 1
_UNION_OFFSET: Final = 16
_UUID_OFFSET: Final = ondisk.SUPERBLOCK_OFFSET + 48
_U32: Final = struct.Struct("<I")
_COMPACT_MAX: Final = ondisk.COMPACT_ID_MAX
_COMPACT_SIZE_MAX: Final = ondisk.COMPACT_SIZE_MAX
_TYPE_BITS: Final = 3
_TYPE_MASK: Final = (1 << _TYPE_BITS) - 1
_FORMATS: Final = {
    EntryType.DIR: stat.S_IFDIR,
    EntryType.REG: stat.S_IFREG,
    EntryType.SYMLINK: stat.S_IFLNK,
    EntryType.CHAR: stat.S_IFCHR,
    EntryType.BLOCK: stat.S_IFBLK,
    EntryType.FIFO: stat.S_IFIFO,
}


@dataclass(frozen=True, slots=True)
class ErofsLayout:
    """An image: `metadata` are its first bytes; `addresses[i]` is where the data of `Tree.files[i]` begin."""

    metadata: bytes
    image_size: int
    addresses: list[int]


def build(tree: Tree) -> ErofsLayout:
    """Return the image of *tree*.

    Raises:
        FormatError: the tree holds something that EROFS cannot: too many attributes on one inode, too large an image.
    """
    return _Builder(tree).build()


@dataclass(slots=True)
class _Directory:
    """A directory on its way: `blocks` are the ends of the runs of names that make up its blocks."""

    node: Node
    names: list[bytes]
    children: list[Node]
    blocks: list[int]
    size: int
    #: Where the inode and the inline tail are; the tail is 0 if all blocks are outside.
    inode: int = 0
    tail: int = 0


class _Builder:
    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._parts: list[bytes] = [bytes(ondisk.FIRST_NID << ondisk.SLOT_BITS)]
        self._position = ondisk.FIRST_NID << ondisk.SLOT_BITS
        #: Node -> node number and file type: nid << 3 | type.
        self._numbers: dict[Node, int] = {}
        self._directories = _directories(tree.root)
        #: (inode offset, content) of symbolic links that do not fit behind their inode.
        self._outside: list[tuple[int, bytes]] = []
        self._epoch_ns = self._common_time()
        self._xattrs = XattrArea(self._nodes_with_xattrs())

    def build(self) -> ErofsLayout:
        for directory in self._directories:
            self._place_directory(directory)
            self._place_children(directory.children)
        image = bytearray(b"".join(self._parts))
        self._parts.clear()
        _pad(image)
        xattr_block = len(image) >> ondisk.BLOCK_BITS if self._xattrs.content else 0
        image += self._xattrs.content
        _pad(image)
        self._write_outside(image)
        self._write_directories(image)
        addresses, image_size = self._assign_addresses(image)
        self._write_superblock(image, xattr_block, image_size)
        return ErofsLayout(bytes(image), image_size, addresses)

    def _common_time(self) -> int:
        times = Counter(child.mtime_ns for directory in self._directories for child in directory.children)
        times[self._tree.root.mtime_ns] += 1
        return max(0, times.most_common(1)[0][0])

    def _nodes_with_xattrs(self) -> list[dict[bytes, bytes]]:
        nodes = {c: None for d in self._directories for c in d.children if c.xattrs}
        found = [dict(node.xattrs) for node in nodes]
        return [dict(self._tree.root.xattrs), *found]

    def _place_children(self, children: list[Node]) -> None:
        numbers = self._numbers
        for node in children:
            kind = node.type
            if kind is EntryType.DIR or (node.nlink > 1 and node in numbers):
                continue
            if kind is EntryType.REG:
                self._place(node, stat.S_IFREG | node.mode, 1, node.size, 0)
            elif kind is EntryType.SYMLINK:
                self._place_symlink(node)
            else:
                device = 0 if kind is EntryType.FIFO else ondisk.encode_device(node.devmajor, node.devminor)
                mode = _FORMATS[kind] | node.mode
                self._place(node, mode, ondisk.FILE_TYPES[stat.S_IFMT(mode)], 0, device)

    def _place_symlink(self, node: Node) -> None:
        mode, file_type = stat.S_IFLNK | node.mode, ondisk.FILE_TYPES[stat.S_IFLNK]
        if not self._place(node, mode, file_type, len(node.link), ondisk.NO_BLOCK, node.link):
            self._outside.append((self._numbers[node] >> _TYPE_BITS << ondisk.SLOT_BITS, node.link))

    def _place_directory(self, directory: _Directory) -> None:
        node, size = directory.node, directory.size
        tail = bytes(size - (len(directory.blocks) - 1 << ondisk.BLOCK_BITS))
        mode, file_type = stat.S_IFDIR | node.mode, ondisk.FILE_TYPES[stat.S_IFDIR]
        directory.tail = self._place(node, mode, file_type, size, ondisk.NO_BLOCK, tail)
        directory.inode = self._numbers[node] >> _TYPE_BITS << ondisk.SLOT_BITS

    def _place(self, node: Node, mode: int, file_type: int, size: int, union: int, tail: bytes = b"") -> int:
        """Append the inode of *node*; its number goes to `_numbers`. Return where *tail* follows it, 0 if that cannot be.

        The inode lies inside one block; if a tail follows it, inode, attributes and tail do.
        """
        mtime_ns, uid, gid, nlink = node.mtime_ns, node.uid, node.gid, node.nlink
        compact = mtime_ns == self._epoch_ns and (uid | gid | nlink) <= _COMPACT_MAX and size <= _COMPACT_SIZE_MAX
        length = ondisk.COMPACT_BYTES if compact else ondisk.EXTENDED_BYTES
        body = self._xattrs.body(node.xattrs) if node.xattrs else b""
        head = length + len(body)
        inline = 0 < len(tail) <= ondisk.BLOCK_BYTES - head
        position = self._position
        if (position & _MASK) + (head + len(tail) if inline else length) > ondisk.BLOCK_BYTES:
            padding = -position & _MASK
            self._parts.append(bytes(padding))
            position += padding
        nid = position >> ondisk.SLOT_BITS
        self._numbers[node] = nid << _TYPE_BITS | file_type
        form = ondisk.LAYOUT_INLINE << ondisk.LAYOUT_SHIFT if inline else 0
        icount, ino = count(body), nid & 0xFFFFFFFF
        if compact:
            inode = ondisk.COMPACT_INODE.pack(form, icount, mode, nlink, size, 0, union, ino, uid, gid, 0)
        else:
            seconds, nsec = divmod(mtime_ns, _SECOND_NS)
            form |= ondisk.FORMAT_EXTENDED
            inode = ondisk.EXTENDED_INODE.pack(form, icount, mode, 0, size, union, ino, uid, gid, seconds, nsec, nlink)
        self._parts.append(inode)
        self._position = position + length
        if body or inline:
            self._append(body, tail if inline else b"")
        return position + head if inline else 0

    def _append(self, body: bytes, tail: bytes) -> None:
        """Append what follows an inode, up to the next slot."""
        length = len(body) + len(tail)
        padding = -(self._position + length) % ondisk.SLOT_BYTES
        self._parts += [body, tail, bytes(padding)]
        self._position += length + padding

    def _write_outside(self, image: bytearray) -> None:
        for inode, content in self._outside:
            _U32.pack_into(image, inode + _UNION_OFFSET, len(image) >> ondisk.BLOCK_BITS)
            image += content
            _pad(image)

    def _write_directories(self, image: bytearray) -> None:
        parents: dict[Node, int] = {self._tree.root: self._numbers[self._tree.root]}
        for directory in self._directories:
            own = self._numbers[directory.node]
            for child in directory.children:
                if child.children is not None:
                    parents[child] = own
            blocks = self._directory_blocks(directory, own, parents[directory.node])
            if directory.tail:
                tail = blocks.pop()
                image[directory.tail : directory.tail + len(tail)] = tail
            if blocks:
                _U32.pack_into(image, directory.inode + _UNION_OFFSET, len(image) >> ondisk.BLOCK_BITS)
                for block in blocks:
                    image += block
                    _pad(image)

    def _directory_blocks(self, directory: _Directory, own: int, parent: int) -> list[bytes]:
        numbers = self._numbers
        found = [numbers[child] for child in directory.children]
        for name, number in ((b".", own), (b"..", parent)):
            found.insert(directory.names.index(name), number)
        blocks, start = [], 0
        pack = ondisk.DIRENT.pack
        for end in directory.blocks:
            names = directory.names[start:end]
            offsets = accumulate(map(len, names), initial=ondisk.DIRENT_BYTES * len(names))
            entries = [
                pack(number >> _TYPE_BITS, offset, number & _TYPE_MASK)
                for number, offset in zip(found[start:end], offsets, strict=False)
            ]
            blocks.append(b"".join(entries + names))
            start = end
        return blocks

    def _assign_addresses(self, image: bytearray) -> tuple[list[int], int]:
        numbers, block = self._numbers, len(image) >> ondisk.BLOCK_BITS
        addresses = []
        for node in self._tree.files:
            if block >= ondisk.NO_BLOCK:
                break
            addresses.append(block << ondisk.BLOCK_BITS)
            inode = numbers[node] >> _TYPE_BITS << ondisk.SLOT_BITS
            _U32.pack_into(image, inode + _UNION_OFFSET, block)
            block += (node.size + _MASK) >> ondisk.BLOCK_BITS
        if block > ondisk.NO_BLOCK:
            raise FormatError(ondisk.FORMAT, "blocks", "the image would be larger than 16 TiB")
        return addresses, block << ondisk.BLOCK_BITS

    def _write_superblock(self, image: bytearray, xattr_block: int, image_size: int) -> None:
        epoch_s, nsec = divmod(self._epoch_ns, _SECOND_NS)
        root = self._numbers[self._tree.root] >> _TYPE_BITS
        values = ondisk.Superblock(
            root, self._tree.inode_count, epoch_s, nsec, image_size >> ondisk.BLOCK_BITS, 0, xattr_block, bytes(16)
        )
        start = ondisk.SUPERBLOCK_OFFSET
        image[start : start + ondisk.SUPERBLOCK_BYTES] = ondisk.pack_superblock(values)
        # overlayfs turns features off for lower file systems without a unique id, so it is made from the content.
        image[_UUID_OFFSET : _UUID_OFFSET + 16] = sha256(image).digest()[:16]
        ondisk.seal(image)


def _directories(root: Node) -> list[_Directory]:
    """Return all directories, each before those below it, so that the inodes of a directory lie close together."""
    found, pending = [], [root]
    while pending:
        node = pending.pop()
        assert node.children is not None
        names = sorted(node.children)
        children = [node.children[name] for name in names]
        pending.extend(child for child in reversed(children) if child.children is not None)
        # '.' and '..' are entries like any other, and some names sort before them
        entries = sorted([*names, b".", b".."])
        blocks, size = _cut(entries)
        found.append(_Directory(node, entries, children, blocks, size))
    return found


def _cut(names: list[bytes]) -> tuple[list[int], int]:
    """Return where the blocks of a directory with these entries end, and its size."""
    used = ondisk.DIRENT_BYTES * len(names) + sum(map(len, names))
    if used <= ondisk.BLOCK_BYTES:
        return [len(names)], used
    ends, used = [], 0
    for number, name in enumerate(names):
        length = ondisk.DIRENT_BYTES + len(name)
        if used + length > ondisk.BLOCK_BYTES:
            ends.append(number)
            used = 0
        used += length
    return [*ends, len(names)], (len(ends) << ondisk.BLOCK_BITS) + used


def _pad(image: bytearray) -> None:
    image += bytes(-len(image) & _MASK)
