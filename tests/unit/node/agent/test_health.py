"""What a node says when a lazy pod would not start on it, or when containers met an error."""

from __future__ import annotations

import time

import pytest
from tests.unit.node.agent.helpers import RELEASE, Node, secret_of

from apparate.node.agent import run as run_module
from apparate.node.agent.ownership import Found, Ownership


def test_service_that_is_down_is_named_with_its_reason(node: Node) -> None:
    with node.running() as agent:
        node.wait_for("Ready")
        node.host.problem = "no driver works here"
        found = node.wait_for("ServiceDown")
        assert "loader: no driver works here" in found["message"]
        assert agent.ready_page().status == 503
        node.host.problem = ""
        node.wait_for("Ready")
    assert node.reasons()[:2] == ["ApparateNotReady", "ApparateReady"]


def test_node_that_is_not_configured_is_not_ready(node: Node) -> None:
    (node.folder / "node.json").unlink()
    Ownership(RELEASE, node.folder).note(Found("no", "", operator=True))
    with node.running():
        assert "an operator installed the package" in node.wait_for("NotConfigured")["message"]
        Ownership(RELEASE, node.folder).note(Found("elsewhere", "", operator=True))
        node.wait_for("Ready")


def test_refused_credentials_count_until_they_are_changed(node: Node) -> None:
    node.cluster.put("secrets", "pull", secret_of("wrong"), "apparate")
    with node.running(secrets=("pull",)):
        node.wait_for("Ready")
        node.host.loader_metrics["apparate_registry_credential_refused_wall_seconds"] = time.time()
        assert "has refused the credentials" in node.wait_for("CredentialsRefused")["message"]
        node.cluster.put("secrets", "pull", secret_of("right"), "apparate")
        node.wait_for("Ready")
    assert "ApparateCredentialsRefused" in node.reasons()


def test_credentials_that_go_while_they_are_looked_at_stop_nothing(node: Node) -> None:
    node.credentials.mkdir()
    with node.running(follow_namespaces=("team",)):
        node.wait_for("Ready")
        (node.credentials / "chart-team_gone.json").symlink_to("nowhere")  # is listed, and not there any more
        node.host.loader_metrics["apparate_registry_credential_refused_wall_seconds"] = time.time()
        node.wait_for("CredentialsRefused")


def test_main_loop_that_hangs_is_not_alive(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = node.agent()
    assert agent.live_page().status == 200
    monkeypatch.setattr(run_module, "STUCK_S", -1.0)
    assert agent.live_page().status == 503


def test_watch_that_has_ended_for_good_is_not_alive(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with node.running() as agent:
        node.wait_for("Ready")
        monkeypatch.setattr(type(agent._followers[0]), "is_dead", True)
        assert agent.live_page().status == 503
