"""Command line of the test nodes, for make and for molecule's playbooks."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.support.nodes import proofs
from tests.support.nodes.images import KINDS, image
from tests.support.nodes.repositories import repositories
from tests.support.nodes.scenarios import SCENARIOS, run_scenarios, tools


def main() -> int:
    """Run one command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.nodes")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="images of nodes and package repositories")
    commands.add_parser("tools", help="the folder with ansible, its lint and molecule, installed if need be")
    test = commands.add_parser("test", help="molecule scenarios, side by side")
    test.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []])
    test.add_argument("--keep", action="store_true", help="leave the nodes for a look inside")
    prove = commands.add_parser("prove", help="a proof about a running node")
    prove.add_argument("proof", choices=sorted(proofs.PROOFS))
    prove.add_argument("node")
    given = parser.parse_args()
    if given.command == "build":
        print(repositories(), *(image(kind) for kind in KINDS), sep="\n")
        return 0
    if given.command == "tools":
        print(tools())
        return 0
    if given.command == "test":
        return run_scenarios(given.scenarios or list(SCENARIOS), keep=given.keep)
    proofs.PROOFS[given.proof](given.node, Path(os.environ["NODE_WORK"]))
    return 0


sys.exit(main())
