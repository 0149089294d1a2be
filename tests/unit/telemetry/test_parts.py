"""What cannot be opened yet is opened later."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from tests.support.processes import wait_until

from apparate.errors import Unavailable
from apparate.telemetry import metrics, parts
from apparate.telemetry.health import Health


class Door:
    """Cannot be opened while it is locked."""

    def __init__(self) -> None:
        self.locked = True
        self.attempts = 0
        self.opened = threading.Event()
        self.closed = threading.Event()

    def open(self) -> AbstractContextManager[None]:
        self.attempts += 1
        if self.attempts % 2 == 0 and self.locked:
            raise OSError("it is locked")
        if self.locked:
            raise Unavailable("it is locked")
        return self._held()

    @contextmanager
    def _held(self) -> Iterator[None]:
        self.opened.set()
        try:
            yield
        finally:
            self.closed.set()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "RETRY_FIRST_S", 0.01)


def failures() -> float:
    return metrics.PART_FAILURES.labels("door")._value.get()  # type: ignore[no-any-return]  # no type information


def test_a_part_that_cannot_be_opened_is_tried_until_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    door, health, before = Door(), Health(), failures()
    with parts.open_parts({"door": door.open}, health, insist=True):
        wait_until(lambda: door.attempts > 2, "it is tried again")
        assert health.failures() == {"door": "it is locked"}
        door.locked = False
        wait_until(door.opened.is_set, "it is open")
        wait_until(lambda: health.failures() == {}, "all is well")
        assert failures() - before == door.attempts - 1
        assert not door.closed.is_set()
    assert door.closed.is_set()


def test_nobody_waits_for_a_part_that_is_still_closed_at_the_end() -> None:
    door = Door()
    with parts.open_parts({"door": door.open}, Health(), insist=True):
        pass
    assert not door.opened.is_set()


def test_without_insisting_the_first_failure_is_the_end_of_it() -> None:
    door, first = Door(), Door()
    first.locked = False
    with (
        pytest.raises(Unavailable, match="locked"),
        parts.open_parts({"first": first.open, "door": door.open}, Health(), insist=False),
    ):
        pytest.fail("it is entered")
    assert first.closed.is_set()


def test_pauses_grow_to_a_limit() -> None:
    assert parts.next_pause_s(1.0) == 2.0
    assert parts.next_pause_s(parts.RETRY_MOST_S) == parts.RETRY_MOST_S
