"""The programs that machines of a cluster run, each a folder that is mounted: built or fetched once, kept outside the checkout."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from tests.support.cluster.layout import ClusterSpec
from tests.support.nodes.images import image, lock
from tests.support.peers import cache_root, peer
from tests.support.processes import run

ETCD_PACKAGE: Final = "etcd-server"
HELMS: Final = ("helm-3", "helm-4")
FETCH_TIMEOUT_S: Final = 600.0


def kubernetes(version: str) -> Path:
    """The folder with `hyperkube`, which is whatever it is called."""
    return peer(f"hyperkube-{version}")


def containerd(version: str) -> Path:
    return peer(f"containerd-{version}")


def cni_plugins() -> Path:
    return peer("cni-plugins")


def runc() -> Path:
    """The machine's own runc."""
    found = shutil.which("runc")
    if found is None:
        raise AssertionError("runc is not installed")
    return Path(found)


def etcd() -> Path:
    """The folder with Debian's `etcd`, out of the package that apt offers; it is not installed, for that starts it."""
    offered = run(["apt-cache", "show", "--no-all-versions", ETCD_PACKAGE])
    version = next(line.split()[1] for line in offered.splitlines() if line.startswith("Version:"))
    target = cache_root() / "cluster" / f"etcd-{version}"
    with lock("etcd"):
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".etcd-") as scratch:
                place = Path(scratch)
                place.chmod(0o755)  # apt fetches as another user
                run(["apt-get", "download", "-qq", f"{ETCD_PACKAGE}={version}"], cwd=place, timeout_s=FETCH_TIMEOUT_S)
                (package,) = place.glob("*.deb")
                run(["dpkg-deb", "-x", package, place / "files"])
                (place / "bin").mkdir()
                (place / "files/usr/bin/etcd").rename(place / "bin/etcd")
                (place / "bin").rename(target)  # in one step, so a folder in the cache is a whole one
    return target


def build_all(specs: Collection[ClusterSpec]) -> Iterator[Path | str]:
    """Have everything that machines of *specs* need, and yield where it is; what is in the cache takes no time."""
    for version in sorted(
        {spec.kubernetes for spec in specs} | {one.kubernetes for spec in specs for one in spec.nodes}
    ):
        yield kubernetes(version)
    for version in sorted({one.containerd for spec in specs for one in spec.nodes}):
        yield containerd(version)
    yield cni_plugins()
    yield etcd()
    yield image("cluster")
    for name in HELMS:
        yield peer(name)


def named(folder: Path, program: str, name: str) -> Path:
    """Return a link called *name* to *program*, which goes by its name, in *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / name
    if not (link.is_symlink() and Path(os.readlink(link)) == Path(program)):
        link.unlink(missing_ok=True)
        link.symlink_to(program)
    return link
