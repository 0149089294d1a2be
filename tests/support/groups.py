"""Run groups of tests and say by name what this machine cannot run.

`make test` on a laptop without root or FUSE still runs what it can; in CI (`CI=true`) a group that would be skipped is an error.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

from tests.support.scope import MATRIX

NEEDS_NOTHING = ("tests/unit", "tests/chart")

SIDE_BY_SIDE = ["-n", "2", "--dist", "loadscope"]
"""Long runs mostly wait: two modules at a time, each with the nodes and images that its tests share."""


def cannot_run(group: str) -> str:
    """Return why *group* cannot run on this machine, or nothing."""
    if group in NEEDS_NOTHING:
        return ""
    if os.geteuid() != 0:
        return "needs root"
    if not Path("/dev/fuse").exists():
        return "needs /dev/fuse (load the module fuse)"
    return ""


def main(groups: list[str]) -> int:
    """Run *groups* in one pytest session and return its exit code.

    Long runs search at random; all their processes take chance from one seed, which is printed and may be given as `SEED`.
    """
    reasons = {group: cannot_run(group) for group in groups}
    skipped = {group: reason for group, reason in reasons.items() if reason}
    for group, reason in skipped.items():
        print(f"group {group} skipped: {reason}", file=sys.stderr)
    if skipped and os.environ.get("CI"):
        return 1
    runnable = [group for group in groups if group not in skipped]
    selection, env = ["-m", "not matrix"], dict(os.environ)
    if MATRIX:
        selection = ["-m", "matrix", *SIDE_BY_SIDE]
        env["SEED"] = os.environ.get("SEED") or str(secrets.randbits(32))
        print(f"seed: {env['SEED']} (SEED={env['SEED']} make test-matrix repeats this run)", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", *selection, *runnable]
    return subprocess.run(command, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
