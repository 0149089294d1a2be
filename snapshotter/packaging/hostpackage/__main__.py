"""`python -m hostpackage build|lock`: what `make package` runs."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from hostpackage.failure import BuildError, run
from hostpackage.inputs import DEBS_LOCK, SOURCES, lock_anew, read_lock
from hostpackage.tree import Place, build_tree


def _project_version() -> str:
    version: str = tomllib.loads((SOURCES / "pyproject.toml").read_text())["project"]["version"]
    return version


def _epoch() -> int:
    """The time of the sources, so that the same sources give the same bytes."""
    return int(run(["git", "log", "-1", "--format=%ct"], cwd=SOURCES))


def _build(options: argparse.Namespace) -> None:
    begun = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - begun:6.1f} s  {what}", flush=True)

    options.tree.parent.mkdir(parents=True, exist_ok=True)
    if options.tree.exists():
        shutil.rmtree(options.tree)
    with tempfile.TemporaryDirectory(dir=options.tree.parent, prefix=".scratch-") as scratch:
        build_tree(Place(options.tree / options.version, options.version), Path(scratch), options.epoch, say)


def _lock(_options: argparse.Namespace) -> None:
    DEBS_LOCK.write_text(lock_anew(read_lock(DEBS_LOCK.read_text())))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    build = commands.add_parser("build", help="build the tree and the packages")
    build.add_argument("--version", default=_project_version())
    build.add_argument("--epoch", type=int, default=_epoch(), help="time of every file, in seconds since 1970")
    build.add_argument("--tree", type=Path, default=SOURCES / "build" / "package" / "root")
    build.set_defaults(action=_build)
    lock = commands.add_parser("lock", help="pin the Debian packages that are offered now")
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
