"""The one error of the build, and the one way to run a program."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

STEP_TIMEOUT_S: Final = 1800.0
"""The longest step compresses the packages on a slow machine."""


class BuildError(Exception):
    """The package cannot be built; the message says why, and what to do where there is something."""


def run(command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run *command* with *env* added to the environment and return what it printed.

    Raises:
        BuildError: it is not installed or failed.
    """
    try:
        done = subprocess.run(
            list(command),
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C", "TZ": "UTC", **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=STEP_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is not installed") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
