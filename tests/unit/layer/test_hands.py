"""Work that is taken over at once or refused, and what becomes of it."""

from __future__ import annotations

import threading

import pytest

from apparate.layer.hands import LENT_WORK_FAILED, Hands

TIMEOUT_S = 10.0


def test_no_more_is_taken_than_there_are_threads() -> None:
    hands, go, begun = Hands("test", 2), threading.Event(), threading.Barrier(3)

    def work() -> None:
        begun.wait(TIMEOUT_S)
        go.wait(TIMEOUT_S)

    assert hands.lend(work)
    assert hands.lend(work)
    begun.wait(TIMEOUT_S)
    assert not hands.lend(work)
    go.set()
    hands.close()


def test_a_thread_that_has_finished_is_used_again() -> None:
    hands, names = Hands("test", 1), []
    for _ in range(3):
        done = threading.Event()

        def work(done: threading.Event = done) -> None:
            names.append(threading.current_thread().name)
            done.set()

        while not hands.lend(work):  # the one thread has yet to note that it is free
            pass
        assert done.wait(TIMEOUT_S)
    hands.close()
    assert names == ["test-0"] * 3


def test_closing_finishes_what_was_taken_and_takes_nothing_more() -> None:
    hands, done = Hands("test", 2), []
    begun, go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(TIMEOUT_S)
        done.append(True)

    assert hands.lend(work)
    assert begun.wait(TIMEOUT_S)
    closing = threading.Thread(target=hands.close)
    closing.start()
    go.set()
    closing.join(TIMEOUT_S)
    assert done == [True]
    assert not hands.lend(work)
    hands.close()


def test_a_defect_in_the_work_costs_no_thread(capsys: pytest.CaptureFixture[str]) -> None:
    hands, done = Hands("test", 1), threading.Event()
    assert hands.lend(lambda: [][0])
    while not hands.lend(done.set):
        pass
    assert done.wait(TIMEOUT_S)
    hands.close()
    assert LENT_WORK_FAILED in capsys.readouterr().err
