"""The running agent: Secrets and label reach the host, the node's state reaches the cluster, its end decides what stays."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.support.kubernetes_fake import FakeKubernetes
from tests.support.processes import wait_until
from tests.unit.node.agent.conftest import settings_of

from apparate.errors import FailedPrecondition
from apparate.kubernetes.access import Access
from apparate.kubernetes.client import Client
from apparate.node.agent import run as run_module
from apparate.node.agent.events import Events, Limiter
from apparate.node.agent.ownership import Found, Ownership, Release
from apparate.node.agent.report import Reporter
from apparate.node.agent.run import Agent, Parts, Places
from apparate.node.agent.services import LOADER, SNAPSHOTTER, Services
from apparate.node.agent.turns import PREFIX, Turns
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.registry.keychain import LEAVING_NAME
from apparate.snapshot.model import Info, Kind, Origin, Record, SnapshotId
from apparate.snapshot.rows import RECORDS_PAGE, to_json
from apparate.snapshot.settings import SnapshotterSettings, mode_of
from apparate.telemetry.metrics import Page, TelemetryServer

RELEASE = Release("apparate", "apparate")
PASSWORD = "correct horse battery staple"
LABELS = {names.CRI_IMAGE_REF: "registry.example/app:1", names.CRI_LAYER_DIGEST: str(Digest.of(b"layer"))}


@dataclass(slots=True)
class HostServices:
    """Loader and snapshotter, as far as the agent sees them."""

    folder: Path
    problem: str = ""
    records: list[Record] = field(default_factory=list)
    loader_metrics: dict[str, float] = field(default_factory=dict)

    def services(self) -> Services:
        return Services({LOADER: self.folder / "loader.sock", SNAPSHOTTER: self.folder / "snapshotter.sock"})

    @contextmanager
    def serving(self) -> Iterator[None]:
        ready = lambda: Page(503 if self.problem else 200, "application/json", self._reasons())  # noqa: E731
        records = lambda: Page(200, "application/json", to_json(self.records))  # noqa: E731
        empty = lambda: Page(200, "text/plain", b"")  # noqa: E731
        sockets = self.services().sockets
        servers = [
            TelemetryServer({"/readyz": ready, "/metrics": self._metrics}, sockets[LOADER]),
            TelemetryServer({"/readyz": ready, "/metrics": empty, RECORDS_PAGE: records}, sockets[SNAPSHOTTER]),
        ]
        yield
        closers = [threading.Thread(target=server.close) for server in servers]  # each waits half a second
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()

    def _reasons(self) -> bytes:
        return json.dumps({"driver": self.problem} if self.problem else {}).encode()

    def _metrics(self) -> Page:
        lines = []
        for name, value in self.loader_metrics.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines.append(f"# TYPE {name.partition('{')[0]} {kind}\n{name} {value}\n")
        return Page(200, "text/plain", "".join(lines).encode())


@dataclass(slots=True)
class Node:
    """One node with its agent."""

    cluster: FakeKubernetes
    folder: Path
    host: HostServices

    @property
    def _server(self) -> str:
        return f"http://127.0.0.1:{self.cluster.port}"

    @property
    def _token(self) -> Path:
        return self.cluster.folder / "token-agent"

    @property
    def credentials(self) -> Path:
        return self.folder / "credentials"

    @property
    def mode(self) -> str:
        path = self.folder / "mode"
        return path.read_text().strip() if path.exists() else "(no file)"

    def agent(self, release: Release = RELEASE, *, allowed: bool = True, **values: Any) -> Agent:
        settings = settings_of(**values)
        client = self.cluster.client("agent") if allowed else Client(Access(self._server, None, self._token), "test")
        own = SnapshotterSettings(mode_file=self.folder / "mode")
        parts = Parts(
            client=client,
            ownership=Ownership(release, self.folder),
            services=self.host.services(),
            reporter=Reporter(client, "node-a"),
            news=Events(client, "node-a", Limiter(None)),
            turns=Turns(client, settings),
            places=Places(self.credentials, self.folder / "mode", self.folder / "node.json"),
            mode=lambda: mode_of(own),
        )
        return Agent(settings, parts, pause_s=0.02)

    @contextmanager
    def running(self, **values: Any) -> Iterator[Agent]:
        """Have an agent that is told to stop at the end, and has decided when the block is left."""
        agent, stop, failures = self.agent(**values), threading.Event(), []

        def work() -> None:
            try:
                agent.run(stop)
            except BaseException as error:  # noqa: BLE001  # raised below, in the test's own thread
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield agent
        finally:
            stop.set()
            thread.join(20)
        assert not thread.is_alive()
        if failures:
            raise failures[0]

    def condition(self) -> dict[str, Any]:
        conditions: list[dict[str, Any]] = self.cluster.object("nodes", "node-a")["status"]["conditions"]
        return next((each for each in conditions if each["type"] == "ApparateReady"), {})

    def wait_for(self, reason: str) -> dict[str, Any]:
        wait_until(lambda: self.condition().get("reason") == reason, f"{reason}, not {self.condition()}", 10)
        return self.condition()

    def reasons(self) -> list[str]:
        return [event["reason"] for event in self.cluster.all("events")]

    def set_label(self, value: str | None) -> None:
        node = self.cluster.object("nodes", "node-a")
        labels = {} if value is None else {"cloud.tencent.com/apparate": value}
        self.cluster.put("nodes", "node-a", {**node, "metadata": {**node["metadata"], "labels": labels}})

    def files(self) -> list[str]:
        return sorted(path.name for path in self.credentials.iterdir()) if self.credentials.exists() else []


@pytest.fixture
def node(cluster: FakeKubernetes, folder: Path) -> Iterator[Node]:
    cluster.put("daemonsets", "apparate", {}, "apparate")
    host = HostServices(folder)
    (folder / "node.json").write_text('{"phase": "applied"}')
    with host.serving():
        yield Node(cluster, folder, host)


def _secret(user: str = "u", kind: str = "kubernetes.io/dockerconfigjson") -> dict[str, Any]:
    text = json.dumps({"auths": {"registry.example": {"username": user, "password": PASSWORD}}})
    return {"type": kind, "data": {".dockerconfigjson": base64.b64encode(text.encode()).decode()}}


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
    node.cluster.put("secrets", "pull", _secret("first"), "apparate")
    with node.running(secrets=("pull",)):
        path = node.credentials / "chart-apparate_pull.json"
        wait_until(lambda: path.exists() and "first" in path.read_text(), "the credentials", 10)
        node.cluster.put("secrets", "pull", _secret("second"), "apparate")
        wait_until(lambda: "second" in path.read_text(), "the change", 10)
        node.wait_for("Ready")
        node.cluster.remove("secrets", "pull", "apparate")
        wait_until(lambda: not path.exists(), "the removal", 10)
        assert "Secret apparate/pull does not exist" in node.wait_for("SecretUnusable")["message"]
        node.cluster.put("secrets", "pull", _secret("third"), "apparate")
        node.wait_for("Ready")
    assert PASSWORD not in capsys.readouterr().err
    assert PASSWORD not in json.dumps(node.cluster.all("events") + node.cluster.all("nodes"))


def test_secret_of_the_wrong_type_is_one_sentence_on_the_node(node: Node) -> None:
    node.cluster.put("secrets", "pull", _secret(kind="Opaque"), "apparate")
    with node.running(secrets=("pull",)) as agent:
        assert "Secret apparate/pull is of type Opaque" in node.wait_for("SecretUnusable")["message"]
        assert agent.ready_page().status == 503
        assert b"Opaque" in agent.ready_page().body
    assert "ApparateSecretUnusable" in node.reasons()


def test_secret_that_may_not_be_read_is_named_until_it_may(node: Node) -> None:
    node.cluster.put("secrets", "pull", _secret(), "apparate")
    node.cluster.account("agent", lambda _verb, resource, _name: resource != "secrets")
    with node.running(allowed=False, secrets=("pull",)):
        said = node.wait_for("SecretUnread")["message"]
        wait_until(lambda: "403" in node.condition()["message"], "the reason", 10)
        assert "Secret apparate/pull has not been read" in said
        node.cluster.account("agent")
        node.wait_for("Ready")


def test_pull_secrets_of_a_followed_namespace_are_used_and_bad_ones_stop_nothing(node: Node) -> None:
    node.cluster.put("secrets", "mine", _secret(), "team")
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
    node.cluster.put("secrets", "pull", _secret(), "apparate")
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


def test_rollout_changes_nothing(node: Node) -> None:
    node.cluster.put("secrets", "pull", _secret(), "apparate")
    with node.running(secrets=("pull",)):
        node.wait_for("Ready")
        before = {path.name: path.stat().st_mtime_ns for path in node.credentials.iterdir()}
    assert node.mode == "lazy"
    with node.running(secrets=("pull",)):
        node.wait_for("Ready")
    assert {path.name: path.stat().st_mtime_ns for path in node.credentials.iterdir()} == before


def _remove_chart(node: Node) -> None:
    node.cluster.remove("daemonsets", "apparate", "apparate")


def _remove_rights(node: Node) -> None:
    node.cluster.account("agent", lambda *_: False)


def _remove_account(node: Node) -> None:
    node.cluster.revoke("agent")


def _remove_in_foreground(node: Node) -> None:
    node.cluster.put("daemonsets", "apparate", {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, "apparate")


def _remove_label(node: Node) -> None:
    node.set_label(None)


@pytest.mark.parametrize(
    "remove", [_remove_chart, _remove_rights, _remove_account, _remove_in_foreground, _remove_label]
)
def test_node_that_leaves_is_ordinary_and_has_no_credentials(node: Node, remove: Callable[[Node], None]) -> None:
    node.cluster.put("secrets", "pull", _secret(), "apparate")
    with node.running(secrets=("pull",)):
        node.wait_for("Ready")
        wait_until(lambda: bool(node.files()), "the credentials", 10)
        remove(node)
    assert node.mode == "ordinary"
    assert node.files() == []
    assert Ownership(RELEASE, node.folder).active() is None


def test_server_that_refuses_only_while_it_starts_removes_nothing(node: Node) -> None:
    refusals = iter([False, False])  # then it has read the roles
    node.cluster.put("secrets", "pull", _secret(), "apparate")
    with node.running(secrets=("pull",)):
        node.wait_for("Ready")
        node.cluster.account("agent", lambda _verb, resource, _name: resource != "daemonsets" or next(refusals, True))
    assert next(refusals, "all used") == "all used"
    assert (node.mode, node.files()) == ("lazy", ["chart-apparate_pull.json"])


def test_removed_node_says_nothing_of_the_label(node: Node) -> None:
    with node.running():
        node.wait_for("Ready")
        node.cluster.remove("nodes", "node-a")
    assert node.mode == "lazy"


def _lazy_container(node: Node, incomplete: float) -> None:
    digest = Digest.of(b"layer")
    layer = Info("image", "", Kind.COMMITTED, 1, 1, LABELS)
    container = Info("k8s.io/2/c", "image", Kind.ACTIVE, 1, 1)
    node.host.records = [
        Record(SnapshotId(1), layer, origin=Origin.LAZY, layer=digest),
        Record(SnapshotId(2), container, parent_id=SnapshotId(1)),
    ]
    node.host.loader_metrics['apparate_layer_layers{state="lazy"}'] = incomplete


@pytest.mark.parametrize(("incomplete", "left"), [(0.0, []), (1.0, [LEAVING_NAME, "chart-apparate_pull.json"])])
def test_credentials_stay_while_a_container_reads_from_the_registry(
    node: Node, incomplete: float, left: list[str]
) -> None:
    node.cluster.put("secrets", "pull", _secret(), "apparate")
    _lazy_container(node, incomplete)
    with node.running(secrets=("pull",)):
        wait_until(lambda: bool(node.files()), "the credentials", 10)
        _remove_chart(node)
    assert node.files() == left
    assert node.mode == "ordinary"
    node.cluster.put("daemonsets", "apparate", {}, "apparate")
    with node.running(secrets=("pull",)):
        wait_until(lambda: node.files() == ["chart-apparate_pull.json"], "the note to go", 10)


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
    node.cluster.put("secrets", "pull", _secret("wrong"), "apparate")
    with node.running(secrets=("pull",)):
        node.wait_for("Ready")
        node.host.loader_metrics["apparate_registry_credential_refused_wall_seconds"] = time.time()
        assert "has refused the credentials" in node.wait_for("CredentialsRefused")["message"]
        node.cluster.put("secrets", "pull", _secret("right"), "apparate")
        node.wait_for("Ready")
    assert "ApparateCredentialsRefused" in node.reasons()


def test_credentials_that_go_while_they_are_looked_at_stop_nothing(node: Node) -> None:
    node.credentials.mkdir()
    with node.running(follow_namespaces=("team",)):
        node.wait_for("Ready")
        (node.credentials / "chart-team_gone.json").symlink_to("nowhere")  # is listed, and not there any more
        node.host.loader_metrics["apparate_registry_credential_refused_wall_seconds"] = time.time()
        node.wait_for("CredentialsRefused")


def test_fallback_is_an_event_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "SURVEY_S", 0.01)
    labels = {**LABELS, "containerd.io/snapshot/stargz/toc.digest": str(Digest.of(b"toc"))}
    node.host.records = [
        Record(
            SnapshotId(1), Info("image", "", Kind.COMMITTED, 1, 1, labels), reason="GET https://r/v2/: HTTP status 401"
        )
    ]
    with node.running() as agent:
        wait_until(lambda: "ApparateImageFallback" in node.reasons(), "the event", 10)
        page = agent.metrics_page().body.decode()
    assert 'apparate_agent_images{state="fallback"} 1.0' in page
    events = [event for event in node.cluster.all("events") if event["reason"] == "ApparateImageFallback"]
    assert len(events) == 1
    assert "registry.example/app:1: GET https://r/v2/: HTTP status 401" in events[0]["message"]


def test_reads_that_failed_are_an_event(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "SURVEY_S", 0.01)
    node.host.loader_metrics["apparate_loader_read_errors_total"] = 5
    with node.running() as agent:
        wait_until(lambda: agent._survey._read_errors == 5, "the first look", 10)
        node.host.loader_metrics["apparate_loader_read_errors_total"] = 7
        wait_until(lambda: "ApparateReadsFailed" in node.reasons(), "the event", 10)
    (event,) = [event for event in node.cluster.all("events") if event["reason"] == "ApparateReadsFailed"]
    assert event["message"].startswith("2 reads of containers ended with an error")


def test_metrics_of_all_three_processes_are_one_page(node: Node) -> None:
    node.host.loader_metrics["apparate_loader_reads_total"] = 7
    page = node.agent().metrics_page().body.decode()
    assert 'apparate_loader_reads_total{service="loader"} 7.0' in page
    assert "apparate_agent_ready" in page
    kinds = [line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))


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
