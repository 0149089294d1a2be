"""The loader's side of the courier: starts it, asks it, starts it again when it is gone."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from apparate.errors import Unavailable
from apparate.loader import courier
from apparate.loader.erofs_mount import Driver
from apparate.telemetry.logging import get_logger

_log = get_logger("loader.courier")

_ATTEMPTS: Final = 3
_PROBE_READ_AHEAD_KB: Final = 4
_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; Python has no name for it


class Courier:
    """The courier process. Thread-safe; one control request at a time, pushing beside it."""

    def __init__(self, fuse_fd: int, lock_path: Path, push_buffer_bytes: int) -> None:
        self._fuse_fd = fuse_fd
        self._lock_path = lock_path
        self._push_buffer_bytes = push_buffer_bytes
        self._lock = threading.Lock()  # held for a whole call
        self._state = threading.Lock()  # _closed and what it is decided by: held for moments
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._push: socket.socket | None = None
        self._closed = False

    def _start(self) -> socket.socket:
        if self._control is not None:
            return self._control
        control, their_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        push, their_push = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        push.settimeout(0)  # never wait
        push.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, self._push_buffer_bytes)
        with their_control, their_push:
            fds = (their_control.fileno(), their_push.fileno(), self._fuse_fd)
            command = [sys.executable, "-m", courier.__name__, *map(str, fds), str(self._lock_path)]
            self._process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL)
        threading.Thread(target=self._process.wait, name="courier-end", daemon=True).start()  # no zombie stays
        with self._state:
            self._control, self._push = control, push
        return control

    def close(self) -> None:
        """Let the process end when it is free. Calls under way fail: what they wait for may never come."""
        with self._state:
            self._closed = True
            for end in (self._control, self._push):
                if end is not None:
                    with suppress(OSError):  # the courier was faster
                        end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        for end in (self._control, self._push):
            if end is not None:
                end.close()
        self._control = self._push = None

    def mount(self, driver: Driver, source: str, target: str, read_ahead_kb: int) -> str:
        """Mount an image at *target*, over whatever is there; return the name of its backing device, "" if unknown.

        Raises:
            OSError: with the errno of the call that failed.
            Unavailable: no courier could be kept running.
        """
        request = {"op": "mount", "driver": driver.value, "source": source, "target": target}
        return str(self._ask({**request, "read_ahead_kb": read_ahead_kb})["bdi"])

    def probe(self, driver: Driver, source: str, target: str) -> None:
        """Mount an image and unmount it again; *target* is made for that. Errors as `mount`."""
        request = {"op": "probe", "driver": driver.value, "source": source, "target": target}
        self._ask({**request, "read_ahead_kb": _PROBE_READ_AHEAD_KB})

    def unmount(self, target: str, *, detach: bool) -> bool:
        """Unmount whatever is at *target*; return whether there was something. Errors as `mount`."""
        return bool(self._ask({"op": "unmount", "target": target, "detach": detach})["gone"])

    def _ask(self, request: dict[str, object]) -> dict[str, object]:
        with self._lock:
            for _ in range(_ATTEMPTS):
                reply = self._exchange(json.dumps(request).encode())
                if reply is not None:
                    break
            else:
                raise Unavailable("the courier process dies at once; see its output")
        if "errno" in reply:
            raise OSError(int(str(reply["errno"])), str(reply["error"]), str(request["target"]))
        return reply

    def _exchange(self, request: bytes) -> dict[str, object] | None:
        try:
            if self._closed:  # before a process is started that would outlive us
                raise Unavailable("the loader is stopping")
            control = self._start()
            with self._state:  # a close that comes later ends the wait below
                if self._closed:
                    raise Unavailable("the loader is stopping")
                control.send(request)
            reply = control.recv(courier.CONTROL_BYTES_MAX)
        except (BrokenPipeError, ConnectionResetError):
            reply = b""
        if reply:
            answer: dict[str, object] = json.loads(reply)
            return answer
        self._drop()
        if not self._closed:
            _log.warning("courier process is gone, another is started", status=self._process and self._process.poll())
        return None

    def push(self, notification: list[bytes | memoryview]) -> bool:
        """Queue a finished FUSE notification; return whether there was room for it. Never waits."""
        push = self._push
        if push is None:
            return False
        try:
            push.sendmsg(notification)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in {errno.EPIPE, errno.ECONNRESET, errno.EBADF, errno.EMSGSIZE, errno.ENOBUFS}:
                raise
            return False
        return True
