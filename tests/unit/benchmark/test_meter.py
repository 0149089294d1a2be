"""How many bytes a start has cost: those that had come when its line was written, not when it was found."""

from typing import cast

import pytest
from tests.benchmark.measure import Meter
from tests.support.link import Link


class StillLink:
    """A link on which nothing moves."""

    def received_bytes(self) -> int:
        return 0


@pytest.fixture
def meter() -> Meter:
    made = Meter(cast(Link, StillLink()))
    made.samples = [(0.0, 0), (1.0, 100), (2.0, 100), (3.0, 300)]
    return made


@pytest.mark.parametrize(("seconds", "count"), [(0.0, 0), (0.5, 50), (1.0, 100), (1.5, 100), (2.5, 200), (3.0, 300)])
def test_between_samples_bytes_grow_evenly(meter: Meter, seconds: float, count: int) -> None:
    assert meter.at(seconds) == count


def test_after_the_last_sample_nothing_is_made_up(meter: Meter) -> None:
    assert meter.at(99.0) == 300
