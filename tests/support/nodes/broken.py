"""Packages that are not as they should be, made from one that is."""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path

from tests.support.nodes.packaging import PACK_TIMEOUT_S
from tests.support.processes import run

CONTENT = "opt/apparate/dist"
LOADER = "lib/python3.11/site-packages/apparate/cli"


def truncated(deb: Path, target: Path) -> None:
    """Write the first half of *deb*, as a transfer that was cut off leaves it."""
    whole = deb.read_bytes()
    target.write_bytes(whole[: len(whole) // 2])


def not_starting(deb: Path, target: Path) -> None:
    """Write a package like *deb*, a little newer, whose program answers and whose loader does not start."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".broken-") as scratch:
        tree = Path(scratch) / "tree"
        run(["dpkg-deb", "-R", deb, tree], timeout_s=PACK_TIMEOUT_S)
        dist, control = tree / CONTENT, tree / "DEBIAN"
        (dist / LOADER / "loader.py").write_text('raise SystemExit("this version does not start")\n')
        (dist / LOADER / "__pycache__" / "loader.cpython-311.pyc").unlink()
        (dist / "BUILD-ID").write_text(f"{hashlib.sha256(b'broken').hexdigest()}\n")
        described = re.sub(r"(?m)^(Version: .*)$", r"\1.1", (control / "control").read_text())
        (control / "control").write_text(described)
        (control / "md5sums").unlink(missing_ok=True)
        options = ["--root-owner-group", "-Zgzip", "-z1"]
        run(["dpkg-deb", *options, "--build", tree, target], timeout_s=PACK_TIMEOUT_S)
