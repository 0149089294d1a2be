"""Restarting containerd, and the proof that it works afterwards: CRI answers, our plugin is loaded, a pod has run on it."""

from __future__ import annotations

import shlex
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from apparate.containerd.client import K8S, Containerd, Cri, Snapshots
from apparate.errors import ApparateError, FailedPrecondition, Unavailable
from apparate.node.settings import NAME
from apparate.telemetry.logging import get_logger

_log = get_logger("node.restart")

PROBE_RAN = "probe pod has run"

HEALTH_S: Final = 60.0
"""From the restart of containerd to the end of the probe pod; longer means that it does not work."""
RESTART_TIMEOUT_S: Final = HEALTH_S
"""A restart that takes longer than all of it may take is given up, and the old configuration restarted."""
PROBE_TIMEOUT_MIN_S: Final = 1.0
PROBE_NAME: Final = "apparate-probe"
PROBE_LABELS: Final = {"apparate/probe": "node"}

_POLL_S: Final = 0.2
_ERROR_CHARS_MAX: Final = 500
_UCRED: Final = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


class Restarter(Protocol):
    """How the service manager of this node restarts containerd. Pods keep running: their shims are not stopped."""

    def restart(self) -> None:
        """Restart containerd, or start it if it is down. Raises Unavailable: it did not start."""


@dataclass(frozen=True, slots=True)
class Systemd:
    """systemd's unit *unit*."""

    unit: str = "containerd.service"

    def restart(self) -> None:
        # A unit that failed too often in a row would not be started again before its interval is over.
        with suppress(Unavailable):  # nothing to reset; or no systemd, as the restart will say
            _run(["systemctl", "reset-failed", self.unit])
        _run(["systemctl", "restart", self.unit])


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the site, for other service managers: `--restart-command`, split as a shell would, run without one."""

    line: str

    def restart(self) -> None:
        _run(shlex.split(self.line))


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", check=False, timeout=RESTART_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"containerd was not restarted: {error}") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-_ERROR_CHARS_MAX:]
        raise Unavailable(f"containerd was not restarted: {shlex.join(command)} exited {done.returncode}: {said}")


def wait_until(condition: Callable[[], object], deadline: float) -> None:
    """Return when *condition* returns without an error.

    Raises:
        Unavailable: it did not until *deadline* (monotonic); the message is that of its last error.
    """
    while True:
        try:
            condition()
        except ApparateError as error:
            if time.monotonic() >= deadline:
                raise Unavailable(f"containerd does not work: {error}") from error
            time.sleep(_POLL_S)
        else:
            return


def wait_for_cri(cri: Cri, deadline: float) -> None:
    """Return when the CRI plugin answers. Raises Unavailable at *deadline*."""
    wait_until(cri.version, deadline)


def require_plugin(daemon: Containerd) -> None:
    """Raise FailedPrecondition unless the running containerd has our plugin loaded."""
    loaded = daemon.snapshotters()
    if NAME not in loaded:
        raise FailedPrecondition(f"the running containerd has no snapshotter {NAME}, only {', '.join(sorted(loaded))}")


def probe(daemon: Containerd, cri: Cri, deadline: float, *, systemd_cgroup: bool) -> None:
    """Run a pod until *deadline* (monotonic), see that it stands on our snapshotter, and remove it.

    Raises:
        ApparateError: it did not run, or stands on another snapshotter.
    """
    began = time.monotonic()
    remove_probes(cri)
    cgroup_parent = "system.slice" if systemd_cgroup else ""
    sandbox = cri.run_sandbox(PROBE_NAME, cgroup_parent, PROBE_LABELS, max(deadline - began, PROBE_TIMEOUT_MIN_S))
    try:
        used = {container.id: container.snapshotter for container in daemon.containers(K8S)}.get(sandbox, NAME)
    finally:
        cri.remove_sandbox(sandbox)
    if used != NAME:
        raise FailedPrecondition(f"a new pod stands on snapshotter {used}, not on {NAME}")
    _log.info(PROBE_RAN, duration_s=round(time.monotonic() - began, 3))


def try_snapshots(snapshots: Snapshots) -> None:
    """Make and remove an empty snapshot. Raises ApparateError: the snapshotter does not work."""
    key = f"{PROBE_NAME}-{uuid.uuid4()}"
    snapshots.prepare(key, "")
    snapshots.remove(key)


def remove_probes(cri: Cri) -> None:
    """Remove what a killed run has left of its probe."""
    for sandbox in cri.sandboxes(PROBE_LABELS):
        cri.remove_sandbox(sandbox)


def serves(path: Path) -> bool:
    """Say whether something accepts connections on the unix socket *path*."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


def command_line_of(path: Path) -> list[str]:
    """Return the command line of the process that listens on the unix socket *path*; empty if that cannot be told.

    A service manager that listens in its place, or a process in another namespace, is not told apart from a missing one.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
            pid, _, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return []
    return [word.decode(errors="replace") for word in line.split(b"\0") if word]
