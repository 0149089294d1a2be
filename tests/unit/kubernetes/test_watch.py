"""Following a collection through everything that a network and a server can do to a watch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.kubernetes_fake import FakeKubernetes
from tests.support.processes import wait_until

from apparate.kubernetes.client import Client, collection
from apparate.kubernetes.errors import Denied
from apparate.kubernetes.watch import Follower, Objects

SECRETS = collection("v1", "secrets", "apparate")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeKubernetes]:
    with FakeKubernetes(tmp_path) as fake:
        yield fake


class _Listener:
    def __init__(self) -> None:
        self.told: list[Objects] = []

    def __call__(self, objects: Objects) -> None:
        self.told.append(objects)

    def names(self) -> set[str]:
        return {name for _, name in self.told[-1]} if self.told else {"nothing told yet"}

    def wait_for(self, *names: str) -> None:
        wait_until(lambda: self.names() == set(names), f"{names} to be told, not {self.told[-1:]}", 10)


@contextmanager
def _following(client: Client) -> Iterator[tuple[Follower, _Listener]]:
    listener = _Listener()
    follower = Follower(client, SECRETS, {}, listener, pause_first_s=0.02)
    follower.start()
    try:
        yield follower, listener
    finally:
        follower.stop()


def test_everything_that_is_there_is_told_first(cluster: FakeKubernetes) -> None:
    cluster.put("secrets", "a", {}, "apparate")
    with _following(cluster.client()) as (follower, listener):
        listener.wait_for("a")
        assert follower.problem is None


def test_additions_changes_and_removals_are_told(cluster: FakeKubernetes) -> None:
    with _following(cluster.client()) as (_, listener):
        listener.wait_for()
        cluster.put("secrets", "a", {"type": "x"}, "apparate")
        listener.wait_for("a")
        cluster.put("secrets", "a", {"type": "y"}, "apparate")
        wait_until(lambda: listener.told[-1][("apparate", "a")]["type"] == "y", "the change to be told", 10)
        cluster.remove("secrets", "a", "apparate")
        listener.wait_for()


def test_forgotten_version_is_listed_anew(cluster: FakeKubernetes) -> None:
    with _following(cluster.client()) as (follower, listener):
        listener.wait_for()
        cluster.forget_history()
        cluster.put("secrets", "a", {}, "apparate")
        cluster.break_watches()
        listener.wait_for("a")
        assert follower.problem is None


def test_removal_that_nobody_watched_is_told_after_the_next_list(cluster: FakeKubernetes) -> None:
    cluster.put("secrets", "a", {}, "apparate")
    port = cluster.port
    with _following(cluster.client()) as (follower, listener):
        listener.wait_for("a")
        cluster.stop()
        wait_until(lambda: follower.problem is not None, "the loss to be noticed", 10)
        assert listener.names() == {"a"}, "what is known stays while nobody can be asked"
        cluster.remove("secrets", "a", "apparate")
        cluster.forget_history()
        cluster.restart(port)
        listener.wait_for()
        assert follower.problem is None


def test_broken_watch_goes_on_where_it_was_without_a_new_list(cluster: FakeKubernetes) -> None:
    with _following(cluster.client()) as (_, listener):
        listener.wait_for()
        cluster.break_watches()
        cluster.put("secrets", "a", {}, "apparate")
        listener.wait_for("a")
    lists = [request for request in cluster.requests if "watch=" not in request]
    assert len(lists) == 1


def test_rights_that_come_late_are_found(cluster: FakeKubernetes) -> None:
    client = cluster.client("agent", lambda *_: False)
    with _following(client) as (follower, listener):
        wait_until(lambda: isinstance(follower.problem, Denied), "the refusal to be noticed", 10)
        assert listener.told == []
        cluster.account("agent")
        listener.wait_for()


def test_loss_is_logged_once_and_so_is_the_return(cluster: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    from apparate.telemetry import logging

    logging.configure("info", "json")
    with _following(cluster.client()) as (follower, listener):
        listener.wait_for()
        cluster.answer_all_with(503, "ServiceUnavailable")
        cluster.break_watches()
        wait_until(lambda: follower.problem is not None, "the loss to be noticed", 10)
        before = len(cluster.requests)
        wait_until(lambda: len(cluster.requests) > before + 2, "further attempts", 10)
        cluster.answer_normally()
        wait_until(lambda: follower.problem is None, "the return", 10)
    said = capsys.readouterr().err
    assert said.count("API server cannot be watched") == said.count("API server is watched again") == 1


def test_server_that_is_overloaded_is_given_the_time_it_asks_for(cluster: FakeKubernetes) -> None:
    cluster.answer_all_with(429, "TooManyRequests", {"Retry-After": "3600"})
    with _following(cluster.client()) as (follower, _):
        wait_until(lambda: follower.problem is not None, "the refusal", 10)
        seen = len(cluster.requests)
        with pytest.raises(TimeoutError):
            wait_until(lambda: len(cluster.requests) > seen, "another request", 0.5)


def test_nothing_is_told_once_stop_has_returned(cluster: FakeKubernetes) -> None:
    entered, go_on, told = threading.Event(), threading.Event(), []

    def slow(objects: Objects) -> None:
        entered.set()
        assert go_on.wait(10)
        told.append(objects)

    follower = Follower(cluster.client(), SECRETS, {}, slow, pause_first_s=0.02)
    follower.start()
    assert entered.wait(10)
    stopper = threading.Thread(target=follower.stop)
    stopper.start()
    stopper.join(0.1)
    assert stopper.is_alive(), "stop waits for what is being told"
    go_on.set()
    stopper.join(10)
    assert len(told) == 1
    cluster.put("secrets", "a", {}, "apparate")
    cluster.break_watches()
    wait_until(lambda: not follower._thread.is_alive(), "the thread to end", 10)
    assert len(told) == 1
    assert not follower.is_dead


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is what the test is about
def test_follower_whose_listener_fails_is_dead(cluster: FakeKubernetes) -> None:
    def broken(_objects: Objects) -> None:
        raise ValueError("a mistake")

    follower = Follower(cluster.client(), SECRETS, {}, broken, pause_first_s=0.02)
    assert not follower.is_dead
    follower.start()
    wait_until(lambda: follower.is_dead, "the death to be noticed", 10)
    follower.stop()
