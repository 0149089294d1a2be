"""EROFS on-disk structures, little-endian, the uncompressed subset that `writer` makes and `reader` reads.

Source: the kernel's `fs/erofs/erofs_fs.h`; what we use of it is described in docs/formats/erofs.md.
"""

from __future__ import annotations

import stat
import struct
from typing import Final, NamedTuple

import google_crc32c

FORMAT: Final = "erofs"

BLOCK_BITS: Final = 12
BLOCK_BYTES: Final = 1 << BLOCK_BITS
SLOT_BITS: Final = 5
SLOT_BYTES: Final = 1 << SLOT_BITS

SUPERBLOCK_OFFSET: Final = 1024
SUPERBLOCK_BYTES: Final = 128
MAGIC: Final = 0xE0F5E1E2
COMPAT_CHECKSUM: Final = 1
COMPAT_MTIME: Final = 2
#: The first slot behind the superblock. Number 0 must not be used: readdir consumers hide an entry whose number is 0.
FIRST_NID: Final = (SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES) // SLOT_BYTES

# Superblock head, at byte 1024 (struct erofs_super_block); bytes 104 to 127 are zero for us
#   offset  size  field
#        0     4  magic           4  4  checksum (crc32c)     8  4  feature_compat
#       12     1  blkszbits      13  1  sb_extslots          14  2  root_nid
#       16     8  inos           24  8  epoch, seconds       32  4  fixed_nsec
#       36     4  blocks         40  4  meta_blkaddr         44  4  xattr_blkaddr
#       48    16  uuid           64 16  volume_name          80  4  feature_incompat
#       84     2  available_compr_algs                       86  2  extra_devices
#       88     2  devt_slotoff   90  1  dirblkbits           91  1  xattr_prefix_count
#       92     4  xattr_prefix_start                         96  8  packed_nid
SUPERBLOCK: Final = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ")
CHECKSUM_FIELD: Final = struct.Struct("<I")
CHECKSUM_OFFSET: Final = SUPERBLOCK_OFFSET + 4

# struct erofs_inode_compact, 32 bytes
#   0 2 i_format   2 2 i_xattr_icount   4 2 i_mode   6 2 i_nlink   8 4 i_size   12 4 i_mtime (0)
#  16 4 i_u       20 4 i_ino           24 2 i_uid   26 2 i_gid    28 4 reserved
COMPACT_INODE: Final = struct.Struct("<HHHHIIIIHHI")
COMPACT_BYTES: Final = 32
COMPACT_ID_MAX: Final = 0xFFFF
COMPACT_SIZE_MAX: Final = 0xFFFFFFFF

# struct erofs_inode_extended, 64 bytes
#   0 2 i_format   2 2 i_xattr_icount   4 2 i_mode   6 2 reserved   8 8 i_size   16 4 i_u   20 4 i_ino
#  24 4 i_uid     28 4 i_gid           32 8 i_mtime 40 4 i_mtime_nsec           44 4 i_nlink  48 16 reserved
EXTENDED_INODE: Final = struct.Struct("<HHHHQIIIIqII16x")
EXTENDED_BYTES: Final = 64

FORMAT_EXTENDED: Final = 1
LAYOUT_SHIFT: Final = 1
LAYOUT_MASK: Final = 7
LAYOUT_PLAIN: Final = 0
LAYOUT_INLINE: Final = 2
#: i_u of an inode of LAYOUT_INLINE that has no full blocks.
NO_BLOCK: Final = 0xFFFFFFFF

# struct erofs_dirent, 12 bytes: 0 8 nid   8 2 nameoff   10 1 file type   11 1 reserved
DIRENT: Final = struct.Struct("<QHBx")
DIRENT_BYTES: Final = 12
NAME_MAX: Final = 255
#: The kernel's PATH_MAX without the terminating NUL.
SYMLINK_MAX: Final = 4095

# struct erofs_xattr_ibody_header, 12 bytes, then shared ids of 4 bytes, then entries
#   0 4 name filter (0)   4 1 number of shared ids   5 7 reserved
XATTR_BODY: Final = struct.Struct("<IB7x")
XATTR_BODY_BYTES: Final = 12
XATTR_SHARED_MAX: Final = 255
XATTR_COUNT_MAX: Final = 0xFFFF
# struct erofs_xattr_entry, 4 bytes: 0 1 name length (without prefix)   1 1 name index   2 2 value size
XATTR_ENTRY: Final = struct.Struct("<BBH")
XATTR_ENTRY_BYTES: Final = 4
XATTR_NAME_MAX: Final = 255
XATTR_VALUE_MAX: Final = 0xFFFF
#: Name index -> prefix. The two ACL names are whole: nothing follows them.
XATTR_PREFIXES: Final = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    5: b"lustre.",
    6: b"security.",
}
XATTR_ACL_INDEXES: Final = frozenset({2, 3})

#: Kind of inode (the S_IFMT part of its mode) -> file type in a directory entry.
FILE_TYPES: Final = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}

#: Linux's dev_t has 12 bits of major and 20 bits of minor.
MAJOR_MAX: Final = 0xFFF
MINOR_MAX: Final = 0xFFFFF
#: Block addresses have 32 bits, and the last value means "none".
IMAGE_BYTES_MAX: Final = 0xFFFFFFFF << BLOCK_BITS


class Superblock(NamedTuple):
    """What of the superblock says something in the subset we write."""

    root_nid: int
    inodes: int
    epoch_s: int
    fixed_nsec: int
    blocks: int
    meta_block: int
    xattr_block: int
    uuid: bytes


def pack_superblock(values: Superblock) -> bytes:
    """Return the 128 bytes of the superblock, its checksum still 0: see `seal`."""
    compat = COMPAT_CHECKSUM | COMPAT_MTIME
    head = SUPERBLOCK.pack(
        MAGIC, 0, compat, BLOCK_BITS, 0, values.root_nid, values.inodes, values.epoch_s, values.fixed_nsec,
        values.blocks, values.meta_block, values.xattr_block, values.uuid, bytes(16), 0, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    return head.ljust(SUPERBLOCK_BYTES, b"\0")


def superblock_checksum(block: bytes) -> int:
    """Return the checksum of the first block of an image, whatever its checksum field holds.

    CRC-32C without the final inversion, over the bytes from the superblock to the end of the block, the field taken as 0.
    """
    covered = bytearray(block[SUPERBLOCK_OFFSET:BLOCK_BYTES])
    CHECKSUM_FIELD.pack_into(covered, CHECKSUM_OFFSET - SUPERBLOCK_OFFSET, 0)
    return int(google_crc32c.value(bytes(covered))) ^ 0xFFFFFFFF


def seal(image: bytearray) -> None:
    """Write the superblock's checksum, the last step of making an image: it covers the rest of the first block too."""
    CHECKSUM_FIELD.pack_into(image, CHECKSUM_OFFSET, superblock_checksum(bytes(image[:BLOCK_BYTES])))


def encode_device(major: int, minor: int) -> int:
    """Return the 32-bit device number of an inode."""
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def decode_device(number: int) -> tuple[int, int]:
    """Return major and minor of an inode's 32-bit device number."""
    return number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00
