"""Fixtures for tests that run real daemons. Each folder they hand out is proved clean afterwards: no mount, no process."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from tests.support.distribution import Registry
from tests.support.leftovers import clean_folder

# The same examples every time: the gate says what the change did, not what luck did. `make test-matrix` searches at random.
# A busy machine makes generating slow, which says nothing about the code.
hypothesis.settings.register_profile(
    "gate", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("gate")


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failed one: what it would have shown is not known."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"nothing may skip in CI: {item.nodeid}: {report.longrepr}"
    return report
