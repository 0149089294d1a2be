"""POSIX access lists as extended attributes, and what chmod(2) makes of them (Linux, fs/posix_acl.c).

offset  size  field                      then for each entry, 8 bytes:
     0     4  version = 2, little-endian     0     2  tag      2     2  permissions      4     4  id
"""

from __future__ import annotations

import struct
from typing import Final

ACCESS: Final = b"system.posix_acl_access"

_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
_OWNER: Final = 0x01
_GROUP: Final = 0x04
_MASK: Final = 0x10
_OTHER: Final = 0x20
_SAME_AS_MODE: Final = frozenset({_OWNER, _GROUP, _OTHER})


def after_chmod(value: bytes, mode: int) -> bytes | None:
    """Return the access list *value* after chmod(2) to *mode*; None if it says no more than the mode, for the kernel
    keeps no such list. What is no access list is returned as it is.
    """
    body = value[len(_VERSION) :]
    if value[: len(_VERSION)] != _VERSION or len(body) % _ENTRY.size:
        return value
    entries = list(_ENTRY.iter_unpack(body))
    tags = {tag for tag, _, _ in entries}
    if tags <= _SAME_AS_MODE:
        return None
    permissions = {_OWNER: mode >> 6 & 7, _MASK if _MASK in tags else _GROUP: mode >> 3 & 7, _OTHER: mode & 7}
    return _VERSION + b"".join(_ENTRY.pack(tag, permissions.get(tag, old), owner) for tag, old, owner in entries)
