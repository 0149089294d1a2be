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

STAT_TIMEOUT_S: Final = 10.0
RESEND_KERNEL: Final = (6, 9)
"""From here on a request that a killed process had read is repeated for its successor (FUSE_NOTIFY_RESEND)."""
FREE_BYTES_MIN: Final = 1024**3
"""Below this a node can hardly hold one image."""
OVERLAY_MAGIC: Final = 0x794C7630

ARCHITECTURES: Final = frozenset({"x86_64", "aarch64"})
DISTRIBUTIONS: Final = frozenset({"ubuntu", "debian", "centos", "tencentos", "tlinux", "rhel", "rocky", "almalinux"})
"""Names of `ID` in os-release(5) on which the packages are tested, or which are built from the same packages."""


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
    machine: str = ""
    """Architecture as uname(2) names it; empty: this one."""

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
        _system(host),
        _architecture(host),
        _kernel(host),
        _fuse(host),
        _filesystem(host, "overlay", "modprobe overlay"),
        _erofs(host),
        _data_root(data_root),
        _disk(data_root),
        _cgroup(host),
        _security(host),
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


def _system(host: Host) -> Finding:
    release = _os_release(host)
    shown = release.get("PRETTY_NAME") or release.get("ID") or "unknown"
    if DISTRIBUTIONS & {release.get("ID", ""), *release.get("ID_LIKE", "").split()}:
        return Finding("system", Level.OK, shown)
    detail = f"{shown} is none of those that apparate is tested on"
    return Finding("system", Level.WARNING, detail, "use Ubuntu, Debian, CentOS or TencentOS where that matters")


def _os_release(host: Host) -> dict[str, str]:
    for name in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            lines = host.path(name).read_text(errors="replace").splitlines()
        except OSError:
            continue
        pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
        return {key: value.strip().strip("\"'") for key, _, value in pairs}
    return {}


def _architecture(host: Host) -> Finding:
    machine = host.machine or platform.machine()
    if machine in ARCHITECTURES:
        return Finding("architecture", Level.OK, machine)
    return Finding("architecture", Level.FAILED, machine, f"use a node of {' or '.join(sorted(ARCHITECTURES))}")


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
        ["stat", "-f", "-c", "%t", str(place)], capture_output=True, text=True, check=False, timeout=STAT_TIMEOUT_S
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
    enforcing = _first_line(host, "/sys/fs/selinux/enforce")
    if enforcing == "1":
        detail = "SELinux is enforcing: files of layers carry the label of the mount"
        return Finding("security module", Level.WARNING, detail, "have container-selinux installed")
    if enforcing == "0":
        return Finding("security module", Level.OK, "SELinux is permissive")
    if _first_line(host, "/sys/module/apparmor/parameters/enabled") == "Y":
        return Finding(
            "security module", Level.OK, "AppArmor: profiles of containers apply to files of layers as to any other"
        )
    return Finding("security module", Level.OK, "neither SELinux nor AppArmor")


def _first_line(host: Host, path: str) -> str:
    try:
        return host.path(path).read_text().strip()
    except OSError:
        return ""


def _driver(driver: Callable[[], str]) -> Finding:
    try:
        return Finding("driver", Level.OK, driver())
    except ApparateError as error:
        return Finding("driver", Level.FAILED, str(error), "see the findings above")
