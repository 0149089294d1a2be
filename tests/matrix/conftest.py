"""Long runs search at random. The seed is printed; `SEED=N make test-matrix` repeats a run."""

from __future__ import annotations

import os
import random
import secrets

import pytest

SEED = int(os.environ.get("SEED") or secrets.randbits(32))


def pytest_report_header() -> str:
    return f"seed: {SEED} (SEED={SEED} repeats this run)"


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Chance of the test's own: the same for the same seed, whichever tests run besides."""
    print(f"SEED={SEED}")  # pytest shows it with a failure
    return random.Random(f"{SEED} {request.node.nodeid}")
