"""What this node can do: one finding for each thing that on-demand loading needs, with what to do where it is missing.

Nothing is changed, no module is loaded, nothing is written. A finding is about the node, never about a single image.
"""

from __future__ import annotations

import enum
import os
import platform
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apparate.errors import ApparateError

VERSION_TIMEOUT_S: Final = 10.0
"""`containerd --version` answers at once or is broken."""
OLDEST_CONTAINERD: Final = (1, 4, 3)
RESEND_KERNEL: Final = (6, 9)
"""From here on a request that a killed process had read is repeated for its successor (FUSE_NOTIFY_RESEND)."""
FREE_BYTES_MIN: Final = 1024**3
"""Below this a node can hardly hold one image."""
OVERLAY_MAGIC: Final = 0x794C7630

_VERSION = re.compile(r"\bv?(\d+)\.(\d+)\.(\d+)")


class Level(enum.Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    """Works, with a loss that the finding names."""
    FAILED = "failed"
    """On-demand loading cannot work here until this is mended."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. *fix* is empty where there is nothing to do."""

    name: str
    level: Level
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """Where to look; another root in tests."""

    root: Path = Path("/")
    kernel: str = ""
    """Release of the kernel; empty: the running one."""

    def path(self, absolute: str) -> Path:
        """Return *absolute* below this host's root."""
        return self.root / absolute.lstrip("/")

    def kernel_release(self) -> str:
        """Return the kernel's release, as `6.1.0-21-amd64`."""
        return self.kernel or platform.release()

    def kernel_version(self) -> tuple[int, int]:
        """Return major and minor of the kernel."""
        match = re.match(r"(\d+)\.(\d+)", self.kernel_release())
        return (int(match[1]), int(match[2])) if match else (0, 0)


def run(data_root: Path, host: Host | None = None, driver: Callable[[], str] | None = None) -> list[Finding]:
    """Return every finding about this node.

    Args:
        data_root: where layers and snapshots are kept.
        host: where to look.
        driver: returns the name of the way layers would be mounted here, or raises with the reason why there is none.
    """
    host = host or Host()
    findings = [
        _user(),
        _kernel(host),
        _fuse(host),
        _filesystem(host, "overlay", "modprobe overlay"),
        _erofs(host),
        _data_root(data_root),
        _disk(data_root),
        _cgroup(host),
        _security(host),
        _containerd(),
    ]
    if driver is not None:
        findings.append(_driver(driver))
    return findings


def worst(findings: Sequence[Finding]) -> Level:
    """Return the worst level among *findings*."""
    levels = {finding.level for finding in findings}
    return next((level for level in (Level.FAILED, Level.WARNING) if level in levels), Level.OK)


def _user() -> Finding:
    if os.geteuid() == 0:
        return Finding("user", Level.OK, "root")
    return Finding("user", Level.FAILED, f"user {os.geteuid()}", "run the services as root: they mount file systems")


def _kernel(host: Host) -> Finding:
    release = host.kernel_release()
    if host.kernel_version() >= RESEND_KERNEL:
        return Finding("kernel", Level.OK, f"{release}, repeats requests for a successor")
    detail = f"{release}: a loader that is killed loses the requests in its hands (their readers see EIO); planned restarts drain"
    return Finding("kernel", Level.WARNING, detail, "use Linux 6.9 or later where that matters")


def _fuse(host: Host) -> Finding:
    device = host.path("/dev/fuse")
    try:
        is_device = stat.S_ISCHR(device.stat().st_mode)
    except OSError:
        is_device = False
    if is_device:
        return Finding("fuse", Level.OK, "/dev/fuse is there")
    return Finding(
        "fuse", Level.FAILED, "/dev/fuse is missing", "modprobe fuse; yum install -y fuse or apt install fuse3"
    )


def _file_systems(host: Host) -> set[str]:
    try:
        text = host.path("/proc/filesystems").read_text()
    except OSError:
        return set()
    return {line.split("\t")[-1] for line in text.splitlines()}


def _filesystem(host: Host, name: str, fix: str) -> Finding:
    if name in _file_systems(host) or _has_module(host, name):
        return Finding(name, Level.OK, "the kernel has it")
    return Finding(name, Level.FAILED, "the kernel does not have it", fix)


def _erofs(host: Host) -> Finding:
    if "erofs" in _file_systems(host):
        return Finding("erofs", Level.OK, "the kernel has it")
    if _has_module(host, "erofs"):
        return Finding("erofs", Level.OK, "as a module, loaded with the first mount")
    detail = "the kernel does not have it: layers are served as FUSE trees, which is slower for metadata and full reads"
    return Finding("erofs", Level.WARNING, detail, "use a kernel from 5.4 on with CONFIG_EROFS_FS")


def _has_module(host: Host, name: str) -> bool:
    modules = host.path(f"/lib/modules/{host.kernel_release()}")
    for listing in ("modules.dep", "modules.builtin"):
        try:
            text = (modules / listing).read_text()
        except OSError:
            continue
        if re.search(rf"(^|/){re.escape(name)}\.ko", text, re.MULTILINE):
            return True
    return False


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _data_root(data_root: Path) -> Finding:
    place = _existing(data_root)
    done = subprocess.run(
        ["stat", "-f", "-c", "%t", str(place)], capture_output=True, text=True, check=False, timeout=VERSION_TIMEOUT_S
    )
    if done.returncode == 0 and int(done.stdout.strip() or "0", 16) == OVERLAY_MAGIC:
        return Finding("data root", Level.FAILED, f"{data_root} is on overlayfs", "put it on a disk file system")
    return Finding("data root", Level.OK, str(data_root))


def _disk(data_root: Path) -> Finding:
    free = shutil.disk_usage(_existing(data_root)).free
    detail = f"{free / 1024**3:.1f} GiB free below {data_root}"
    if free < FREE_BYTES_MIN:
        return Finding("disk", Level.WARNING, detail, "free some space: data that cannot be kept is fetched again")
    return Finding("disk", Level.OK, detail)


def _cgroup(host: Host) -> Finding:
    unified = host.path("/sys/fs/cgroup/cgroup.controllers").exists()
    return Finding("cgroup", Level.OK, "version 2" if unified else "version 1")


def _security(host: Host) -> Finding:
    try:
        enforcing = host.path("/sys/fs/selinux/enforce").read_text().strip() == "1"
    except OSError:
        return Finding("security module", Level.OK, "SELinux is not enforcing")
    if not enforcing:
        return Finding("security module", Level.OK, "SELinux is permissive")
    detail = "SELinux is enforcing: files of layers carry the label of the mount"
    return Finding("security module", Level.WARNING, detail, "have container-selinux installed")


def _containerd() -> Finding:
    program = shutil.which("containerd")
    if program is None:
        return Finding("containerd", Level.WARNING, "no containerd on PATH", "install containerd 1.4.3 or later")
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=False, timeout=VERSION_TIMEOUT_S
    )
    match = _VERSION.search(done.stdout)
    if match is None:
        return Finding("containerd", Level.WARNING, f"{program} does not tell its version", "run it with --version")
    version = tuple(int(part) for part in match.groups())
    shown = ".".join(map(str, version))
    if version < OLDEST_CONTAINERD:
        return Finding("containerd", Level.FAILED, shown, "upgrade to 1.4.3 or later")
    return Finding("containerd", Level.OK, shown)


def _driver(driver: Callable[[], str]) -> Finding:
    try:
        return Finding("driver", Level.OK, driver())
    except ApparateError as error:
        return Finding("driver", Level.FAILED, str(error), "see the findings above")
