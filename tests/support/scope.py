"""How much is run: `make test` the short form of everything, `make test-matrix` what is marked `matrix`, wherever it stands."""

from __future__ import annotations

import os

import pytest

MATRIX = os.environ.get("MATRIX") == "1"
matrix_only = pytest.mark.matrix
