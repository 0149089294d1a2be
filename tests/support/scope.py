"""How much is run: `make test` the short form of everything, `make test-matrix` the long one."""

from __future__ import annotations

import os

import pytest

MATRIX = os.environ.get("MATRIX") == "1"
matrix_only = pytest.mark.matrix


def times(short: int, full: int) -> int:
    """How often something is repeated: *short* in `make test`, *full* in `make test-matrix`."""
    return full if MATRIX else short
