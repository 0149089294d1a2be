"""Images of nodes: Debian's packages on a minimal root file system, by kind, kept in podman under a tag that names their content."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.nodes.packaging import rpm
from tests.support.peers import cache_root
from tests.support.processes import run

SOURCES = Path(__file__).resolve().parents[2] / "molecule" / "images"
SUITE = "bookworm"
REPOSITORY = "localhost/apparate-test"
BUILD_TIMEOUT_S = 1800.0
REGISTRY = "docker-registry"
_INIT = ("--change", 'CMD ["/lib/systemd/systemd"]', "--change", "STOPSIGNAL SIGRTMIN+3")


@dataclass(frozen=True, slots=True)
class Kind:
    """How one image is made: from a list of packages, or from another kind (its build argument in capitals)."""

    packages: str = ""
    parent: str = ""


KINDS = {
    "debian": Kind(packages="packages-apt.txt"),
    "ubuntu": Kind(parent="debian"),
    "cluster": Kind(parent="debian"),
    "centos": Kind(packages="packages-rpm.txt"),
    "tencentos": Kind(parent="centos"),
    "bare": Kind(parent="centos"),
}


def image(kind: str) -> str:
    """Return the name of the image of *kind*, built first if podman does not have it."""
    recipe = KINDS[kind]
    if recipe.parent:
        parent = image(recipe.parent)
        name = f"{REPOSITORY}/{kind}:{_key([SOURCES / kind], parent)}"
        with lock(kind):
            if not _exists(name):
                _build(kind, name, {recipe.parent.upper(): parent})
        return name
    base = _base(recipe.packages)
    name = f"{REPOSITORY}/{kind}:{_key([SOURCES / kind, SOURCES / 'base'], base)}"
    with lock(kind):
        if not _exists(name):
            _build(kind, name, {"BASE": base})
    return name


def _base(packages: str) -> str:
    """The root file system that holds *packages*, as an image."""
    listed = SOURCES / packages
    name = f"{REPOSITORY}/base-{listed.stem}:{_key([listed], SUITE)}"
    with lock(listed.stem):
        if not _exists(name):
            with tempfile.TemporaryDirectory(prefix="apparate-node-") as scratch:
                archive = Path(scratch) / "root.tar"
                names = ",".join(listed.read_text().split())
                command = [
                    "mmdebstrap",
                    "--quiet",
                    "--variant=minbase",
                    "--dpkgopt=force-unsafe-io",
                    f"--include={names}",
                ]
                run([*command, SUITE, archive], timeout_s=BUILD_TIMEOUT_S)
                run(["podman", "import", "--quiet", *_INIT, archive, name], timeout_s=BUILD_TIMEOUT_S)
    return name


def _build(kind: str, name: str, arguments: dict[str, str]) -> None:
    registry = shutil.which(REGISTRY)
    if registry is None:
        raise AssertionError(f"{REGISTRY} is not installed")
    with tempfile.TemporaryDirectory(prefix="apparate-node-") as scratch:
        context = Path(scratch) / "context"
        shutil.copytree(SOURCES, context, symlinks=True)
        (context / "programs").mkdir()
        shutil.copy2(registry, context / "programs")
        if kind == "centos":
            shutil.copy2(_release_package(Path(scratch)), context / "release.rpm")
        given = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        command = ["buildah", "bud", "--quiet", "--isolation", "chroot", "--pull-never", *given]
        run([*command, "--tag", name, "--file", context / kind / "Containerfile", context], timeout_s=BUILD_TIMEOUT_S)


def _release_package(scratch: Path) -> Path:
    """The package that says which release of CentOS this is, and that the node has what Debian's packages brought."""
    provides = (SOURCES / "centos" / "provides.txt").read_text().splitlines()
    return rpm(scratch, name="centos-release", version="8.5", files=None, provides=provides)


def _exists(name: str) -> bool:
    return name in run(["podman", "images", "--format", "{{.Repository}}:{{.Tag}}"]).split()


def _key(sources: Sequence[Path], *more: str) -> str:
    """A digest of what an image is made of."""
    hasher = hashlib.sha256("\n".join(more).encode())
    for source in sources:
        for path in [source] if source.is_file() else sorted(source.rglob("*")):
            if path.is_file() and not path.is_symlink():
                hasher.update(f"{path.relative_to(SOURCES)}\n".encode() + path.read_bytes())
    return hasher.hexdigest()[:16]


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """One builder at a time for *name*, over all processes of this machine."""
    folder = cache_root() / "nodes"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
