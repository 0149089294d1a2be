"""The service manager's protocol: sd_notify(3), the file-descriptor store, and inherited descriptors (sd_listen_fds(3))."""

from __future__ import annotations

import fcntl
import os
import socket
from typing import TYPE_CHECKING

from apparate.errors import Unavailable
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = get_logger("telemetry.systemd")

LISTEN_FDS_START = 3
"""The first inherited descriptor (sd_listen_fds(3))."""


def notify(*assignments: str, fds: Sequence[int] = ()) -> bool:
    """Send *assignments*, as `READY=1`, and descriptors to the service manager; return whether it was told.

    A service manager that cannot be told, as while it restarts, is logged: nobody stops serving for that.
    """
    try:
        return _send(assignments, fds)
    except Unavailable as error:
        _log.warning("the service manager was not told", error=str(error))
        return False


def store_fd(name: str, fd: int) -> bool:
    """Keep a duplicate of *fd* in the service manager under *name*; return whether there is a store.

    Raises:
        Unavailable: there is a service manager and it could not be told: the descriptor would end with this process.
    """
    return _send(("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0"), [fd])


def _send(assignments: Sequence[str], fds: Sequence[int]) -> bool:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(address)
            payload = "\n".join(assignments).encode()
            if fds:
                socket.send_fds(sock, [payload], list(fds))
            else:
                sock.sendall(payload)
    except OSError as error:
        raise Unavailable(f"the service manager cannot be told {assignments[0]}: {error.strerror}") from error
    return True


def remove_fd(name: str) -> bool:
    """Drop every descriptor kept under *name*."""
    return notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def inherited_fds() -> dict[str, list[int]]:
    """Return the descriptors that this process was started with, by name; they are made close-on-exec.

    The environment variables are removed, so that no child believes the descriptors are its own.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "0")
    fd_names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    out: dict[str, list[int]] = {}
    for number in range(int(count)):
        fd = LISTEN_FDS_START + number
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        out.setdefault(fd_names[number] if number < len(fd_names) else "unknown", []).append(fd)
    return out
