"""How the EROFS image of a layer becomes a mounted file system: from the file itself, or through a loop device.

The calls here can wait for a FUSE file that the loader serves. A thread that does so cannot be killed, and a loader that
cannot die has no successor: so they run in the courier process and nowhere else. Standard library only, as `courier`.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import struct
from contextlib import suppress
from typing import Final

from apparate.loader import kernel

LOOP_MAJOR: Final = 7
_LOOP_CONTROL: Final = "/dev/loop-control"
_LOOP_SET_FD: Final = 0x4C00
_LOOP_CLR_FD: Final = 0x4C01
_LOOP_SET_STATUS64: Final = 0x4C04
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_CTL_GET_FREE: Final = 0x4C82
_LO_FLAGS_READ_ONLY: Final = 1
_LO_FLAGS_AUTOCLEAR: Final = 4
_LOOP_ATTEMPTS: Final = 32  # others take free devices between our asking for one and taking it

# struct loop_info64 (linux/loop.h): five 64-bit words (device, inode, rdevice, offset, sizelimit), four 32-bit ones (number,
# encrypt_type, encrypt_key_size, flags), the names of file and cipher, the key, and two more words
_LOOP_INFO: Final = struct.Struct("=QQQQQIIII64s64s32sQQ")
# struct loop_config: descriptor of the file, block size, the above, eight reserved words
_LOOP_CONFIG: Final = struct.Struct(f"=II{_LOOP_INFO.size}s64x")
_LOOP_NAME_BYTES: Final = 63


class Driver(enum.Enum):
    """A way to mount a layer, best first."""

    EROFS_FILE = "erofs-file"  # Linux 6.12 on
    EROFS_LOOP = "erofs-loop"  # Linux 5.4 on
    TREE = "tree"  # no EROFS: the loader serves the files themselves


def mount_image(driver: Driver, source: str, target: str, read_ahead_kb: int) -> str:
    """Mount the EROFS image in the file *source* at the directory *target*; return the name of its backing device.

    The name is that below /sys/class/bdi; "" if it could not be told. The caller sees to it that no other mount of
    the loader happens at the same time.

    Raises:
        OSError: with the errno of the call that failed; nothing is mounted then.
    """
    bdi = _mount_loop(source, target) if driver is Driver.EROFS_LOOP else _mount_file(source, target)
    if bdi:
        kernel.set_read_ahead(bdi, read_ahead_kb)
    return bdi


def _mount_file(source: str, target: str) -> str:
    # The backing device is called erofs-<count>, and nothing leads from the mount to it: it is the one that is new.
    before = kernel.bdi_names()
    kernel.mount(source, target, "erofs", kernel.MS_RDONLY | kernel.MS_NOATIME, "")
    new = {name for name in kernel.bdi_names() - before if name.startswith("erofs-")}
    return new.pop() if len(new) == 1 else ""


def _mount_loop(source: str, target: str) -> str:
    image = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        loop, number = _attach_loop(image, source)
    finally:
        os.close(image)
    try:
        kernel.mount(f"/dev/loop{number}", target, "erofs", kernel.MS_RDONLY | kernel.MS_NOATIME, "")
    finally:
        os.close(loop)  # the device clears itself when its last user, this descriptor or the mount, is gone
    return f"{LOOP_MAJOR}:{number}"


def _attach_loop(image: int, source: str) -> tuple[int, int]:
    """Return an open loop device that shows *image* read-only, and its number."""
    flags = _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR
    name = os.fsencode(source)[:_LOOP_NAME_BYTES]
    info = _LOOP_INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
    control = os.open(_LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_LOOP_ATTEMPTS):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            loop = os.open(f"/dev/loop{number}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _configure_loop(loop, image, info)
            except OSError as error:
                os.close(loop)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return loop, number
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "every free loop device was taken by others", source)


def _configure_loop(loop: int, image: int, info: bytes) -> None:
    try:
        fcntl.ioctl(loop, _LOOP_CONFIGURE, _LOOP_CONFIG.pack(image, 0, info))
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTTY}:  # before Linux 5.8: two steps
            raise
    else:
        return
    fcntl.ioctl(loop, _LOOP_SET_FD, image)
    try:
        fcntl.ioctl(loop, _LOOP_SET_STATUS64, info)
    except OSError:
        with suppress(OSError):  # the first error is the one to report
            fcntl.ioctl(loop, _LOOP_CLR_FD, 0)
        raise
