"""Turns: as many as allowed, nobody after a failure, nobody waits for the dead."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.kubernetes_fake import FakeKubernetes
from tests.unit.node.agent.helpers import settings_of

from apparate.kubernetes.errors import Denied
from apparate.node.agent import turns
from apparate.node.agent.turns import LEASE_S, PREFIX, Turn, Turns


class _Clock:
    """A clock that goes on when somebody waits; *meanwhile* happens then."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.now = 1000.0
        self.waits = 0
        self.meanwhile = meanwhile

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits += 1
        self.now += seconds
        assert self.waits < 200, "waits for ever"
        self.meanwhile()


def _turns(cluster: FakeKubernetes, node: str, clock: _Clock | None = None, **values: Any) -> Turns:
    clock = clock or _Clock()
    return Turns(cluster.client(node), settings_of(node, **values), wait=clock.wait, clock=clock)


def _lease(cluster: FakeKubernetes, number: int = 0) -> dict[str, Any]:
    return cluster.object("leases", f"{PREFIX}{number}", "apparate")


def test_turn_is_a_lease_of_the_node_and_free_afterwards(cluster: FakeKubernetes) -> None:
    with _turns(cluster, "node-a").acquire() as turn:
        assert turn.name == f"{PREFIX}0"
        assert _lease(cluster)["spec"]["holderIdentity"] == "node-a"
    assert not _lease(cluster)["spec"].get("holderIdentity")


def test_next_node_waits_until_the_turn_is_free(cluster: FakeKubernetes) -> None:
    first = _turns(cluster, "node-a").acquire()
    first.__enter__()
    clock = _Clock(lambda: first.__exit__(None, None, None) if clock.waits == 3 else None)
    told: list[str] = []
    with _turns(cluster, "node-b", clock).acquire(told.append):
        assert clock.waits == 3
    assert told == ["being prepared: node-a"]


def test_as_many_turns_as_allowed_are_held_at_once(cluster: FakeKubernetes) -> None:
    a = _turns(cluster, "node-a", max_unavailable=2).acquire()
    b = _turns(cluster, "node-b", max_unavailable=2).acquire()
    assert {a.name, b.name} == {f"{PREFIX}0", f"{PREFIX}1"}
    told: list[str] = []
    clock = _Clock(lambda: a.__enter__().__exit__(None, None, None))
    assert _turns(cluster, "node-c", clock, max_unavailable=2).acquire(told.append).name == a.name
    assert told == ["being prepared: node-a, node-b"]


def test_many_nodes_at_once_never_hold_more_turns_than_there_are(cluster: FakeKubernetes) -> None:
    lock, held, most = threading.Lock(), 0, 0
    together = threading.Event()

    def work(name: str) -> None:
        nonlocal held, most
        pause = threading.Event()
        own = Turns(cluster.client(name), settings_of(name, max_unavailable=2), wait=lambda _: pause.wait(0.005))
        with own.acquire():
            with lock:
                held += 1
                most = max(most, held)
                if held == 2:
                    together.set()
            assert together.wait(20)
            with lock:
                held -= 1

    threads = [threading.Thread(target=work, args=(f"node-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == 2
    assert held == 0


def test_failure_stops_every_other_node_though_turns_are_free(cluster: FakeKubernetes) -> None:
    with _turns(cluster, "node-a", max_unavailable=2).acquire() as turn:
        turn.fail("containerd is broken")
    clock = _Clock()
    told: list[str] = []
    with pytest.raises(AssertionError, match="for ever"):
        _turns(cluster, "node-b", clock, max_unavailable=2).acquire(told.append)
    assert told == ["the roll-out stands: node node-a failed: containerd is broken"]


def test_failed_node_tries_again_and_its_success_lets_the_others_go_on(cluster: FakeKubernetes) -> None:
    with _turns(cluster, "node-a").acquire() as turn:
        turn.fail("x")
    with _turns(cluster, "node-a").acquire():
        pass
    assert _turns(cluster, "node-b").acquire().name == f"{PREFIX}0"


def test_newer_revision_lets_another_node_try(cluster: FakeKubernetes) -> None:
    with _turns(cluster, "node-a", revision=3).acquire() as turn:
        turn.fail("x")
    _turns(cluster, "node-b", revision=4).acquire()
    assert _lease(cluster)["spec"]["holderIdentity"] == "node-b"
    assert not _lease(cluster)["metadata"]["annotations"]


def _leave_cluster(cluster: FakeKubernetes) -> None:
    cluster.remove("nodes", "node-a")


def _lose_label(cluster: FakeKubernetes) -> None:
    cluster.put("nodes", "node-a", {"metadata": {"labels": {}}})


@pytest.mark.parametrize("leave", [_leave_cluster, _lose_label])
def test_failed_node_that_was_given_up_stops_nobody(
    cluster: FakeKubernetes, leave: Callable[[FakeKubernetes], None]
) -> None:
    with _turns(cluster, "node-a").acquire() as turn:
        turn.fail("x")
    clock = _Clock(lambda: leave(cluster) if clock.waits == 1 else None)
    _turns(cluster, "node-b", clock).acquire()
    assert clock.now - 1000 >= LEASE_S
    assert _lease(cluster)["spec"]["holderIdentity"] == "node-b"


def test_turn_that_is_not_renewed_is_taken_over_by_our_own_clock(cluster: FakeKubernetes) -> None:
    _turns(cluster, "node-a").acquire()
    spec = {**_lease(cluster)["spec"], "renewTime": "2099-01-01T00:00:00.000000Z"}  # its clock is wrong
    cluster.put("leases", f"{PREFIX}0", {**_lease(cluster), "spec": spec}, "apparate")
    clock = _Clock()
    _turns(cluster, "node-b", clock).acquire()
    assert LEASE_S <= clock.now - 1000 <= LEASE_S + 60


@pytest.mark.parametrize(("turns_there", "longest_s"), [(1, 30.0), (100, 300.0)])
def test_more_turns_are_asked_for_less_often(cluster: FakeKubernetes, turns_there: int, longest_s: float) -> None:
    cluster.answer_all_with(503, "ServiceUnavailable")
    clock = _Clock(lambda: cluster.answer_normally() if clock.waits == 30 else None)
    _turns(cluster, "node-a", clock, max_unavailable=turns_there).acquire()
    assert 15 * longest_s < clock.now - 1000 < 30 * 1.25 * longest_s


def test_turn_is_renewed_while_it_is_held(cluster: FakeKubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "RENEW_S", 0.01)
    with _turns(cluster, "node-a").acquire():
        first = _lease(cluster)["spec"]["renewTime"]
        renewed = threading.Event()
        while _lease(cluster)["spec"]["renewTime"] == first:
            renewed.wait(0.01)
    assert _lease(cluster)["spec"]["renewTime"] > first


def test_lost_turn_is_not_given_back_for_its_new_holder(
    cluster: FakeKubernetes, capsys: pytest.CaptureFixture[str]
) -> None:
    held = _turns(cluster, "node-a").acquire().__enter__()
    lease = _lease(cluster)
    cluster.put("leases", f"{PREFIX}0", {**lease, "spec": {**lease["spec"], "holderIdentity": "node-b"}}, "apparate")
    held.__exit__(None, None, None)
    assert _lease(cluster)["spec"]["holderIdentity"] == "node-b"
    assert "it is now node-b's" in capsys.readouterr().err


def test_server_that_is_away_is_waited_for(cluster: FakeKubernetes) -> None:
    port = cluster.port
    own = _turns(cluster, "node-a", clock := _Clock())
    cluster.stop()
    clock.meanwhile = lambda: cluster.restart(port) if clock.waits == 2 else None
    assert isinstance(own.acquire(), Turn)
    assert clock.waits == 2


def test_missing_rights_are_an_error_after_a_minute(cluster: FakeKubernetes) -> None:
    clock = _Clock()
    client = cluster.client("powerless", lambda *_: False)
    own = Turns(client, settings_of(), wait=clock.wait, clock=clock)
    with pytest.raises(Denied, match="403"):
        own.acquire()
    assert clock.now - 1000 > turns.DENIED_S


def test_node_that_was_mended_by_hand_clears_its_turn(cluster: FakeKubernetes) -> None:
    with _turns(cluster, "node-a").acquire() as turn:
        turn.fail("x")
    assert _lease(cluster)["metadata"]["annotations"]["apparate.cloud.tencent.com/error"] == "x"
    _turns(cluster, "node-a").clear_mine()
    assert not _lease(cluster)["metadata"]["annotations"]
    assert not _lease(cluster)["spec"].get("holderIdentity")


def test_leases_go_with_the_daemonset(cluster: FakeKubernetes) -> None:
    uid = cluster.put("daemonsets", "apparate", {}, "apparate")["metadata"]["uid"]
    _turns(cluster, "node-a").acquire()
    (owner,) = _lease(cluster)["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("DaemonSet", "apparate", uid)
