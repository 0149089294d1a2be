"""Circuit breakers."""

import pytest

from apparate.errors import Unavailable
from apparate.registry import breakers
from apparate.registry.breakers import Breakers
from apparate.registry.endpoint import Endpoint

A, B = Endpoint("https", "a.test"), Endpoint("https", "b.test")
ERROR = Unavailable("gone")


class Clock:
    """A time that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def made(clock: Clock) -> Breakers:
    return Breakers(clock)


def opened(made: Breakers, endpoint: Endpoint) -> None:
    for _ in range(breakers.FAILURES_TO_OPEN):
        made.failed(endpoint, ERROR)


def test_few_failures_change_nothing(made: Breakers) -> None:
    for _ in range(breakers.FAILURES_TO_OPEN - 1):
        made.failed(A, ERROR)
    assert made.order([A, B]) == [A, B]
    assert not made.is_open(A)


def test_endpoint_that_keeps_failing_goes_last_but_stays(made: Breakers) -> None:
    opened(made, A)
    assert made.is_open(A)
    assert made.order([A, B]) == [B, A]
    assert made.order([A]) == [A]


def test_one_caller_probes_when_the_time_has_passed(made: Breakers, clock: Clock) -> None:
    opened(made, A)
    clock.now += breakers.OPEN_S
    assert made.order([A, B]) == [A, B]
    assert made.order([A, B]) == [B, A], "the second caller does not probe too"
    made.answered(A)
    assert made.order([A, B]) == [A, B]
    assert not made.is_open(A)


def test_probe_that_fails_doubles_the_time_up_to_a_limit(made: Breakers, clock: Clock) -> None:
    opened(made, A)
    waited = breakers.OPEN_S
    for _ in range(8):
        clock.now += waited - 0.001
        assert made.order([A, B]) == [B, A]
        clock.now += 0.001
        assert made.order([A, B]) == [A, B]
        made.failed(A, ERROR)
        waited = min(waited * 2, breakers.OPEN_S_MAX)


def test_lost_probe_is_followed_by_another(made: Breakers, clock: Clock) -> None:
    opened(made, A)
    clock.now += breakers.OPEN_S
    made.order([A, B])
    clock.now += breakers.PROBE_S
    assert made.order([A, B]) == [A, B]


def test_wrong_bytes_open_at_once(made: Breakers, clock: Clock) -> None:
    made.distrusted(A, "digest differs")
    assert made.order([A, B]) == [B, A]
    clock.now += breakers.DISTRUST_S
    assert made.order([A, B]) == [A, B]


def test_silence_is_kept_until_its_end(made: Breakers, clock: Clock) -> None:
    made.silenced(A, 5.0)
    made.silenced(A, 2.0)
    assert made.silence_s(A) == pytest.approx(5.0)
    clock.now += 5.0
    assert made.silence_s(A) == 0.0
    assert made.silence_s(B) == 0.0
    assert not made.is_open(A)


def test_right_answers_do_not_close_the_breaker_of_an_endpoint_that_served_wrong_bytes(
    made: Breakers, clock: Clock
) -> None:
    made.distrusted(A, "wrong")
    made.answered(A)
    assert made.order([A, B]) == [B, A]
    clock.now += breakers.DISTRUST_S
    assert made.order([A, B]) == [A, B]
    made.answered(A)
    assert not made.is_open(A)


def test_distrust_is_said_once(made: Breakers, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        made.distrusted(A, "wrong")
    assert capsys.readouterr().err.count(breakers.EVENT_OPENED) == 1
