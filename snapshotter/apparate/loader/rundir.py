"""The run directory belongs to one loader at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from apparate.errors import FailedPrecondition, Unavailable
from apparate.loader.handover import request_session
from apparate.loader.keeper import SERVED
from apparate.loader.session import FD_NAME, keep
from apparate.telemetry import systemd

if TYPE_CHECKING:
    from apparate.loader.settings import LoaderSettings

_LOCK_NAME: Final = "loader.lock"


@dataclass(frozen=True, slots=True)
class RunDir:
    """A run directory that is held, and the descriptors that came with it, by name."""

    lock_fd: int
    fds: Mapping[str, Sequence[int]]

    def close(self) -> None:
        """Let another loader have it."""
        os.close(self.lock_fd)


def take_run_dir(settings: LoaderSettings, inherited: Mapping[str, Sequence[int]]) -> RunDir:
    """Hold the run directory; if a loader without a keeper has it, take over from that one.

    Raises:
        FailedPrecondition: another loader has it, or we may not use it.
        Unavailable: the directory cannot be used.
    """
    try:
        settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(settings.run_dir / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise FailedPrecondition(f"loader.run_dir {settings.run_dir}: {error.strerror}; run as root") from error
    except OSError as error:
        raise Unavailable(f"loader.run_dir {settings.run_dir}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        given = request_session(settings.run_dir)
        if given is None:
            os.close(fd)
            raise FailedPrecondition(
                f"another loader runs on {settings.run_dir}; give this one another run_dir"
            ) from error
        keep(given)
        systemd.notify(SERVED)
        fcntl.flock(fd, fcntl.LOCK_EX)  # it ends when its requests in hand are answered, at the latest after drain_s
        return RunDir(fd, {**inherited, FD_NAME: [given]})
    return RunDir(fd, inherited)
