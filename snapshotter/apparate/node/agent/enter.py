"""Runs a program of the host from a pod: joins the namespaces of process 1, then becomes the program.

    python -m apparate.node.agent.enter PROGRAM ARGUMENT…

A process of its own, because a process with threads cannot join a mount namespace; and not nsenter(1), because the image holds
nothing but the package. The pod needs hostPID and the privileges for setns(2). Exit codes 125 to 127 are those of env(1).
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

NAMESPACES: Final = ("cgroup", "ipc", "uts", "net", "mnt")
"""The mount namespace comes last: after it /proc is the host's. Those of processes and users are the host's already."""
CANNOT_ENTER: Final = 125
CANNOT_RUN: Final = 126
NO_PROGRAM: Final = 127

_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin",
    "LC_ALL": "C",
    "HOME": "/root",
}
"""All that the program gets: what the pod was told is not the host's business."""


def main(argv: list[str]) -> int:
    """Become the program *argv* in the namespaces of process 1; return only if that fails."""
    try:
        _join("/proc/1/ns")
    except OSError as error:
        sys.stderr.write(f"the host cannot be entered: {error.strerror}: the pod needs hostPID and privileged\n")
        return CANNOT_ENTER
    try:
        os.chdir("/")
        os.execvpe(argv[0], argv, _ENVIRONMENT)  # noqa: S606  # a list, as everywhere
    except FileNotFoundError:
        sys.stderr.write(f"{argv[0]}: not found on the host\n")
        return NO_PROGRAM
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        return CANNOT_RUN


def _join(folder: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    handles = []
    for name in NAMESPACES:
        path = f"{folder}/{name}"
        if name == "cgroup" and not os.path.exists(path):  # before Linux 4.6
            continue
        handles.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    for handle in handles:
        if libc.setns(handle, 0):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
