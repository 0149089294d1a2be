"""Fixtures for tests that run real daemons. Each folder they hand out is proved clean afterwards: no mount, no process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.distribution import Registry
from tests.support.leftovers import clean_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path for one test with daemons."""
    with clean_folder("test") as made:
        yield made


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    """A registry on loopback for one module; every test uses repositories of its own."""
    with clean_folder("registry") as made, Registry(made) as server:
        yield server
