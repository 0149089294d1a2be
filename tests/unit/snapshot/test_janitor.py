from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from apparate.errors import ApparateError, FailedPrecondition, NotFound, Unavailable
from apparate.snapshot import janitor as janitor_module
from apparate.snapshot.janitor import Janitor


@pytest.fixture
def janitor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Janitor]:
    monkeypatch.setattr(janitor_module, "_RETRY_FIRST_S", 0.001)
    working = Janitor()
    working.start()
    yield working
    working.close()


def test_drain_waits_for_everything_due(janitor: Janitor) -> None:
    done: list[int] = []
    for number in range(20):
        janitor.submit(number, lambda n=number: done.append(n))  # type: ignore[misc]  # a default binds the loop variable
    assert janitor.drain(10)
    assert done == list(range(20))


def test_a_task_that_is_not_due_is_not_waited_for(janitor: Janitor) -> None:
    done = threading.Event()
    janitor.submit("later", done.set, delay_s=3600)
    assert janitor.drain(10)
    assert not done.is_set()


def test_submitting_again_replaces_what_waits(janitor: Janitor) -> None:
    calls: list[str] = []
    janitor.submit("key", lambda: calls.append("old"), delay_s=3600)
    janitor.submit("key", lambda: calls.append("new"))
    assert janitor.drain(10)
    assert calls == ["new"]


def test_a_cancelled_task_does_not_run(janitor: Janitor) -> None:
    ran = threading.Event()
    gate = threading.Event()
    janitor.submit("gate", lambda: gate.wait(10))
    janitor.submit("key", ran.set)
    janitor.cancel("key")
    gate.set()
    assert janitor.drain(10)
    assert not ran.is_set()


@pytest.mark.parametrize("error", [Unavailable("x"), FailedPrecondition("busy")])
def test_a_passing_failure_is_tried_again(janitor: Janitor, error: ApparateError) -> None:
    attempts: list[int] = []
    done = threading.Event()

    def work() -> None:
        attempts.append(1)
        if len(attempts) < 4:
            raise error
        done.set()

    janitor.submit("key", work)
    assert done.wait(10)


def test_drain_does_not_wait_for_retries(janitor: Janitor) -> None:
    def work() -> None:
        raise Unavailable("never")

    janitor.submit("key", work)
    assert janitor.drain(10)


@pytest.mark.parametrize("error", [NotFound("gone"), KeyError("bug")])
def test_other_failures_end_the_task_not_the_thread(janitor: Janitor, error: Exception) -> None:
    attempts: list[int] = []
    done = threading.Event()

    def work() -> None:
        attempts.append(1)
        raise error

    janitor.submit("key", work)
    janitor.submit("next", done.set)
    assert done.wait(10)
    assert janitor.drain(10)
    assert attempts == [1]


def test_close_leaves_what_waits() -> None:
    working = Janitor()
    ran = threading.Event()
    working.start()
    working.submit("key", ran.set, delay_s=3600)
    working.close()
    assert not ran.is_set()
