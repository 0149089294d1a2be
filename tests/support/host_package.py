"""The host package as `make package` builds it, and root file systems that have nothing for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.peers import cache_root
from tests.support.processes import run
from tests.support.services import REPOSITORY

PACKAGING: Final = REPOSITORY / "snapshotter" / "packaging"
BUILD_TIMEOUT_S: Final = 1200.0
DEBIAN_SUITE: Final = "bullseye"  # glibc 2.31
_JUNK: Final = b"\x7fELF" + bytes(60)


def build(out: Path, *options: str) -> Path:
    """Build the packages into *out*, or take them from the cache, and return *out*."""
    command: list[str | Path] = [sys.executable, "-m", "hostpackage", "build", "--out", out]
    run(
        [*command, *options],
        env={**os.environ, "PYTHONPATH": str(PACKAGING)},
        cwd=REPOSITORY,
        timeout_s=BUILD_TIMEOUT_S,
    )
    return out


def unpack(out: Path, target: Path) -> Path:
    """Unpack the tar.zst of *out* below *target*, as in /opt/apparate, and return the versioned folder."""
    (archive,) = out.glob("*.tar.zst")
    target.mkdir()
    run(["tar", "--zstd", "-xf", archive, "-C", target])
    (tree,) = target.iterdir()
    return tree


def _bare(root: Path) -> None:
    """Nothing but a static busybox."""
    found = shutil.which("busybox")
    if found is None:
        raise AssertionError("busybox-static is not installed")
    (root / "bin").mkdir()
    shutil.copy(found, root / "bin" / "busybox")
    (root / "bin" / "sh").symlink_to("busybox")


def _spoiled(root: Path) -> None:
    """A libc, a dynamic loader, their caches and a Python that whoever touches them cannot use."""
    _bare(root)
    for name in (
        "lib/x86_64-linux-gnu",
        "usr/lib/x86_64-linux-gnu",
        "lib64",
        "usr/lib64",
        "etc",
        "usr/bin",
        "usr/lib/ssl",
    ):
        (root / name).mkdir(parents=True)
    for folder in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64"):
        for library in ("libc.so.6", "libm.so.6", "libpthread.so.0", "libnss_sss.so.2", "libssl.so.3", "libfuse3.so.3"):
            (root / folder / library).write_bytes(_JUNK)
    for name in ("lib64/ld-linux-x86-64.so.2", "etc/ld.so.cache", "usr/bin/python3", "usr/lib/ssl/openssl.cnf"):
        (root / name).write_bytes(_JUNK)
        (root / name).chmod(0o755)
    (root / "etc/ld.so.preload").write_text("/lib/x86_64-linux-gnu/libc.so.6\n")
    (root / "etc/nsswitch.conf").write_text("passwd: sss\ngroup: sss\nhosts: sss resolve\n")


def _debian(root: Path) -> None:
    """An older Debian, without Python."""
    kept = cache_root() / "package" / f"rootfs-{DEBIAN_SUITE}-mount.tar"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        new = kept.with_suffix(f".new-{os.getpid()}.tar")
        run(
            ["mmdebstrap", "--quiet", "--variant=essential", "--include=mount", DEBIAN_SUITE, new],
            timeout_s=BUILD_TIMEOUT_S,
        )
        new.rename(kept)
    run(["tar", "-xf", kept, "-C", root, "--exclude=./dev/*"])


HOSTS: Final[Mapping[str, Callable[[Path], None]]] = {
    "a static busybox": _bare,
    "a libc that nobody can use": _spoiled,
    "Debian 11": _debian,
}


@dataclass(frozen=True, slots=True)
class Host:
    """A root file system with the package in it. Its mounts live in a namespace of each process started here."""

    root: Path
    version: str

    def command(self, *words: str | Path, alone: bool = False) -> list[str]:
        """Return the command line that executes *words* inside; the process that runs it becomes theirs.

        With *alone* they see no process but their own, and become a child.
        """
        mounts = f"mount -t proc proc {self.root}/proc && mount -t sysfs sys {self.root}/sys && mount --bind /dev {self.root}/dev"
        inner = f'{mounts} && exec chroot {self.root} "$@"'
        namespaces = ["--pid", "--fork", "--kill-child"] if alone else []
        return [
            "unshare",
            *namespaces,
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            inner,
            "sh",
            *map(str, words),
        ]

    def run(self, *words: str | Path, env: Mapping[str, str] | None = None, alone: bool = False) -> str:
        """Execute *words* inside to their end, with nothing but *env*, and return what they print; *alone* as in `command`."""
        done = subprocess.run(
            self.command(*words, alone=alone),
            env={"PATH": os.environ["PATH"], **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_TIMEOUT_S,
        )
        if done.returncode:
            raise AssertionError(f"{' '.join(map(str, words))} exited {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    @property
    def program(self) -> str:
        """`apparate` inside."""
        return "/opt/apparate/current/bin/apparate"

    @property
    def python(self) -> str:
        """The interpreter inside."""
        return "/opt/apparate/current/bin/python3"


def install(tree: Path, root: Path, kind: str) -> Host:
    """Make a root file system of *kind* at *root* with the package of *tree* in it."""
    root.mkdir()
    HOSTS[kind](root)
    for name in ("proc", "sys", "dev", "run", "tmp", "etc/apparate", "var/lib", "opt/apparate"):
        (root / name).mkdir(parents=True, exist_ok=True)
    run(["cp", "-al", tree, root / "opt/apparate"])
    (root / "opt/apparate/current").symlink_to(tree.name)
    return Host(root, tree.name)


def mapped_files(pids: Sequence[int]) -> set[str]:
    """Every file that is mapped into one of *pids*."""
    found = set()
    for pid in pids:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split(None, 5)
            if len(fields) == 6 and fields[5].startswith("/"):
                found.add(fields[5])
    return found
