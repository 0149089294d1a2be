"""Long runs search at random. `make test-matrix` prints the seed; `SEED=N make test-matrix` repeats a run."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Sequence
from pathlib import Path

import pytest

SEED = int(os.environ.get("SEED") or secrets.randbits(32))


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark everything here as long; the hook is given the tests of other folders too."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.matrix)


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Chance of the test's own: the same for the same seed, whichever tests run besides."""
    print(f"SEED={SEED}")  # pytest shows it with a failure
    return random.Random(f"{SEED} {request.node.nodeid}")
