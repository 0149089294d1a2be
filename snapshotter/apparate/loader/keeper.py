"""The keeper: the small part of a service manager that the loader needs where there is none (no systemd, or in a test).

It starts the loader, keeps the descriptors that the loader asks it to keep (sd_notify(3): FDSTORE, FDSTOREREMOVE, BARRIER),
hands them to the next one, and starts that at once whenever one ends. It holds /dev/fuse in this way without ever touching it.

    SIGTERM, SIGINT   stop the loader, then end
    SIGHUP            planned restart, also to another version: the loader stops after its requests in hand, the keeper
                      executes itself anew, with the descriptors, and starts the loader that is installed now

Its own end would be the end of the FUSE session, so once it keeps a descriptor it does not give up: a new version that cannot
be executed is not, and a loader that does not start is tried again. Standard library only: what it does not load cannot go wrong.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

BACKOFF_STEP_S: Final = 0.2
BACKOFF_MOST_S: Final = 5.0
HEALTHY_AFTER_S: Final = 2.0
"""A loader that lived this long did not die of its start: its successor is started without delay."""
STOP_TIMEOUT_S: Final = 75.0
"""How long a stopping loader may drain, longer than its read deadline. Then SIGKILL; the successor repeats the requests."""
PROBE_TIMEOUT_S: Final = 10.0
FDS_MAX: Final = 16
EXIT_IN_USE: Final = 5
"""As that of FailedPrecondition (apparate.errors)."""

SERVED: Final = "X_APPARATE_SERVED=1"
"""What a loader says that keeps a session which containers use already: from now on its keeper does not give up."""

_MESSAGE_BYTES_MAX: Final = 4096
_LISTEN_FDS_START: Final = 3
_FD_FLOOR: Final = 64  # kept descriptors are numbered from here, out of the way of those that a child is given
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_STOP: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_FORWARDED: Final = ("READY=", "STOPPING=", "STATUS=", "ERRNO=")


class FdStore:
    """Descriptors by name, kept for the next process."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, int]] = []

    def add(self, name: str, fd: int) -> None:
        """Keep a duplicate of *fd*; what does not fit is not kept."""
        if len(self._kept) < FDS_MAX:
            self._kept.append((name, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FD_FLOOR)))

    def remove(self, name: str) -> None:
        """Close everything under *name*."""
        for kept, fd in self._kept:
            if kept == name:
                os.close(fd)
        self._kept = [(kept, fd) for kept, fd in self._kept if kept != name]

    def inherit(self) -> bool:
        """Keep what this process was started with (sd_listen_fds(3)); return whether there was anything."""
        if os.environ.pop("LISTEN_PID", "") == str(os.getpid()):
            names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
            for number in range(int(os.environ.pop("LISTEN_FDS", "0"))):
                fd = _LISTEN_FDS_START + number
                self.add(names[number] if number < len(names) else "unknown", fd)
                os.close(fd)
        return bool(self._kept)

    def hand_over(self, environment: dict[str, str]) -> None:
        """Put the descriptors where the program that this process executes next expects them."""
        environment["LISTEN_PID"] = str(os.getpid())
        environment["LISTEN_FDS"] = str(len(self._kept))
        environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in self._kept)
        for number, (_, fd) in enumerate(self._kept):
            os.dup2(fd, _LISTEN_FDS_START + number, inheritable=True)


class Keeper:
    """Keeps one loader running. *command* is the loader, *notify_path* where it finds the keeper."""

    def __init__(self, command: Sequence[str], notify_path: str) -> None:
        self._command = list(command)
        self._notify_path = notify_path
        self._store = FdStore()
        self._child = 0
        self._child_since = 0.0
        self._failures = 0
        self._was_ready = False
        self._pending: set[int] = set()
        self._selector = selectors.DefaultSelector()
        self._notify = self._open_notify_socket()
        self._wake, self._waker = socket.socketpair()
        self._selector.register(self._notify, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)

    def _open_notify_socket(self) -> socket.socket:
        path = Path(self._notify_path)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)  # a dead keeper's, as `run` has made sure
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.bind(self._notify_path)
        path.chmod(0o600)
        return sock

    def run(self) -> int:
        """Keep the loader running until a signal says stop; return the exit code."""
        self._was_ready = self._store.inherit()
        self._waker.setblocking(False)  # noqa: FBT003  # as signal.set_wakeup_fd demands
        for number in _SIGNALS:
            signal.signal(number, self._note)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # blocked by _execute_anew
        self._start()
        while True:
            if self._pending & _STOP:
                return self._stop()
            if signal.SIGHUP in self._pending:
                self._pending.discard(signal.SIGHUP)
                self._restart()
            elif signal.SIGCHLD in self._pending:
                self._pending.discard(signal.SIGCHLD)
                code = self._replace_dead()
                if code is not None:
                    return code
            else:
                self._serve(None)

    def _note(self, number: int, _frame: object) -> None:
        self._pending.add(number)

    def _serve(self, timeout_s: float | None) -> None:
        """Wait for the next signal or for messages, and answer these; who waits for a signal looks at `_pending` before."""
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._wake:
                self._wake.recv(_MESSAGE_BYTES_MAX)
            else:
                self._read_message()

    def _read_message(self) -> None:
        size = socket.CMSG_SPACE(FDS_MAX * 4) + socket.CMSG_SPACE(_CREDENTIALS.size)
        body, ancillary, _, _ = self._notify.recvmsg(_MESSAGE_BYTES_MAX, size, socket.MSG_CMSG_CLOEXEC)
        fds: list[int] = []
        sender = 0
        for _, kind, data in ancillary:
            if kind == socket.SCM_RIGHTS:
                fds += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
            elif kind == socket.SCM_CREDENTIALS:
                sender = _CREDENTIALS.unpack(data)[0]
        try:
            if sender == self._child:
                self._obey(body.decode(errors="replace").split("\n"), fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _obey(self, lines: Sequence[str], fds: Sequence[int]) -> None:
        values = dict(line.partition("=")[::2] for line in lines)
        name = values.get("FDNAME", "stored")
        if values.get("FDSTORE") == "1":
            for fd in fds:
                self._store.add(name, fd)
        if values.get("FDSTOREREMOVE") == "1":
            self._store.remove(name)
        if values.get("READY") == "1" or SERVED in lines:
            self._was_ready = True
        # BARRIER=1 asks for nothing but that its descriptor is closed after all this
        self._forward("\n".join(line for line in lines if line.startswith(_FORWARDED)))

    @staticmethod
    def _forward(message: str) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        if address and message:
            address = "\0" + address[1:] if address.startswith("@") else address
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.connect(address)
                sock.sendall(f"{message}\nMAINPID={os.getpid()}".encode())

    # --- the loader ---

    def _start(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal that reaches the child before it has its own handlers would be noted by a copy of ours, and lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        child = os.fork()
        if child == 0:
            self._become_loader()
        self._child, self._child_since = child, time.monotonic()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _become_loader(self) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            environment = dict(os.environ, NOTIFY_SOCKET=self._notify_path)
            self._store.hand_over(environment)
            os.execvpe(self._command[0], self._command, environment)  # noqa: S606  # a list, as everywhere
        except OSError as error:
            print(f"{self._command[0]}: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201  # no logger here
        finally:
            os._exit(127)

    def _replace_dead(self) -> int | None:
        """Start another loader if the last one has ended; return an exit code if there is no point in it."""
        status = self._reap()
        if status is None:
            return None
        if not self._was_ready and status > 0:
            return status  # it said what is wrong with its configuration or this machine; so it would again
        lived_s = time.monotonic() - self._child_since
        self._failures = 0 if lived_s >= HEALTHY_AFTER_S else self._failures + 1
        pause_s = min(BACKOFF_STEP_S * 2 ** (self._failures - 2), BACKOFF_MOST_S) if self._failures > 1 else 0.0
        self._wait(pause_s)
        if not self._pending & _STOP:
            self._start()
        return None

    def _reap(self) -> int | None:
        """Return the exit code of the ended loader, negative for a signal; None if it runs or there is none."""
        if not self._child:
            return None
        pid, status = os.waitpid(self._child, os.WNOHANG)
        if pid == 0:
            return None
        while self._has_message():  # what it said last
            self._read_message()
        self._child = 0
        return os.waitstatus_to_exitcode(status)

    def _has_message(self) -> bool:
        return any(key.fileobj is self._notify for key, _ in self._selector.select(0))

    def _wait(self, pause_s: float) -> None:
        end = time.monotonic() + pause_s
        while (left := end - time.monotonic()) > 0 and not self._pending & _STOP:
            self._serve(left)

    def _stop(self) -> int:
        """Let the loader end; return its exit code."""
        end = time.monotonic() + STOP_TIMEOUT_S
        if self._child:
            os.kill(self._child, signal.SIGTERM)
        while self._child and (left := end - time.monotonic()) > 0:
            status = self._reap()
            if status is not None:
                return max(status, 0)
            self._serve(left)
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            self._child = 0
        return 0

    def _restart(self) -> None:
        """Stop the loader and execute what is installed now; go on as before if that cannot be executed."""
        program = [sys.executable, "-m", __spec__.name if __spec__ else __name__]
        reason = _probe(program)
        if reason:
            print(f"no planned restart: {' '.join(program)}: {reason}", file=sys.stderr, flush=True)  # noqa: T201  # as above
            return
        self._stop()
        if not self._pending & _STOP:  # a stop meanwhile is a stop
            self._execute_anew(program)

    def _execute_anew(self, program: Sequence[str]) -> NoReturn:
        signal.pthread_sigmask(
            signal.SIG_BLOCK, _SIGNALS
        )  # until the new program can note them: their default is to kill it
        signal.set_wakeup_fd(-1)
        environment = dict(os.environ)
        self._store.hand_over(environment)
        os.execve(program[0], [*program, self._notify_path, *self._command], environment)  # noqa: S606  # a list, as everywhere


def _probe(program: Sequence[str]) -> str:
    """Return why *program* cannot be executed, or nothing; without arguments it ends at once."""
    try:
        done = subprocess.run(
            program, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=PROBE_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "it fails") if done.returncode else ""


def run(command: Sequence[str], notify_path: Path) -> int:
    """Keep *command*, the loader, running; return the exit code of the whole."""
    if _is_served(notify_path):
        print(f"apparate: another loader runs on {notify_path.parent}; give this one another run_dir", file=sys.stderr)  # noqa: T201  # no logger here
        return EXIT_IN_USE
    keeper = Keeper(command, str(notify_path))
    try:
        return keeper.run()
    finally:
        notify_path.unlink(missing_ok=True)


def _is_served(path: Path) -> bool:
    """Whether a living keeper, whose socket must not be taken from it, receives at *path*."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(str(path)) == 0


if __name__ == "__main__" and sys.argv[1:]:  # without arguments it says by ending well that it can be executed
    sys.exit(run(sys.argv[2:], Path(sys.argv[1])))
