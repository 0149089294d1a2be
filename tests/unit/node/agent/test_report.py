"""Condition and annotations: on change and as a heartbeat, and gone when nobody says anything any more."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.kubernetes_fake import FakeKubernetes

from apparate.node.agent import report
from apparate.node.agent.report import Reporter, State

READY = State(True, "Ready", "images are loaded on demand", "1.0.0", "lazy", "erofs-file")  # noqa: FBT003
FAILED = State(False, "ServiceDown", "loader: away", "1.0.0", "lazy", "erofs-file", "loader: away")  # noqa: FBT003


def _condition(cluster: FakeKubernetes) -> dict[str, Any]:
    conditions: list[dict[str, Any]] = cluster.object("nodes", "node-a")["status"]["conditions"]
    return {each["type"]: each for each in conditions}["ApparateReady"]


def _annotations(cluster: FakeKubernetes) -> dict[str, str]:
    return dict(cluster.object("nodes", "node-a")["metadata"].get("annotations", {}))


def test_state_is_told_once_until_it_changes(cluster: FakeKubernetes) -> None:
    reporter = Reporter(cluster.client(), "node-a")
    assert reporter.report(READY)
    said = len(cluster.requests)
    assert reporter.report(READY)
    assert len(cluster.requests) == said
    assert (_condition(cluster)["status"], _condition(cluster)["reason"]) == ("True", "Ready")
    assert reporter.report(FAILED)
    assert (_condition(cluster)["status"], _condition(cluster)["message"]) == ("False", "loader: away")


def test_annotations_follow_and_empty_ones_go(cluster: FakeKubernetes) -> None:
    reporter = Reporter(cluster.client(), "node-a")
    reporter.report(FAILED)
    prefix = "apparate.cloud.tencent.com/"
    wanted = {"version": "1.0.0", "mode": "lazy", "driver": "erofs-file", "error": "loader: away"}
    assert _annotations(cluster) == {f"{prefix}{name}": text for name, text in wanted.items()}
    reporter.report(READY)
    assert f"{prefix}error" not in _annotations(cluster)


def test_heartbeat_is_repeated_and_the_transition_keeps_its_time(
    cluster: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "HEARTBEAT_S", 0.0)
    Reporter(cluster.client(), "node-a").report(READY)
    node = cluster.object("nodes", "node-a")
    old = [{**_condition(cluster), "lastTransitionTime": "2020-01-01T00:00:00Z", "lastHeartbeatTime": "2020"}]
    cluster.put("nodes", "node-a", {**node, "status": {"conditions": old}})
    another = Reporter(cluster.client(), "node-a")
    another.report(READY)
    assert _condition(cluster)["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    assert _condition(cluster)["lastHeartbeatTime"] != "2020"
    another.report(FAILED)
    assert _condition(cluster)["lastTransitionTime"] != "2020-01-01T00:00:00Z"


def test_server_that_is_away_gets_the_state_later(cluster: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    now = [1000.0]
    port, reporter = cluster.port, Reporter(cluster.client(), "node-a", lambda: now[0])
    cluster.stop()
    assert not reporter.report(READY)
    assert "state of the node cannot be reported" in capsys.readouterr().err
    cluster.restart(port)
    now[0] += 2 * report.PAUSE_FIRST_S
    assert reporter.report(READY)
    assert _condition(cluster)["status"] == "True"


def test_server_that_refuses_for_an_hour_is_asked_ever_less_often(cluster: FakeKubernetes) -> None:
    now = [1000.0]
    reporter = Reporter(cluster.client(), "node-a", lambda: now[0])
    cluster.answer_all_with(503, "ServiceUnavailable")
    for _ in range(720):
        assert not reporter.report(READY)
        now[0] += 5.0
    assert 3600 / report.PAUSE_MOST_S <= len(cluster.requests) <= 3600 / (0.75 * report.PAUSE_MOST_S) + 8


def test_other_state_is_told_at_once_also_after_a_refusal(cluster: FakeKubernetes) -> None:
    port, reporter = cluster.port, Reporter(cluster.client(), "node-a")
    cluster.stop()
    assert not reporter.report(READY)
    cluster.restart(port)
    assert not reporter.report(READY)
    assert reporter.report(FAILED)
    assert _condition(cluster)["reason"] == "ServiceDown"


def test_removal_leaves_nothing_on_the_node(cluster: FakeKubernetes) -> None:
    reporter = Reporter(cluster.client(), "node-a")
    reporter.report(FAILED)
    reporter.remove()
    assert cluster.object("nodes", "node-a")["status"]["conditions"] == []
    assert _annotations(cluster) == {}
