"""A cluster and a host for tests of the agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.fake_host import FakeHost, make_package
from tests.support.kubernetes_fake import FakeKubernetes
from tests.unit.node.agent.helpers import HostServices, Node, settings_of

from apparate.node.agent.events import Events, Limiter
from apparate.node.agent.ownership import Ownership, Release
from apparate.node.agent.payload import Payload
from apparate.node.agent.prepare import Preparer
from apparate.node.agent.report import Reporter
from apparate.node.agent.settings import AgentSettings
from apparate.node.agent.turns import Turns

STATE_DIR = "/var/lib/apparate"

MakePreparer = Callable[..., Preparer]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeKubernetes]:
    with FakeKubernetes(tmp_path) as fake:
        for name in ("node-a", "node-b", "node-c"):
            labels = {"cloud.tencent.com/apparate": "true"}
            fake.put("nodes", name, {"metadata": {"labels": labels}, "status": {"conditions": []}})
        yield fake


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path / "host")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make_package(tmp_path)


@pytest.fixture
def make_preparer(cluster: FakeKubernetes, host: FakeHost, package: Path) -> MakePreparer:
    """Return what makes a preparer; by default of node-a, with the host and the package of the test."""

    def make(
        settings: AgentSettings | None = None,
        release: Release | None = None,
        source: Path = package,
        on: FakeHost = host,
        **turns: object,
    ) -> Preparer:
        own = settings or settings_of()
        client = cluster.client(f"agent-{own.node}")
        state_dir = on.path(STATE_DIR)
        return Preparer(
            on,
            Payload(on, source),
            Ownership(release or Release(own.namespace, own.daemonset), state_dir),
            Turns(client, own, **turns),  # type: ignore[arg-type]
            Reporter(client, own.node),
            Events(client, own.node, Limiter(state_dir / "events.json")),
        )

    return make


@pytest.fixture
def node(cluster: FakeKubernetes, folder: Path) -> Iterator[Node]:
    cluster.put("daemonsets", "apparate", {}, "apparate")
    host = HostServices(folder)
    (folder / "node.json").write_text('{"phase": "applied"}')
    with host.serving():
        yield Node(cluster, folder, host)
