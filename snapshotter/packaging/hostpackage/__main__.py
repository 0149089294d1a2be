"""`python -m hostpackage build|lock`: what `make package` runs."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from hostpackage.archives import write_sums, write_tar_zst
from hostpackage.failure import BuildError, run
from hostpackage.image import write_image
from hostpackage.inputs import DEBS_LOCK, PACKAGING, SOURCES, cache_root, lock_anew, read_lock
from hostpackage.systempackages import write_deb, write_rpm
from hostpackage.tree import Place, build_tree

_DISTRIBUTED: Final = SOURCES / "dist"
_BUILT_FROM: Final = (
    "snapshotter/apparate",
    "snapshotter/packaging",
    "snapshotter/docs",
    "uv.lock",
    "pyproject.toml",
    "LICENSE",
)
_PROGRAMS: Final = ("gcc", "strip", "patchelf", "rpmbuild")
_PACKERS: Final = 2
_KEPT_MAX: Final = 4
"""Finished builds in the cache; the oldest go."""


def _project_version() -> str:
    version: str = tomllib.loads((SOURCES / "pyproject.toml").read_text())["project"]["version"]
    return version


def _epoch() -> int:
    """The time of what the package is made from, so that the same sources give the same bytes."""
    return int(run(["git", "log", "-1", "--format=%ct", "--", *_BUILT_FROM], cwd=SOURCES))


def _key(options: argparse.Namespace) -> str:
    """Return a digest of everything that decides about the result."""
    hasher = hashlib.sha256(f"{options.version}\n{options.epoch}\n".encode())
    for program in _PROGRAMS:
        hasher.update(run([program, "--version"]).encode())
    for name in _BUILT_FROM:
        top = SOURCES / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                content = path.read_bytes()
                hasher.update(f"{path.relative_to(SOURCES)} {len(content)}\n".encode() + content)
    return hasher.hexdigest()[:16]


def _build(options: argparse.Namespace) -> None:
    begun = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - begun:6.1f} s  {what}", flush=True)

    kept = cache_root() / "built"
    kept.mkdir(parents=True, exist_ok=True)
    built = kept / _key(options)
    if options.fresh or not built.is_dir():
        with tempfile.TemporaryDirectory(dir=kept, prefix=".new-") as scratch:
            finished = _make(options, Path(scratch), say)
            if built.is_dir():
                shutil.rmtree(built)
            finished.rename(built)
        _forget_old(kept)
    options.out.mkdir(parents=True, exist_ok=True)
    for path in sorted(built.iterdir()):
        shutil.copy(path, options.out / path.name)
        say(f"{path.stat().st_size / 1e6:7.1f} MB  {options.out / path.name}")


def _make(options: argparse.Namespace, scratch: Path, say: Callable[[str], None]) -> Path:
    out = scratch / "out"
    out.mkdir()
    tree = scratch / "tree" / options.version
    build_tree(Place(tree, options.version), scratch / "unpacked", options.epoch, say)
    say("pack")
    sbom = Path(shutil.copy(tree / "share" / "sbom.cdx.json", out / f"apparate-{options.version}.cdx.json"))
    given = (tree, options.version, options.epoch)
    with ThreadPoolExecutor(_PACKERS) as packers:  # they compress, in other processes or without the interpreter's lock
        writing = [
            packers.submit(write_deb, *given, scratch, out),
            packers.submit(write_rpm, *given, scratch, out),
            packers.submit(write_tar_zst, *given, out),
            packers.submit(write_image, *given, out),
        ]
    write_sums([sbom, *(written.result() for written in writing)], out)
    return out


def _forget_old(kept: Path) -> None:
    finished = sorted(kept.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)
    for path in finished[:-_KEPT_MAX]:
        shutil.rmtree(path)


def _lock(_options: argparse.Namespace) -> None:
    DEBS_LOCK.write_text(lock_anew(read_lock(DEBS_LOCK.read_text())))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    build = commands.add_parser("build", help="build the packages, or take them from the cache")
    build.add_argument("--version", default=_project_version(), help="default: that of pyproject.toml")
    build.add_argument("--epoch", type=int, default=_epoch(), help="time of every file, in seconds since 1970")
    build.add_argument("--out", type=Path, default=_DISTRIBUTED)
    build.add_argument("--fresh", action="store_true", help="build even if the cache has it")
    build.set_defaults(action=_build)
    lock = commands.add_parser(
        "lock", help=f"pin the Debian packages that are offered now in {PACKAGING.name}/debs.lock"
    )
    lock.set_defaults(action=_lock)
    return parser


def main() -> int:
    options = _parser().parse_args()
    try:
        options.action(options)
    except BuildError as error:
        print(f"hostpackage: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
