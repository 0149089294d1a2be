"""What a finished test must not leave behind: mounts, processes, files, cgroups."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import processes_mentioning, run, wait_until

SETTLE_S = 20.0
PREFIX = "apparate-"
_CGROUPS = Path("/sys/fs/cgroup")


def mounts_below(folder: Path) -> list[str]:
    """Mount points at or below *folder*, deepest last."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point == str(folder) or point.startswith(f"{folder}/"):
            found.append(point)
    return found


def is_mounted_elsewhere(folder: Path) -> bool:
    """Whether another mount namespace has a mount at or below *folder*.

    Whoever makes a namespace meanwhile (`ip netns exec`, a container runtime) takes a copy of every mount of the machine along.
    Where mounts are not shared, unmounting ours leaves that copy, and with it whatever lies below the file system in use.
    """
    own, points = os.readlink("/proc/self/ns/mnt"), (f" {folder} ", f" {folder}/")
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(process / "ns" / "mnt") != own:
                    mounts = (process / "mountinfo").read_text()
                    if any(point in mounts for point in points):
                        return True
    return False


def loop_devices_of(folder: Path) -> list[str]:
    """Loop devices whose file lies below *folder*."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().startswith(f"{folder}/"):
                found.append(backing.parts[3])
    return found


def remove_cgroups(parent: str) -> None:
    """Remove the empty cgroups below *parent* in every hierarchy."""
    for root in {*_CGROUPS.glob(f"*/{parent.strip('/')}"), _CGROUPS / parent.strip("/")}:
        if root.is_dir():
            for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                root.rmdir()


def problems(folder: Path) -> list[str]:
    """What is still mounted, attached or running below *folder*."""
    found = [f"mount {point}" for point in mounts_below(folder)]
    found += [f"loop device {device}" for device in loop_devices_of(folder)]
    found += [f"process {pid}: {line}" for pid, line in processes_mentioning(f"{folder}/").items()]
    return found


@contextlib.contextmanager
def clean_folder(name: str) -> Iterator[Path]:
    """A new short folder for a test with daemons; asserts that nothing of it is left mounted or running, and removes it.

    When something is left, it is taken down all the same, so that one failure does not become many.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}-"))
    try:
        yield folder
    except BaseException:
        _take_down(folder)
        raise
    try:
        wait_until(lambda: not problems(folder), "nothing is left", SETTLE_S)
    except TimeoutError:
        left = problems(folder)
        _take_down(folder)
        raise AssertionError("left behind:\n" + "\n".join(left)) from None
    shutil.rmtree(folder)


def _take_down(folder: Path) -> None:
    for pid in processes_mentioning(f"{folder}/"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for point in reversed(mounts_below(folder)):
        with contextlib.suppress(AssertionError):
            run(["umount", "-l", point])
    for device in loop_devices_of(folder):
        with contextlib.suppress(AssertionError):
            run(["losetup", "-d", f"/dev/{device}"])
    shutil.rmtree(folder, ignore_errors=True)
