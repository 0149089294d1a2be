"""The courier: a small process for every call that can wait for a file of the loader's own FUSE mount.

A thread that waits for a FUSE answer, or for the lock of a page that is being read, cannot be killed. Were it a thread of the
loader, a SIGKILL would leave a process that neither answers nor ends, and nobody would ever succeed it. As a process of its
own the courier may wait: the loader dies at once, its successor answers, the courier finds its socket closed and ends.

It serves two sockets, both SOCK_SEQPACKET:

- *control*: requests as JSON objects, answered in order (mount, probe, unmount);
- *push*: finished FUSE notifications, written to the FUSE descriptor as they are. The socket's buffer is the bounded queue
  before the page cache; who finds it full drops the data.

Imports nothing but the standard library and its two neighbours.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from apparate.loader import kernel
from apparate.loader.erofs_mount import Driver, mount_image

CONTROL_BYTES_MAX: Final = 64 * 1024
PUSH_BYTES_MAX: Final = 256 * 1024
"""Upper limit of one notification, header and data."""

_GONE: Final = frozenset({errno.ENODEV, errno.EPERM, errno.ENOTCONN})
"""The FUSE mount is gone, so there is nobody to push to. Any other error concerns the one notification."""


def _main(control: socket.socket, push: socket.socket, fuse_fd: int, lock_path: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the loader's end, not a signal to its group, is ours
    threading.Thread(target=_push, args=(push, fuse_fd), name="push", daemon=True).start()
    while request := _next(control):
        with _lock(lock_path):
            reply = _answer(json.loads(request))
        try:
            control.send(json.dumps(reply).encode())
        except ConnectionError:
            return


def _next(control: socket.socket) -> bytes:
    """Return the next request; nothing once the loader has ended, be it that it was killed before it had read a reply."""
    try:
        return control.recv(CONTROL_BYTES_MAX)
    except ConnectionResetError:
        return b""


def _push(push: socket.socket, fuse_fd: int) -> None:
    """Write what arrives until the loader has ended.

    Then let go of the FUSE connection. If nobody else holds it either, the kernel ends it, and with it whatever this process
    still waits for; were the descriptor kept, a mount under way would wait for itself for ever.
    """
    buffer = memoryview(bytearray(PUSH_BYTES_MAX))
    try:
        while length := push.recv_into(buffer):
            try:
                os.write(fuse_fd, buffer[:length])
            except OSError as error:
                if error.errno in _GONE:
                    return
    finally:
        os.close(fuse_fd)


@contextmanager
def _lock(path: str) -> Iterator[None]:
    """Hold the lock of all couriers on this run directory: the one of a dead loader may still be at work."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _answer(request: dict[str, object]) -> dict[str, object]:
    try:
        if request["op"] == "mount":
            return {"bdi": _mount(request)}
        if request["op"] == "probe":
            _probe(request)
            return {}
        return {"gone": _unmount(str(request["target"]), detach=bool(request["detach"]))}
    except OSError as error:
        return {"errno": error.errno or errno.EIO, "error": error.strerror or str(error)}


def _mount(request: dict[str, object]) -> str:
    """Mount a layer, on top of a mount that is already at the target.

    That one stays below: were it detached first, an overlay mounted meanwhile would take the bare directory for the layer,
    and its container would lack all of its files for life.
    """
    target = str(request["target"])
    os.makedirs(target, mode=0o700, exist_ok=True)  # pathlib is not needed here otherwise
    return mount_image(Driver(request["driver"]), str(request["source"]), target, int(str(request["read_ahead_kb"])))


def _probe(request: dict[str, object]) -> None:
    """Mount and unmount again, in one go: nothing is left should the loader end meanwhile."""
    target = str(request["target"])
    _mount(request)
    _unmount(target, detach=True)
    os.rmdir(target)  # pathlib is not needed here otherwise


def _unmount(target: str, *, detach: bool) -> bool:
    """Take away every mount at *target*; return whether there was one.

    Without *detach* only if nobody uses the topmost one; those below were replaced, and whoever uses one keeps it.
    """
    found = False
    while kernel.mount_at(target) is not None:
        kernel.unmount(target, kernel.UMOUNT_NOFOLLOW | (kernel.MNT_DETACH if detach or found else 0))
        found = True
    return found


if __name__ == "__main__":
    _control, _pushed, _fuse = (int(word) for word in sys.argv[1:4])
    _main(socket.socket(fileno=_control), socket.socket(fileno=_pushed), _fuse, sys.argv[4])
    os._exit(0)  # the push thread may be waiting for a page for a long time yet
