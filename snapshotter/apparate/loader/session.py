"""The FUSE session: one mount for the life of the machine, served by one process after the other.

The kernel's descriptor is kept outside the process as well, in the service manager's store or in the keeper's. A process that
starts finds it among its inherited descriptors and goes on where its predecessor stopped, however that ended.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from apparate.errors import FailedPrecondition, FormatError, Unavailable
from apparate.loader import handshake, kernel
from apparate.loader.settings import LoaderSettings
from apparate.telemetry import systemd
from apparate.telemetry.logging import get_logger

_log = get_logger("loader.session")

FD_NAME: Final = "apparate-fuse"
"""Under this name the descriptor is kept in the store."""

SESSION_NEW = "fuse session is new"
SESSION_TAKEN_OVER = "fuse session is taken over"
REQUESTS_LOST = "this kernel cannot repeat requests: what the predecessor had in hand stays unanswered"

_STATE_NAME: Final = "session.json"
_BARRIER_TIMEOUT_S: Final = 5.0
_IDLE_TASKS: Final = 4
_TURN_AWAY_INTERVAL_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class SessionState:
    """What is written down once a mount answers: without it, nobody can have used the mount yet.

    Read by other versions too: a field that is added needs a default, and one that is not known is passed over.
    """

    device: str
    minor: int = 0
    resend: bool = False
    drained: bool = False  # the last process to serve left no request unanswered
    catalogue: str = ""  # identity of the catalogue whose layer numbers its node numbers are made of; "" if not known

    @classmethod
    def parse(cls, text: str) -> SessionState:
        """Return what `to_json` gave.

        Raises:
            FormatError: it is something else.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError("session state", "document", f"is no JSON: {error}") from error
        if not isinstance(values, dict):
            raise FormatError("session state", "document", "is no JSON object")
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        for name, value in known.items():
            if type(value) is not _STATE_TYPES[name]:
                raise FormatError("session state", name, f"is no {_STATE_TYPES[name].__name__}")
        if "device" not in known:
            raise FormatError("session state", "device", "is missing")
        return cls(**known)

    def to_json(self) -> str:
        """Return the file's content."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, path: Path) -> SessionState | None:
        """Return what is in *path*, None if there is nothing that can be read."""
        try:
            return cls.parse(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, FormatError) as error:
            _log.warning("session state cannot be read, a new session begins", path=str(path), error=str(error))
            return None

    def write(self, path: Path) -> None:
        """Replace what is in *path*."""
        partial = path.with_suffix(".new")
        partial.write_text(self.to_json())
        partial.replace(path)


_STATE_TYPES: Final[Mapping[str, type]] = {
    "device": str, "minor": int, "resend": bool, "drained": bool, "catalogue": str,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Catalogued:
    """Where a loader's layer numbers come from: the identity of their catalogue, and the root that holds it."""

    identity: str
    root: Path


class SessionOperations(pyfuse3.Operations):
    """File system operations that let the session know when libfuse is initialised."""

    supports_dot_lookup = False

    def __init__(self) -> None:
        super().__init__()
        self.on_init: Callable[[], None] = lambda: None

    def init(self) -> None:
        """Called by libfuse when it has taken the INIT."""
        self.on_init()


class FuseSession:
    """The connection of this process to its FUSE mount. Made by `open_session`; used from the trio thread.

    *device* is the "major:minor" of the mount, which names it as long as it lives.
    """

    def __init__(self, fd: int, state: SessionState, state_path: Path, *, taken_over: bool) -> None:
        self.fd = fd
        self._state = state
        self._state_path = state_path
        self.device = state.device
        self.can_resend = state.resend
        self.taken_over = taken_over
        self._stop = trio.Event()

    async def serve(self, operations: SessionOperations, requests: int, started: Callable[[], None]) -> None:
        """Answer requests until `stop` is called; *started* runs when the first one can be read. The mount stays.

        Returns when every request in hand is answered. Cancelled, it leaves them to the successor.

        Raises:
            Unavailable: the mount is gone, or its connection was aborted from outside.
        """
        initialised = trio.Event()
        nothing_left = self._state.drained
        if nothing_left:  # written before the first request is read: from then on it may not be true
            self._state = replace(self._state, drained=False)
            self._state.write(self._state_path)
        target = handshake.synthetic_socket().detach()

        def swap() -> None:
            os.dup2(self.fd, target, inheritable=False)
            initialised.set()

        operations.on_init = swap
        pyfuse3.init(operations, f"/dev/fd/{target}", {"default_permissions"})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._start, initialised, nothing_left, started)
            nursery.start_soon(self._stop_reading, target)
            await pyfuse3.main(min_tasks=_IDLE_TASKS, max_tasks=requests)
            nursery.cancel_scope.cancel()
        if not self._stop.is_set():
            raise Unavailable("the FUSE mount is gone: it was unmounted or aborted from outside")
        replace(self._state, drained=True).write(self._state_path)

    async def _start(self, initialised: trio.Event, nothing_left: bool, started: Callable[[], None]) -> None:
        await initialised.wait()
        resent = self.can_resend and handshake.resend(self.fd)
        if self.taken_over and not nothing_left and not resent:
            _log.warning(REQUESTS_LOST)
        started()

    async def _stop_reading(self, target: int) -> None:
        """Once asked to, turn away every task that waits for the next request, until none is left and `main` returns.

        Not pyfuse3.terminate(): with libfuse's exit flag set, a request whose reading is under way is read and thrown away.
        """
        await self._stop.wait()
        while True:
            trio.lowlevel.notify_closing(target)
            await trio.sleep(_TURN_AWAY_INTERVAL_S)

    def stop(self) -> None:
        """Read no further request; `serve` returns when those in hand are answered."""
        self._stop.set()


def open_session(
    settings: LoaderSettings, inherited: Mapping[str, Sequence[int]], catalogue: Catalogued
) -> FuseSession:
    """Take over the session that *inherited* descriptors and the mount table offer, or begin a new one.

    Raises:
        FailedPrecondition: its node numbers are of another catalogue. Nothing was changed: who reads waits for a loader that has
            the right one, and the descriptor stays kept.
        Unsupported: no FUSE here.
        Unavailable: the mount was refused.
    """
    state_path = settings.run_dir / _STATE_NAME
    kept = list(inherited.get(FD_NAME, ()))
    state = SessionState.read(state_path)
    current = kernel.mount_at(str(settings.fuse_dir))
    if kept and state and current and current.device == state.device and _is_alive(kept[-1]):
        if state.catalogue not in {catalogue.identity, ""}:
            raise FailedPrecondition(
                f"layers.root {catalogue.root} is not the store of the layers that containers here are reading; set it back, "
                f"they wait. To give them up, remove {state_path}"
            )
        state = replace(state, catalogue=catalogue.identity)
        state.write(state_path)
        _log.info(SESSION_TAKEN_OVER, mountpoint=str(settings.fuse_dir), device=state.device)
        return FuseSession(kept[-1], state, state_path, taken_over=True)
    for fd in kept:
        os.close(fd)
    return _new_session(settings, state_path, catalogue.identity)


def _new_session(settings: LoaderSettings, state_path: Path, catalogue: str) -> FuseSession:
    state_path.unlink(missing_ok=True)
    _detach_all(str(settings.fuse_dir))
    settings.fuse_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = handshake.open_device()
    systemd.remove_fd(FD_NAME)
    keep(fd)
    negotiated = handshake.mount(fd, str(settings.fuse_dir), settings.max_background)
    mounted = kernel.mount_at(str(settings.fuse_dir))
    if mounted is None:
        raise Unavailable(f"the FUSE mount at {settings.fuse_dir} disappeared")
    state = SessionState(mounted.device, negotiated.minor, negotiated.resend, catalogue=catalogue)
    kernel.set_read_ahead(mounted.device, settings.fuse_read_ahead_kb)
    state.write(state_path)
    _log.info(SESSION_NEW, mountpoint=str(settings.fuse_dir), device=state.device, minor=state.minor)
    return FuseSession(fd, state, state_path, taken_over=False)


def keep(fd: int) -> None:
    """Have *fd* outlive this process."""
    if not systemd.store_fd(FD_NAME, fd):
        _log.warning("no descriptor store: running containers will see errors when this process ends")
    _wait_for_manager()


def _is_alive(fd: int) -> bool:
    """Return whether the connection still has its mount; one that is aborted polls as an error."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return not any(events & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, events in poll.poll(0))


def _detach_all(target: str) -> None:
    """Take away every mount at *target*, also busy ones, and abort its connection: who still waits for an answer gets an error."""
    while kernel.mount_at(target) is not None:
        with contextlib.suppress(OSError):  # busy, but aborted
            kernel.unmount(target, kernel.MNT_FORCE | kernel.UMOUNT_NOFOLLOW)
            continue
        try:
            kernel.unmount(target, kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.EINVAL:  # somebody else was faster
                raise Unavailable(f"unmounting {target}: {error.strerror}") from error


def _wait_for_manager() -> None:
    """Wait until the service manager has dealt with all that was sent to it (sd_notify_barrier(3))."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, ours)
        try:
            sent = systemd.notify("BARRIER=1", fds=[theirs])
        finally:
            os.close(theirs)
        poll = select.poll()
        poll.register(ours, 0)
        if sent and not poll.poll(_BARRIER_TIMEOUT_S * 1000):
            _log.warning("the service manager did not confirm within its time", timeout_s=_BARRIER_TIMEOUT_S)
