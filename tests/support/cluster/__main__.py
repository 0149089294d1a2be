"""Command line of the developer's cluster, for make."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.support.cluster import developer
from tests.support.cluster.layout import CLUSTERS
from tests.support.cluster.programs import build_all
from tests.support.services import REPOSITORY


def main() -> int:
    """Run one command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.cluster")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="every program and image, or find them in the cache")
    up = commands.add_parser("up", help="the developer's cluster, made anew")
    up.add_argument("--packages", type=Path, default=REPOSITORY / "dist")
    commands.add_parser("down", help="take the developer's cluster away")
    given = parser.parse_args()
    if given.command == "build":
        print(*build_all(CLUSTERS.values()), sep="\n")
    elif given.command == "up":
        developer.up(given.packages)
    else:
        developer.down()
    return 0


sys.exit(main())
