"""A fuzzer looks for inputs that break a parser: an error that is not ours, more memory or time than an input may take.

What it finds belongs into tests/corpus/bad/make.py, with the mending.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.fuzz.targets import TARGETS
from tests.support.services import REPOSITORY

SECONDS = 3
END_S = 60.0  # the start, and the one input that may be under way
ANYWHERE = importlib.util.find_spec("atheris") is None and not os.environ.get("CI")

pytestmark = pytest.mark.skipif(ANYWHERE, reason="atheris is not installed: there is no wheel for this machine")


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_our_errors_in_bounded_memory_and_time(name: str, tmp_path: Path, chance: random.Random) -> None:
    found = tmp_path / "found"
    found.mkdir()
    command: list[str | Path] = [
        sys.executable, "-m", "tests.support.fuzz", name, tmp_path / "corpus",
        f"-max_total_time={SECONDS}", f"-seed={chance.randrange(1, 1 << 31)}", f"-artifact_prefix={found}/",
    ]  # fmt: skip
    paths = os.pathsep.join((str(REPOSITORY / "snapshotter"), str(REPOSITORY)))
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS + END_S,
        check=False,
    )
    inputs = {path.name: path.read_bytes() for path in found.iterdir()}
    assert (done.returncode, inputs) == (0, {}), done.stderr[-4000:]
    tried = [line for line in done.stderr.splitlines() if line.startswith("Done ")]
    assert tried, done.stderr[-4000:]
