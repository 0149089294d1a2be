"""The FUSE connection below libfuse: mounting, FUSE_INIT, and making libfuse serve a connection that exists already.

The loader answers the kernel's FUSE_INIT itself, once in the life of a mount, and every process that serves the mount, the
first one too, enters it the same way: libfuse is handed one end of a socket pair that holds a synthetic FUSE_INIT, and in the
`init` callback the kernel's descriptor is put in the place of the socket (docs/restart.md). libfuse's answer to an INIT that
the kernel never sent is refused with ENOENT, which libfuse takes for an interrupted request.

Structures: linux/fuse.h, protocol 7.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from dataclasses import dataclass
from typing import Final

from apparate.errors import FailedPrecondition, Unavailable, Unsupported
from apparate.loader import kernel

FUSE_DEVICE: Final = "/dev/fuse"
FUSE_MAJOR: Final = 7
FUSE_MINOR: Final = 38  # what we speak; the connection has the smaller of this and the kernel's
FUSE_INIT_OPCODE: Final = 26
INIT_TIMEOUT_S: Final = 10.0
"""The kernel queues FUSE_INIT within mount(2) itself; waiting longer means that it never will."""

# fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
IN_HEADER: Final = struct.Struct("<IIQQIIIHH")
# fuse_out_header: len, error, unique (0: a notification, and error is its code)
OUT_HEADER: Final = struct.Struct("<IiQ")
# fuse_init_in: major, minor, max_readahead, flags; since 7.36 flags2 and 11 unused words follow
_INIT_IN: Final = struct.Struct("<IIII")
_INIT_IN_FULL: Final = struct.Struct("<IIIII44x")
# fuse_init_out: major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
# map_alignment, flags2, max_stack_depth, request_timeout, 11 unused half-words
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHHIIH22x")
_INIT_OUT_BEFORE_7_23: Final = 24  # bytes of it that kernels before 7.23 take
_MINOR_LONG_INIT_OUT: Final = 23

_ASYNC_READ: Final = 1 << 0
_BIG_WRITES: Final = 1 << 5
_DO_READDIRPLUS: Final = 1 << 13
_PARALLEL_DIROPS: Final = 1 << 18
_MAX_PAGES: Final = 1 << 22
_CACHE_SYMLINKS: Final = 1 << 23
_INIT_EXT: Final = 1 << 30
_HAS_RESEND: Final = 1 << 39
_WANTED: Final = (
    _ASYNC_READ
    | _BIG_WRITES
    | _DO_READDIRPLUS
    | _PARALLEL_DIROPS
    | _MAX_PAGES
    | _CACHE_SYMLINKS
    | _INIT_EXT
    | _HAS_RESEND
)
# Passthrough is not wanted: it raises the stacking depth of the mount, and EROFS then refuses it as a backing file.

_MAX_PAGES_VALUE: Final = 256  # 1 MiB in one READ
_MAX_WRITE: Final = 128 * 1024  # nothing is written; it bounds the buffer that reading a request needs
_READ_AHEAD_BYTES: Final = 8 * 1024 * 1024  # an upper bound; the value in force is that of the backing device
_REQUEST_BUFFER_BYTES: Final = 1024 * 1024 + 4096

_SYNTHETIC_UNIQUE: Final = (1 << 62) + 1  # the kernel counts up from 1 in steps of 2
# What libfuse needs to see: it sizes its buffer by MAX_PAGES and pyfuse3 insists on READDIRPLUS. Splicing is not among it:
# for requests of a few dozen bytes a pipe is three system calls where read(2) is one.
_SYNTHETIC_FLAGS: Final = _ASYNC_READ | _BIG_WRITES | _DO_READDIRPLUS | _PARALLEL_DIROPS | _MAX_PAGES
_SYNTHETIC_MINOR: Final = 31

NOTIFY_RESEND: Final = 7
RESEND: Final = OUT_HEADER.pack(OUT_HEADER.size, NOTIFY_RESEND, 0)


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What kernel and loader agreed on when the mount was made."""

    minor: int
    resend: bool


def open_device() -> int:
    """Open /dev/fuse.

    Raises:
        Unsupported: this machine has no FUSE, or we may not use it.
    """
    try:
        return os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unsupported(f"{FUSE_DEVICE}: {error.strerror}; load the kernel module fuse and run as root") from error


def mount(fd: int, target: str, max_background: int) -> Negotiated:
    """Mount the connection *fd*, new from /dev/fuse, at the directory *target* and agree on its parameters.

    Raises:
        FailedPrecondition: this process may not mount.
        Unavailable: the kernel refused the mount or its INIT did not come.
        Unsupported: the kernel speaks another major version of the protocol.
    """
    # No nosuid and no nodev: a tree handed to a container as a bind mount would inherit them.
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
    try:
        kernel.mount("apparate", target, "fuse", kernel.MS_RDONLY | kernel.MS_NOATIME, options)
    except PermissionError as error:
        raise FailedPrecondition(
            f"FUSE mount at {target}: {error.strerror}; run as root, with CAP_SYS_ADMIN"
        ) from error
    except OSError as error:
        raise Unavailable(f"FUSE mount at {target}: {error.strerror}") from error
    if not select.select([fd], [], [], INIT_TIMEOUT_S)[0]:
        raise Unavailable(f"FUSE mount at {target}: no FUSE_INIT within {INIT_TIMEOUT_S:g} s")
    request = os.read(fd, _REQUEST_BUFFER_BYTES)
    reply, negotiated = answer_init(request, max_background)
    os.write(fd, reply)
    return negotiated


def answer_init(request: bytes, max_background: int) -> tuple[bytes, Negotiated]:
    """Return the answer to the kernel's FUSE_INIT *request*, and what it agrees on.

    Raises:
        Unsupported: another major version, or no INIT at all.
    """
    _, opcode, unique, *_ = IN_HEADER.unpack_from(request)
    body = request[IN_HEADER.size :]
    if opcode != FUSE_INIT_OPCODE or len(body) < _INIT_IN.size:
        raise Unsupported(f"FUSE: expected an INIT, got opcode {opcode} with {len(body)} bytes")
    major, minor, read_ahead, flags = _INIT_IN.unpack_from(body)
    if major != FUSE_MAJOR:
        raise Unsupported(f"FUSE: the kernel speaks version {major}.{minor}, we speak {FUSE_MAJOR}")
    if flags & _INIT_EXT and len(body) >= _INIT_IN_FULL.size:
        flags |= _INIT_IN_FULL.unpack_from(body)[4] << 32
    agreed = flags & _WANTED
    out = _INIT_OUT.pack(
        FUSE_MAJOR,
        min(minor, FUSE_MINOR),
        max(read_ahead, _READ_AHEAD_BYTES),
        agreed & 0xFFFFFFFF,
        max_background,
        max_background * 3 // 4,
        _MAX_WRITE,
        1,
        _MAX_PAGES_VALUE,
        0,
        agreed >> 32,
        0,
        0,
    )
    if minor < _MINOR_LONG_INIT_OUT:
        out = out[:_INIT_OUT_BEFORE_7_23]
    header = OUT_HEADER.pack(OUT_HEADER.size + len(out), 0, unique)
    return header + out, Negotiated(min(minor, FUSE_MINOR), bool(agreed & _HAS_RESEND))


def synthetic_socket() -> socket.socket:
    """Return a socket from which exactly one request can be read: a FUSE_INIT that no kernel sent."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        body = _INIT_IN_FULL.pack(FUSE_MAJOR, _SYNTHETIC_MINOR, _READ_AHEAD_BYTES, _SYNTHETIC_FLAGS, 0)
        length = IN_HEADER.size + len(body)
        ours.send(IN_HEADER.pack(length, FUSE_INIT_OPCODE, _SYNTHETIC_UNIQUE, 0, 0, 0, 0, 0, 0) + body)
    return theirs


def resend(fd: int) -> bool:
    """Make the kernel repeat every request that was read from the connection and not answered; return whether it can.

    Kernels before 6.9 cannot: such a request waits until the mount goes.
    """
    try:
        os.write(fd, RESEND)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True
