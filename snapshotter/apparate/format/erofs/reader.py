"""Reads the metadata of an EROFS image: for the `tree` driver, `apparate fsck` and tests.

Needs the metadata part alone; file data are given as addresses. Keeps no state but the superblock, so one reader serves
any number of threads, and a node number means the same after a restart. Every value is checked before it is followed:
hostile bytes give a FormatError, never an endless loop, an IndexError or a large allocation.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from apparate.errors import FormatError
from apparate.format.erofs import ondisk

_DIR_ENTRY_MIN: Final = ondisk.DIRENT_BYTES + 1
_KINDS: Final = {number: kind for kind, number in ondisk.FILE_TYPES.items()}
_U32: Final = struct.Struct("<I")


class Inode(NamedTuple):
    """One inode. `mode` holds the type too, as st_mode does."""

    nid: int
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    mtime_ns: int
    #: i_u: the first block of the data, or the device number.
    union: int
    layout: int
    #: Where the xattr body starts, and its length (0: none). Inline data follow it.
    body_offset: int
    body_bytes: int

    @property
    def kind(self) -> int:
        """The S_IFMT part of the mode."""
        return stat.S_IFMT(self.mode)

    @property
    def device(self) -> tuple[int, int]:
        """Major and minor of a device node, (0, 0) of anything else."""
        if self.kind in (stat.S_IFCHR, stat.S_IFBLK):
            return ondisk.decode_device(self.union)
        return 0, 0


class DirEntry(NamedTuple):
    """One name of a directory; `cursor` continues behind it. `kind` is S_IFMT bits."""

    name: bytes
    nid: int
    kind: int
    cursor: int


class ErofsReader:
    """The tree in *metadata*, the first bytes of an image (at least all blocks before the first file's data).

    Raises:
        FormatError: the superblock is damaged, or asks for features outside our subset.
    """

    __slots__ = ("_data", "_inode_base", "_size", "_xattr_base", "image_size", "superblock")

    def __init__(self, metadata: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(metadata).cast("B")
        self._size = len(self._data)
        self.superblock = read_superblock(self._data)
        self.image_size = self.superblock.blocks << ondisk.BLOCK_BITS
        self._inode_base = self.superblock.meta_block << ondisk.BLOCK_BITS
        self._xattr_base = self.superblock.xattr_block << ondisk.BLOCK_BITS

    @property
    def root_nid(self) -> int:
        """The node number of the root directory."""
        return self.superblock.root_nid

    def inode(self, nid: int) -> Inode:
        """Return inode *nid*.

        Raises:
            FormatError: there is none there, or one that our subset does not know.
        """
        offset = self._inode_base + (nid << ondisk.SLOT_BITS)
        if nid < 0 or offset + ondisk.COMPACT_BYTES > self._size:
            raise FormatError(ondisk.FORMAT, "nid", f"{nid} lies outside the metadata", offset)
        fmt = self._data[offset] | self._data[offset + 1] << 8
        layout = fmt >> ondisk.LAYOUT_SHIFT & ondisk.LAYOUT_MASK
        if fmt >> 4 or layout not in (ondisk.LAYOUT_PLAIN, ondisk.LAYOUT_INLINE):
            raise FormatError(ondisk.FORMAT, "i_format", f"{fmt:#x} is not in the subset", offset)
        if fmt & ondisk.FORMAT_EXTENDED:
            return self._extended(nid, offset, layout)
        return self._compact(nid, offset, layout)

    def _compact(self, nid: int, offset: int, layout: int) -> Inode:
        _, icount, mode, nlink, size, _, union, _, uid, gid, _ = ondisk.COMPACT_INODE.unpack_from(self._data, offset)
        head = self.superblock
        mtime_ns = head.epoch_s * 1_000_000_000 + head.fixed_nsec
        end = offset + ondisk.COMPACT_BYTES
        return Inode(nid, mode, uid, gid, nlink, size, mtime_ns, union, layout, end, self._body_bytes(icount, end))

    def _extended(self, nid: int, offset: int, layout: int) -> Inode:
        end = offset + ondisk.EXTENDED_BYTES
        if end > self._size:
            raise FormatError(ondisk.FORMAT, "nid", f"{nid} lies outside the metadata", offset)
        fields = ondisk.EXTENDED_INODE.unpack_from(self._data, offset)
        _, icount, mode, _, size, union, _, uid, gid, seconds, nsec, nlink = fields
        mtime_ns = seconds * 1_000_000_000 + nsec
        return Inode(nid, mode, uid, gid, nlink, size, mtime_ns, union, layout, end, self._body_bytes(icount, end))

    def _body_bytes(self, icount: int, offset: int) -> int:
        if icount == 0:
            return 0
        length = ondisk.XATTR_BODY_BYTES + 4 * (icount - 1)
        if offset + length > self._size:
            raise FormatError(ondisk.FORMAT, "i_xattr_icount", f"{icount} reaches outside the metadata", offset)
        return length

    def address(self, inode: Inode) -> int:
        """Return the image address of the data of a regular file, 0 for an empty one.

        Raises:
            FormatError: the data would lie outside the image, or among its inodes.
        """
        if inode.kind != stat.S_IFREG or inode.size == 0:
            return 0
        address = inode.union << ondisk.BLOCK_BITS
        if inode.layout != ondisk.LAYOUT_PLAIN:
            raise FormatError(ondisk.FORMAT, "i_format", f"the data of inode {inode.nid} are inline")
        if address < ondisk.BLOCK_BYTES or address + inode.size > self.image_size:
            raise FormatError(ondisk.FORMAT, "i_u", f"the data of inode {inode.nid} lie outside the image")
        return address

    def symlink(self, inode: Inode) -> bytes:
        """Return the target of a symbolic link."""
        if inode.kind != stat.S_IFLNK or not 0 < inode.size <= ondisk.SYMLINK_MAX:
            raise FormatError(ondisk.FORMAT, "i_size", f"inode {inode.nid} is no symbolic link of a possible length")
        return bytes(self._block(inode, 0))

    def lookup(self, directory: Inode, name: bytes) -> int | None:
        """Return the node number of *name* in *directory*, found as the kernel does: by bisection; None if absent."""
        low, high = 0, self._block_count(directory)
        while low < high:
            middle = (low + high) // 2
            block = self._block(directory, middle)
            if self._names(block, 0)[1] <= name:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return None
        block = self._block(directory, low - 1)
        first, last = 0, self._names(block, 0)[0]
        while first < last:
            middle = (first + last) // 2
            found = self._names(block, middle)[1]
            if found == name:
                return int(ondisk.DIRENT.unpack_from(block, middle * ondisk.DIRENT_BYTES)[0])
            if found < name:
                first = middle + 1
            else:
                last = middle
        return None

    def entries(self, directory: Inode, cursor: int = 0) -> Iterator[DirEntry]:
        """Yield the entries of *directory* in its order, `.` and `..` among them, from *cursor* on.

        A cursor is 0 or one given by an earlier entry; it stays valid as long as the image does.
        """
        index, slot = cursor >> ondisk.BLOCK_BITS, cursor & (ondisk.BLOCK_BYTES - 1)
        for number in range(index, self._block_count(directory)):
            block = self._block(directory, number)
            count = self._names(block, 0)[0]
            for position in range(slot, count):
                _, name = self._names(block, position)
                nid, _, file_type = ondisk.DIRENT.unpack_from(block, position * ondisk.DIRENT_BYTES)
                kind = _KINDS.get(file_type)
                if kind is None:
                    raise FormatError(ondisk.FORMAT, "file_type", f"{file_type} is unknown")
                yield DirEntry(name, nid, kind, number << ondisk.BLOCK_BITS | position + 1)
            slot = 0

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Return all extended attributes of *inode*, shared ones too."""
        if inode.body_bytes == 0:
            return {}
        end = inode.body_offset + inode.body_bytes
        _, shared = ondisk.XATTR_BODY.unpack_from(self._data, inode.body_offset)
        position = inode.body_offset + ondisk.XATTR_BODY_BYTES
        if position + 4 * shared > end:
            raise FormatError(ondisk.FORMAT, "h_shared_count", f"{shared} do not fit the body", inode.body_offset)
        found: dict[bytes, bytes] = {}
        for _ in range(shared):
            (number,) = _U32.unpack_from(self._data, position)
            position += 4
            name, value, _ = self._xattr(self._xattr_base + 4 * number, self._size)
            found[name] = value
        while position < end:
            name, value, position = self._xattr(position, end)
            found[name] = value
        return found

    def _xattr(self, offset: int, limit: int) -> tuple[bytes, bytes, int]:
        if offset + ondisk.XATTR_ENTRY_BYTES > limit:
            raise FormatError(ondisk.FORMAT, "xattr", "entry reaches outside its area", offset)
        name_length, index, value_length = ondisk.XATTR_ENTRY.unpack_from(self._data, offset)
        start = offset + ondisk.XATTR_ENTRY_BYTES
        middle = start + name_length
        end = middle + value_length
        prefix = ondisk.XATTR_PREFIXES.get(index)
        if prefix is None or end > limit:
            reason = f"name index {index} is unknown" if prefix is None else "entry reaches outside its area"
            raise FormatError(ondisk.FORMAT, "xattr", reason, offset)
        return prefix + bytes(self._data[start:middle]), bytes(self._data[middle:end]), (end + 3) & ~3

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Yield (path, inode) of every name, the root as b"" first, a directory before what it holds.

        Raises:
            FormatError: also when it would never end (a directory is reached twice), when names do not ascend, so that
                the kernel would not find them, or when there are more names than the metadata have room for.
        """
        seen: set[int] = set()
        room = self._size // _DIR_ENTRY_MIN
        pending = [(b"", self.root_nid)]
        while pending:
            path, nid = pending.pop()
            inode = self.inode(nid)
            yield path, inode
            if inode.kind != stat.S_IFDIR:
                continue
            if nid in seen:
                raise FormatError(ondisk.FORMAT, "nid", f"directory {nid} is reached twice")
            seen.add(nid)
            children = self._children(inode, room)
            room -= len(children)
            prefix = path + b"/" if path else b""
            pending.extend((prefix + name, child) for name, child in reversed(children))

    def _children(self, directory: Inode, room: int) -> list[tuple[bytes, int]]:
        found: list[tuple[bytes, int]] = []
        before = b""
        for name, nid, _, _ in self.entries(directory):
            if name <= before:
                raise FormatError(ondisk.FORMAT, "name", f"the names of directory {directory.nid} do not ascend")
            if len(found) >= room:
                raise FormatError(
                    ondisk.FORMAT, "i_size", "directories hold more names than the metadata have room for"
                )
            before = name
            if name not in (b".", b".."):
                found.append((name, nid))
        return found

    def _block_count(self, inode: Inode) -> int:
        if inode.kind != stat.S_IFDIR:
            raise FormatError(ondisk.FORMAT, "i_mode", f"inode {inode.nid} is not a directory")
        return (inode.size + ondisk.BLOCK_BYTES - 1) >> ondisk.BLOCK_BITS

    def _block(self, inode: Inode, index: int) -> memoryview:
        """Return block *index* of a directory or symbolic link, cut to the inode's size."""
        length = min(inode.size - (index << ondisk.BLOCK_BITS), ondisk.BLOCK_BYTES)
        start = (inode.union + index) << ondisk.BLOCK_BITS
        if inode.layout == ondisk.LAYOUT_INLINE and index == inode.size >> ondisk.BLOCK_BITS:
            start = inode.body_offset + inode.body_bytes
            if start >> ondisk.BLOCK_BITS != (start + length - 1) >> ondisk.BLOCK_BITS:
                raise FormatError(ondisk.FORMAT, "i_size", f"the tail of inode {inode.nid} crosses a block", start)
        if start + length > self._size:
            raise FormatError(ondisk.FORMAT, "i_u", f"the data of inode {inode.nid} lie outside the metadata", start)
        return self._data[start : start + length]

    @staticmethod
    def _names(block: memoryview, position: int) -> tuple[int, bytes]:
        """Return how many entries a directory block has, and the name of entry *position*."""
        if len(block) < _DIR_ENTRY_MIN:
            raise FormatError(ondisk.FORMAT, "i_size", "a directory block is too short for an entry")
        names = block[8] | block[9] << 8
        count, odd = divmod(names, ondisk.DIRENT_BYTES)
        if odd or not 0 < count <= len(block) // ondisk.DIRENT_BYTES:
            raise FormatError(ondisk.FORMAT, "nameoff", f"{names} of the first entry is impossible")
        offset = position * ondisk.DIRENT_BYTES + 8
        start = block[offset] | block[offset + 1] << 8
        end = len(block)
        if position + 1 < count:
            end = block[offset + ondisk.DIRENT_BYTES] | block[offset + ondisk.DIRENT_BYTES + 1] << 8
        if not names <= start < end <= len(block) or end - start > ondisk.BLOCK_BYTES:
            raise FormatError(ondisk.FORMAT, "nameoff", f"entry {position} has a name from {start} to {end}")
        name = bytes(block[start:end])
        if position + 1 == count:
            name = name.split(b"\0", 1)[0]
        if not 0 < len(name) <= ondisk.NAME_MAX or b"\0" in name or b"/" in name:
            raise FormatError(ondisk.FORMAT, "name", f"entry {position} has an impossible name")
        return count, name


def read_superblock(data: bytes | bytearray | memoryview) -> ondisk.Superblock:
    """Return the superblock at byte 1024 of *data*, its checksum verified.

    Raises:
        FormatError: no EROFS image, a wrong checksum, or features outside our subset.
    """
    if len(data) < ondisk.BLOCK_BYTES:
        raise FormatError(ondisk.FORMAT, "superblock", f"the image has only {len(data)} bytes")
    block = bytes(data[: ondisk.BLOCK_BYTES])
    fields = ondisk.SUPERBLOCK.unpack_from(block, ondisk.SUPERBLOCK_OFFSET)
    magic, checksum, compat, bits, slots, root, inodes, epoch, nsec, blocks, meta, xattr, uuid = fields[:13]
    incompat, _, devices, _, dir_bits, prefixes = fields[14:20]
    if magic != ondisk.MAGIC:
        raise FormatError(ondisk.FORMAT, "magic", f"{magic:#x} is not {ondisk.MAGIC:#x}", ondisk.SUPERBLOCK_OFFSET)
    if not compat & ondisk.COMPAT_CHECKSUM or checksum != ondisk.superblock_checksum(block):
        raise FormatError(ondisk.FORMAT, "checksum", f"{checksum:#x} is wrong or absent", ondisk.CHECKSUM_OFFSET)
    if bits != ondisk.BLOCK_BITS or slots or dir_bits:
        raise FormatError(ondisk.FORMAT, "blkszbits", "other block sizes than 4096 bytes are not in the subset")
    if incompat or devices or prefixes:
        raise FormatError(ondisk.FORMAT, "feature_incompat", f"{incompat:#x} has features outside the subset")
    if nsec >= 1_000_000_000:
        raise FormatError(ondisk.FORMAT, "fixed_nsec", f"{nsec} is a second or more")
    return ondisk.Superblock(root, inodes, epoch, nsec, blocks, meta, xattr, uuid)
