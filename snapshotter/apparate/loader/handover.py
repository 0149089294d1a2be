"""A loader whose keeper has died gives its session to the loader that somebody starts next.

Without its keeper a loader goes on serving, but nobody would follow it. So it listens on a socket in its run directory; a new
loader that finds the run directory taken asks there for the FUSE descriptor, and the old one stops after its requests in hand.
A loader that still has its keeper, or a service manager, refuses: then the new one is a second instance, and a mistake.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from apparate.telemetry.logging import get_logger

_log = get_logger("loader.handover")

SESSION_HANDED_OVER = "fuse session is handed over to a new loader"

_SOCKET_NAME: Final = "handover.sock"
_TIMEOUT_S: Final = 5.0
_REFUSED: Final = b"kept"
_GIVEN: Final = b"given"
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid


class HandoverServer:
    """Gives *fd* to a successor once this process has lost its parent; *given* is called then, from another thread."""

    def __init__(self, run_dir: Path, fd: int, given: Callable[[], None]) -> None:
        self._parent = os.getppid()
        self._fd = fd
        self._given = given
        self._path = run_dir / _SOCKET_NAME
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(str(self._path))
        self._path.chmod(0o600)
        self._socket.listen()
        threading.Thread(target=self._serve, name="handover", daemon=True).start()

    def close(self) -> None:
        """Listen no more. The name stays for the successor to replace: it may have done so already."""
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(_TIMEOUT_S)
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        try:
            if os.getppid() == self._parent or _CREDENTIALS.unpack(peer)[1] != os.geteuid():
                connection.send(_REFUSED)
                return
            socket.send_fds(connection, [_GIVEN], [self._fd])
        except OSError as error:
            _log.warning("a new loader asked for the session and left", error=str(error))
            return
        _log.info(SESSION_HANDED_OVER)
        self._given()


def request_session(run_dir: Path) -> int | None:
    """Ask the loader that has *run_dir* for its FUSE descriptor; None if it does not give it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(_TIMEOUT_S)
        try:
            sock.connect(str(run_dir / _SOCKET_NAME))
            answer, fds, _, _ = socket.recv_fds(sock, len(_REFUSED) + len(_GIVEN), 1)
        except OSError:
            return None
    if answer != _GIVEN or not fds:
        return None
    os.set_inheritable(fds[0], False)  # noqa: FBT003  # as os has it
    return fds[0]
