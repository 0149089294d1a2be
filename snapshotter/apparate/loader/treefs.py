"""The tree of a layer as FUSE nodes, for kernels without EROFS. No FUSE calls here: metadata in, attributes out.

Everything comes from the same EROFS metadata that a newer kernel would mount, so both drivers show the same tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from apparate.format.erofs.reader import DirEntry, ErofsReader
from apparate.loader.images import Image

_BLOCK_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) says of a node of a tree."""

    nid: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: tuple[int, int]
    size: int
    blocks: int  # of 512 bytes
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the bytes of a regular file lie in the image."""

    address: int
    size: int


class Tree:
    """The tree of one layer, made for one request: it holds nothing but a view of the index, which may be closed later.

    Raises:
        FormatError: the metadata are damaged.
    """

    def __init__(self, image: Image) -> None:
        self._reader = ErofsReader(image.index.metadata())

    @property
    def root_nid(self) -> int:
        """The number of the root directory."""
        return self._reader.root_nid

    def attributes(self, nid: int) -> Attributes:
        """Return the attributes of a node; raises FormatError if there is none."""
        inode = self._reader.inode(nid)
        blocks = -(-inode.size // _BLOCK_BYTES) * (_BLOCK_BYTES // 512)
        size = inode.size
        return Attributes(
            nid, inode.mode, inode.nlink, inode.uid, inode.gid, inode.device, size, blocks, inode.mtime_ns
        )

    def lookup(self, parent: int, name: bytes) -> int | None:
        """Return the node *name* in the directory *parent*, None if there is none."""
        return self._reader.lookup(self._reader.inode(parent), name)

    def entries(self, nid: int, cursor: int) -> Iterator[DirEntry]:
        """Yield the entries of a directory behind *cursor*, `.` and `..` among them."""
        return self._reader.entries(self._reader.inode(nid), cursor)

    def extent(self, nid: int) -> Extent:
        """Return where a regular file lies."""
        inode = self._reader.inode(nid)
        return Extent(self._reader.address(inode), inode.size)

    def symlink(self, nid: int) -> bytes:
        """Return the target of a symbolic link."""
        return self._reader.symlink(self._reader.inode(nid))

    def xattrs(self, nid: int) -> dict[bytes, bytes]:
        """Return the extended attributes of a node."""
        return self._reader.xattrs(self._reader.inode(nid))
