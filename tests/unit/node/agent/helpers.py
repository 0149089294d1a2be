"""One node with a running agent: the services of its host, and what the agent has done to it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.kubernetes_fake import FakeKubernetes
from tests.support.processes import wait_until

from apparate.kubernetes.access import Access
from apparate.kubernetes.client import Client
from apparate.node.agent.events import Events, Limiter
from apparate.node.agent.ownership import Ownership, Release
from apparate.node.agent.report import Reporter
from apparate.node.agent.run import Agent, Parts, Places
from apparate.node.agent.services import LOADER, SNAPSHOTTER, Services
from apparate.node.agent.settings import AgentSettings
from apparate.node.agent.turns import Turns
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.snapshot.model import Record
from apparate.snapshot.rows import RECORDS_PAGE, to_json
from apparate.snapshot.settings import SnapshotterSettings, mode_of
from apparate.telemetry.metrics import Page, TelemetryServer

RELEASE = Release("apparate", "apparate")
PASSWORD = "correct horse battery staple"
LABELS = {names.CRI_IMAGE_REF: "registry.example/app:1", names.CRI_LAYER_DIGEST: str(Digest.of(b"layer"))}


def settings_of(node: str = "node-a", **values: object) -> AgentSettings:
    return AgentSettings(node=node, namespace="apparate", daemonset="apparate", **values)  # type: ignore[arg-type]


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


def secret_of(user: str = "u", kind: str = "kubernetes.io/dockerconfigjson") -> dict[str, Any]:
    text = json.dumps({"auths": {"registry.example": {"username": user, "password": PASSWORD}}})
    return {"type": kind, "data": {".dockerconfigjson": base64.b64encode(text.encode()).decode()}}
