"""What every unit test starts from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import pytest

from apparate.telemetry import logging


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """What a test configures, as every command does, is not what the next one logs with."""
    before = asdict(logging._output)
    yield
    for name, value in before.items():
        setattr(logging._output, name, value)
