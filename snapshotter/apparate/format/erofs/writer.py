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
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate, chain
from operator import attrgetter
from typing import Final

from apparate.errors import FormatError
from apparate.format.erofs import ondisk
from apparate.format.erofs.xattrs import XattrArea, count
from apparate.format.toc import NO_XATTRS, EntryType
from apparate.format.tree import Node, Tree

_SECOND_NS: Final = 1_000_000_000
_MASK: Final = ondisk.BLOCK_BYTES - 1
_UNION_OFFSET: Final = 16
_UUID_OFFSET: Final = ondisk.SUPERBLOCK_OFFSET + 48
_U32: Final = struct.Struct("<I")
_COMPACT_MAX: Final = ondisk.COMPACT_ID_MAX
_COMPACT_SIZE_MAX: Final = ondisk.COMPACT_SIZE_MAX
#: i_ino: no kernel reads it (st_ino is the node number), and zeros are smaller on the wire.
_NO_INO: Final = 0
_TYPE_BITS: Final = 3
_TYPE_MASK: Final = (1 << _TYPE_BITS) - 1
#: Of a directory without directories in it.
_EMPTY_NLINK: Final = 2
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
    parent: Node
    names: list[bytes]
    #: In the order of `names`, without '.' and '..'.
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
        #: Whatever has a name, as often as it has one.
        self._children = list(chain.from_iterable(directory.children for directory in self._directories))
        #: (inode offset, content) of symbolic links that do not fit behind their inode.
        self._outside: list[tuple[int, bytes]] = []
        self._epoch_ns = self._common_time()
        self._xattrs = XattrArea(self._all_xattrs())

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
        times = Counter(map(attrgetter("mtime_ns"), self._children))
        times[self._tree.root.mtime_ns] += 1
        common, _ = times.most_common(1)[0]
        return max(0, int(common))

    def _all_xattrs(self) -> list[Mapping[bytes, bytes]]:
        """Return the attributes of every inode that has some, in the order of the tree."""
        nodes = dict.fromkeys([node for node in self._children if node.xattrs is not NO_XATTRS])
        return [self._tree.root.xattrs, *(node.xattrs for node in nodes)]

    def _place_children(self, children: list[Node]) -> None:
        """Place all but directories, which follow by themselves."""
        numbers, reg, directory = self._numbers, EntryType.REG, EntryType.DIR
        plain: list[Node] = []
        for node in children:
            kind = node.type
            if kind is reg and node.nlink == 1 and node.xattrs is NO_XATTRS:
                plain.append(node)
            elif kind is not directory and node not in numbers:
                self._place_child(node)
        if plain:
            self._place_plain(plain)

    def _place_child(self, node: Node) -> None:
        kind = node.type
        mode = _FORMATS[kind] | node.mode
        file_type = ondisk.FILE_TYPES[_FORMATS[kind]]
        if kind is EntryType.SYMLINK:
            if not self._place(node, mode, file_type, len(node.link), ondisk.NO_BLOCK, node.link):
                self._outside.append((self._numbers[node] >> _TYPE_BITS << ondisk.SLOT_BITS, node.link))
        elif kind in (EntryType.CHAR, EntryType.BLOCK):
            self._place(node, mode, file_type, 0, ondisk.encode_device(node.devmajor, node.devminor))
        else:
            self._place(node, mode, file_type, node.size, 0)

    def _place_plain(self, nodes: list[Node]) -> None:
        """Do as `_place` does for regular files with one name and without attributes.

        They are nearly all inodes of a layer, and a call for each takes twice the time.
        """
        position, epoch_ns, numbers, append = self._position, self._epoch_ns, self._numbers, self._parts.append
        pack_compact, pack_extended = ondisk.COMPACT_INODE.pack, ondisk.EXTENDED_INODE.pack
        file_type, form = ondisk.FILE_TYPES[stat.S_IFREG], stat.S_IFREG
        for node in nodes:
            mtime_ns, uid, gid, size = node.mtime_ns, node.uid, node.gid, node.size
            if mtime_ns == epoch_ns and (uid | gid) <= _COMPACT_MAX and size <= _COMPACT_SIZE_MAX:
                nid = position >> ondisk.SLOT_BITS
                append(pack_compact(0, 0, form | node.mode, 1, size, 0, 0, _NO_INO, uid, gid, 0))
                position += ondisk.COMPACT_BYTES
            else:
                if position & _MASK == ondisk.BLOCK_BYTES - ondisk.COMPACT_BYTES:
                    append(bytes(ondisk.COMPACT_BYTES))
                    position += ondisk.COMPACT_BYTES
                nid = position >> ondisk.SLOT_BITS
                seconds, nsec = divmod(mtime_ns, _SECOND_NS)
                append(pack_extended(1, 0, form | node.mode, 0, size, 0, _NO_INO, uid, gid, seconds, nsec, 1))
                position += ondisk.EXTENDED_BYTES
            numbers[node] = nid << _TYPE_BITS | file_type
        self._position = position

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
        icount = count(body)
        if compact:
            inode = ondisk.COMPACT_INODE.pack(form, icount, mode, nlink, size, 0, union, _NO_INO, uid, gid, 0)
        else:
            seconds, nsec = divmod(mtime_ns, _SECOND_NS)
            form |= ondisk.FORMAT_EXTENDED
            inode = ondisk.EXTENDED_INODE.pack(
                form, icount, mode, 0, size, union, _NO_INO, uid, gid, seconds, nsec, nlink
            )
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
        for directory in self._directories:
            blocks = self._directory_blocks(directory)
            if directory.tail:
                tail = blocks.pop()
                image[directory.tail : directory.tail + len(tail)] = tail
            if blocks:
                _U32.pack_into(image, directory.inode + _UNION_OFFSET, len(image) >> ondisk.BLOCK_BITS)
                for block in blocks:
                    image += block
                    _pad(image)

    def _directory_blocks(self, directory: _Directory) -> list[bytes]:
        numbers = self._numbers
        found = [numbers[child] for child in directory.children]
        for name, node in ((b".", directory.node), (b"..", directory.parent)):
            found.insert(bisect_left(directory.names, name), numbers[node])
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
        """Write where the data of each file begin into its inode; return that, and the size of the image."""
        numbers, pack_into = self._numbers, _U32.pack_into
        lengths = [(node.size + _MASK) >> ondisk.BLOCK_BITS for node in self._tree.files]
        *blocks, end = accumulate(lengths, initial=len(image) >> ondisk.BLOCK_BITS)
        if end > ondisk.NO_BLOCK:
            raise FormatError(ondisk.FORMAT, "blocks", "the image would be larger than 16 TiB")
        for node, block in zip(self._tree.files, blocks, strict=True):
            pack_into(image, (numbers[node] >> _TYPE_BITS << ondisk.SLOT_BITS) + _UNION_OFFSET, block)
        return [block << ondisk.BLOCK_BITS for block in blocks], end << ondisk.BLOCK_BITS

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
    found, pending = [], [(root, root)]
    while pending:
        node, parent = pending.pop()
        assert node.children is not None
        names = sorted(node.children)
        children = list(map(node.children.__getitem__, names))
        if node.nlink > _EMPTY_NLINK:
            pending += [(child, node) for child in reversed(children) if child.children is not None]
        # '.' and '..' are entries like any other, and some names sort before them
        for name in (b".", b".."):
            insort(names, name)
        blocks, size = _cut(names)
        found.append(_Directory(node, parent, names, children, blocks, size))
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
