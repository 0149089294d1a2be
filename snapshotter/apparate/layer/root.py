"""The directory that a layer store lives in, for one process at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from apparate.errors import FailedPrecondition, Unavailable

LAYERS_NAME: Final = "layers"
"""Directory below the root that has one directory for each layer."""


def lock_root(root: Path, layers: Path) -> int:
    """Make the root and return the descriptor that keeps other processes out of it.

    Raises:
        FailedPrecondition: another process has it.
        Unavailable: it cannot be made.
    """
    try:
        layers.mkdir(mode=0o700, parents=True, exist_ok=True)
        instance = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(f"root of the layer store {root}: {error.strerror}") from error
    try:
        fcntl.flock(instance, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(instance)
        raise FailedPrecondition(f"another loader uses {root}; stop it or give this one another root") from error
    return instance
