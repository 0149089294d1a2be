"""The running agent: Secrets and label reach the host, a turn and a release are respected, whatever the server does."""

from __future__ import annotations

import json
import threading

import pytest
from tests.support.processes import wait_until
from tests.unit.node.agent.helpers import PASSWORD, RELEASE, Node, secret_of, settings_of

from apparate.errors import FailedPrecondition
from apparate.node.agent.ownership import Found, Ownership, Release
from apparate.node.agent.turns import PREFIX, Turns


def test_node_is_ready_when_a_lazy_pod_would_start(node: Node) -> None:
    Ownership(RELEASE, node.folder).note(Found("yes", "erofs-file"))
    with node.running() as agent:
        assert node.wait_for("Ready")["status"] == "True"
        assert agent.ready_page().status == agent.live_page().status == 200
        prefix, annotations = (
            "apparate.cloud.tencent.com/",
            node.cluster.object("nodes", "node-a")["metadata"]["annotations"],
        )
        assert (annotations[f"{prefix}mode"], annotations[f"{prefix}driver"]) == ("lazy", "erofs-file")
        assert node.mode == "lazy"


def test_secret_reaches_the_host_follows_changes_and_goes(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.cluster.put("secrets", "pull", secret_of("first"), "apparate")
    with node.running(secrets=("pull",)):
        path = node.credentials / "chart-apparate_pull.json"
        wait_until(lambda: path.exists() and "first" in path.read_text(), "the credentials", 10)
        node.cluster.put("secrets", "pull", secret_of("second"), "apparate")
        wait_until(lambda: "second" in path.read_text(), "the change", 10)
        node.wait_for("Ready")
        node.cluster.remove("secrets", "pull", "apparate")
        wait_until(lambda: not path.exists(), "the removal", 10)
        assert "Secret apparate/pull does not exist" in node.wait_for("SecretUnusable")["message"]
        node.cluster.put("secrets", "pull", secret_of("third"), "apparate")
        node.wait_for("Ready")
    assert PASSWORD not in capsys.readouterr().err
    assert PASSWORD not in json.dumps(node.cluster.all("events") + node.cluster.all("nodes"))


def test_secret_of_the_wrong_type_is_one_sentence_on_the_node(node: Node) -> None:
    node.cluster.put("secrets", "pull", secret_of(kind="Opaque"), "apparate")
    with node.running(secrets=("pull",)) as agent:
        assert "Secret apparate/pull is of type Opaque" in node.wait_for("SecretUnusable")["message"]
        assert agent.ready_page().status == 503
        assert b"Opaque" in agent.ready_page().body
    assert "ApparateSecretUnusable" in node.reasons()


def test_secret_that_may_not_be_read_is_named_until_it_may(node: Node) -> None:
    node.cluster.put("secrets", "pull", secret_of(), "apparate")
    node.cluster.account("agent", lambda _verb, resource, _name: resource != "secrets")
    with node.running(allowed=False, secrets=("pull",)):
        said = node.wait_for("SecretUnread")["message"]
        wait_until(lambda: "403" in node.condition()["message"], "the reason", 10)
        assert "Secret apparate/pull has not been read" in said
        node.cluster.account("agent")
        node.wait_for("Ready")


def test_pull_secrets_of_a_followed_namespace_are_used_and_bad_ones_stop_nothing(node: Node) -> None:
    node.cluster.put("secrets", "mine", secret_of(), "team")
    node.cluster.put("secrets", "password-of-something", {"type": "Opaque", "data": {}}, "team")
    broken = {"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}}
    node.cluster.put("secrets", "broken", broken, "team")
    with node.running(follow_namespaces=("team",)):
        node.wait_for("Ready")
        wait_until(lambda: node.files() == ["chart-team_mine.json"], "the credentials", 10)
        wait_until(lambda: "ApparateSecretUnusable" in node.reasons(), "the event", 10)
    assert all("password-of-something" not in json.dumps(event) for event in node.cluster.all("events"))


def test_credentials_of_a_secret_that_is_named_no_more_go_at_the_start(node: Node) -> None:
    node.credentials.mkdir()
    (node.credentials / "chart-apparate_old.json").write_text("{}")
    (node.credentials / "mine.json").write_text("{}")
    with node.running():
        wait_until(lambda: node.files() == ["mine.json"], "the removal", 10)


def test_label_that_goes_makes_the_node_ordinary_and_back(node: Node) -> None:
    with node.running():
        node.wait_for("Ready")
        node.set_label(None)
        wait_until(lambda: node.mode == "ordinary", "the mode", 10)
        assert node.wait_for("ModeOrdinary")["status"] == "False"
        node.set_label("true")
        node.wait_for("Ready")
        assert node.mode == "lazy"


def test_server_that_is_away_changes_nothing_on_the_node(node: Node) -> None:
    node.cluster.put("secrets", "pull", secret_of(), "apparate")
    with node.running(secrets=("pull",)) as agent:
        node.wait_for("Ready")
        files, port = node.files(), node.cluster.port
        node.cluster.stop()
        wait_until(lambda: agent._followers[0].problem is not None, "the loss", 10)
        assert (node.files(), node.mode) == (files, "lazy")
        assert agent.ready_page().status == 200
        node.cluster.restart(port)
    assert (node.files(), node.mode) == (files, "lazy")


def test_agent_that_starts_without_a_server_leaves_everything_as_it_was(node: Node) -> None:
    node.credentials.mkdir()
    (node.credentials / "chart-apparate_pull.json").write_text("{}")
    (node.folder / "mode").write_text("ordinary\n")
    agent_is_there = node.running(secrets=("pull",))
    port = node.cluster.port
    node.cluster.stop()
    with agent_is_there as agent:
        wait_until(lambda: agent._followers[0].problem is not None, "the loss", 10)
    assert (node.files(), node.mode) == (["chart-apparate_pull.json"], "ordinary")
    node.cluster.restart(port)


def test_second_release_does_not_begin(node: Node) -> None:
    with node.running():
        node.wait_for("Ready")
        other = node.agent(Release("elsewhere", "apparate"))
        with pytest.raises(FailedPrecondition, match="DaemonSet apparate in namespace apparate"):
            other.run(threading.Event())


def test_turn_that_was_mended_by_hand_is_given_back(node: Node) -> None:
    with Turns(node.cluster.client("agent"), settings_of()).acquire() as turn:
        turn.fail("x")
    with node.running():
        wait_until(
            lambda: not node.cluster.object("leases", f"{PREFIX}0", "apparate")["spec"].get("holderIdentity"),
            "the turn",
            10,
        )
