"""Events are few, whatever happens, and over restarts too."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.kubernetes_fake import FakeKubernetes

from apparate.node.agent import events
from apparate.node.agent.events import HOUR_MAX, SAME_REASON_S, Events, Limiter


class _Wall:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_same_reason_is_sent_once_in_five_minutes_and_then_says_how_many_more(
    cluster: FakeKubernetes, tmp_path: Path
) -> None:
    wall = _Wall()
    news = Events(cluster.client(), "node-a", Limiter(tmp_path / "events.json", wall))
    for _ in range(4):
        news.emit(events.IMAGE_FALLBACK, "an image")
    assert len(cluster.all("events")) == 1
    wall.now += SAME_REASON_S
    news.emit(events.IMAGE_FALLBACK, "an image")
    last = cluster.all("events")[-1]
    assert last["message"] == "an image (3 more since the last one)"
    assert last["count"] == 4


def test_event_is_about_the_node_as_kubelet_writes_it(cluster: FakeKubernetes) -> None:
    Events(cluster.client(), "node-a", Limiter(None)).emit(events.PREPARE_FAILED, "m")
    (event,) = cluster.all("events")
    assert event["involvedObject"] == {"kind": "Node", "apiVersion": "v1", "name": "node-a", "uid": "node-a"}
    assert (event["type"], event["metadata"]["namespace"]) == ("Warning", "default")


def test_hour_has_a_limit_over_all_reasons_and_over_restarts(tmp_path: Path) -> None:
    wall = _Wall()
    admitted = 0
    for number in range(HOUR_MAX + 10):
        limiter = Limiter(tmp_path / "events.json", wall)  # a pod that is started again and again
        admitted += limiter.admit(f"reason-{number}") is not None
    assert admitted == HOUR_MAX
    wall.now += 3601
    assert Limiter(tmp_path / "events.json", wall).admit("reason-0") == 0


def test_history_that_cannot_be_read_or_written_stops_no_event(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    path.write_text("{broken")
    assert Limiter(path).admit("x") == 0
    blocked = Limiter(tmp_path / "events.json/below")
    assert blocked.admit("x") == 0
    assert blocked.admit("x") is None


def test_server_that_is_away_is_only_logged(cluster: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    news = Events(cluster.client(), "node-a", Limiter(None))
    cluster.stop()
    news.emit(events.PREPARED, "m")
    assert "event cannot be sent" in capsys.readouterr().err


def test_long_message_is_cut_to_what_a_server_takes(cluster: FakeKubernetes) -> None:
    Events(cluster.client(), "node-a", Limiter(None)).emit(events.PREPARED, "m" * 5000)
    assert len(cluster.all("events")[0]["message"]) == events.MESSAGE_CHARS_MAX
