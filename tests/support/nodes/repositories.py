"""Package repositories that nodes have on their own disk: no test of a role needs a mirror.

deb/      containerd.io (built from Go modules), and Debian's own runc and fuse
rpm/8/    the same as RPM
archives/ containerd-<version>.tar.gz as its releases have it, and runc
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.nodes import packaging
from tests.support.nodes.images import lock
from tests.support.nodes.packaging import deb, rpm
from tests.support.peers import cache_root, peer
from tests.support.processes import run

CONTAINERDS = ("1.4.3", "1.7.35", "2.4.2")
FROM_DEBIAN = ("fuse3", "libfuse3-3", "fuse", "libfuse2", "runc")
ARCHIVED = "1.4.3"
CONFIG = "/etc/containerd/config.toml"
_UNIT = """\
[Unit]
Description=containerd container runtime
After=network.target local-fs.target

[Service]
ExecStart=/usr/bin/containerd
Type=notify
Delegate=yes
KillMode=process
Restart=always
RestartSec=1
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"""
# As the packages of Docker ship it: without CRI, which is what a role has to notice.
_PACKAGED_CONFIG = """\
disabled_plugins = ["cri"]
"""


def repositories() -> Path:
    """Return the folder with both repositories, built first if the cache does not have them."""
    with tempfile.TemporaryDirectory(prefix="apparate-debs-") as scratch:
        debs = _download(Path(scratch))
        target = cache_root() / "nodes" / f"repositories-{_key(debs)}"
        with lock("repositories"):
            if not target.is_dir():
                _build(target, debs)
    return target


def _build(target: Path, debs: Sequence[Path]) -> None:
    with tempfile.TemporaryDirectory(prefix=".repositories-", dir=target.parent) as scratch:
        whole = Path(scratch) / "whole"
        debian, redhat = whole / "deb", whole / "rpm" / "8"
        debian.mkdir(parents=True)
        redhat.mkdir(parents=True)
        for package in debs:
            shutil.copy2(package, debian)
        for version in CONTAINERDS:
            tree = _containerd(Path(scratch) / f"containerd-{version}", version)
            deb(debian, name="containerd.io", version=f"{version}-1", files=tree, depends=["runc"], config=[CONFIG])
            rpm(redhat, name="containerd.io", version=version, files=tree, requires=["runc"], config=[CONFIG])
        for name in ("fuse", "runc"):
            tree = _programs(Path(scratch) / name, [package for package in debs if package.name.startswith(f"{name}_")])
            rpm(redhat, name=name, version="1.1.5" if name == "runc" else "2.9.9", files=tree)
        index_debs(debian)
        index_rpms(redhat)
        _archives(whole / "archives", Path(scratch))
        for path in (whole, *whole.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)  # apt reads as a user of its own
        whole.rename(target)


def index_debs(folder: Path) -> None:
    """Make *folder* a repository of the debs in it."""
    (folder / "Packages").write_text(run(["dpkg-scanpackages", "-m", "."], cwd=folder))


def index_rpms(folder: Path) -> None:
    """Make *folder* a repository of the RPMs in it."""
    run(["createrepo_c", "--quiet", folder])


def _archives(folder: Path, scratch: Path) -> None:
    """What hosts without packages of containerd install: the archive of a release, and runc, both built here."""
    folder.mkdir()
    programs = scratch / f"containerd-{ARCHIVED}" / "usr"
    run(["tar", "--create", "--gzip", "--file", folder / f"containerd-{ARCHIVED}.tar.gz", "-C", programs, "bin"])
    shutil.copy2(scratch / "runc" / "usr" / "sbin" / "runc", folder / "runc")


def _containerd(tree: Path, version: str) -> Path:
    """The files of a containerd package."""
    programs = tree / "usr" / "bin"
    programs.mkdir(parents=True)
    for program in peer(f"containerd-{version}").iterdir():
        shutil.copy2(program, programs)
    for place, text in {
        "usr/lib/systemd/system/containerd.service": _UNIT,
        CONFIG.lstrip("/"): _PACKAGED_CONFIG,
    }.items():
        path = tree / place
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tree


def _programs(tree: Path, packages: Sequence[Path]) -> Path:
    """The programs of Debian packages, with nothing else: their documentation and scripts are Debian's."""
    for package in packages:
        unpacked = tree.with_suffix(".unpacked")
        run(["dpkg-deb", "-x", package, unpacked])
        for folder in ("bin", "sbin", "usr/bin", "usr/sbin"):
            if (unpacked / folder).is_dir():
                target = tree / "usr" / folder.removeprefix("usr/")
                shutil.copytree(unpacked / folder, target, symlinks=True, dirs_exist_ok=True)
    return tree


def _download(folder: Path) -> list[Path]:
    """Debian's packages, from apt's own cache where they have been before."""
    kept = cache_root() / "nodes" / "debs"
    kept.mkdir(parents=True, exist_ok=True)
    with lock("debs"):
        printed = run(["apt-get", "download", "--print-uris", *FROM_DEBIAN], cwd=folder)
        names = [line.split()[1] for line in printed.splitlines() if line.startswith("'")]
        missing = [name for name in names if not (kept / name).exists()]
        if missing:
            run(["apt-get", "download", "-q", *FROM_DEBIAN], cwd=folder)
            for package in folder.glob("*.deb"):
                shutil.move(package, kept / package.name)
    return sorted(kept / name for name in names)


def _key(debs: Sequence[Path]) -> str:
    """A digest of what the repositories are made of."""
    parts = [
        inspect.getsource(packaging),
        Path(__file__).read_text(),
        *(str(peer(f"containerd-{v}")) for v in CONTAINERDS),
    ]
    return hashlib.sha256("\n".join([*parts, *(package.name for package in debs)]).encode()).hexdigest()[:16]
