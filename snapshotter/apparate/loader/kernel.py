"""The few system calls and kernel files that mounting needs and Python does not offer.

Only the standard library and `apparate.errors`: the courier imports this module and has to stay small.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MS_RDONLY: Final = 0x1
MS_NOATIME: Final = 0x400
MNT_FORCE: Final = 0x1
MNT_DETACH: Final = 0x2
UMOUNT_NOFOLLOW: Final = 0x8

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_BDI_DIR: Final = Path("/sys/class/bdi")
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")

_libc = ctypes.CDLL(None, use_errno=True)  # CDLL, not PyDLL: the interpreter lock is released while a call waits
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo (proc(5))."""

    mount_id: int
    device: str  # "major:minor" of the file system
    target: str
    fstype: str
    source: str


def mount(source: str, target: str, fstype: str, flags: int, options: str) -> None:
    """mount(2) itself.

    Raises:
        OSError: with the errno of the call.
    """
    arguments = (os.fsencode(source), os.fsencode(target), fstype.encode(), flags, options.encode())
    if _libc.mount(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def unmount(target: str, flags: int = UMOUNT_NOFOLLOW) -> None:
    """umount2(2).

    Raises:
        OSError: with the errno of the call; EINVAL if nothing is mounted there.
    """
    if _libc.umount2(os.fsencode(target), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def mounts() -> list[Mount]:
    """Return every mount that this process sees, in the order in which they were made."""
    return [_parse_mount(line) for line in _MOUNTINFO.read_bytes().splitlines()]


def mount_at(target: str) -> Mount | None:
    """Return the topmost mount at exactly *target*; the file system is not touched, so this never waits for one."""
    found = [entry for entry in mounts() if entry.target == target]
    return found[-1] if found else None


def _parse_mount(line: bytes) -> Mount:
    # 36 35 98:0 /root /target rw,noatime master:1 - ext3 /dev/root rw: optional fields end with "-"
    head, _, tail = line.partition(b" - ")
    words, rest = head.split(b" "), tail.split(b" ")
    return Mount(int(words[0]), words[2].decode(), _unescape(words[4]), rest[0].decode(), _unescape(rest[1]))


def _unescape(text: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes((int(match[1], 8),)), text))


def bdi_names() -> set[str]:
    """Return the names of the backing devices whose read-ahead can be set."""
    return set(os.listdir(_BDI_DIR))


def set_read_ahead(bdi: str, kib: int) -> None:
    """Set the read-ahead of the backing device *bdi*; one that is gone needs none."""
    try:
        (_BDI_DIR / bdi / "read_ahead_kb").write_text(str(kib))
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENODEV}:
            raise
