"""The cluster itself, before anything of ours is on it: what the other tests take for granted."""

from __future__ import annotations

import pytest
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.images import APPS, TOOL
from tests.support.cluster.layout import MIXED, NodeSpec
from tests.support.cluster.pods import Namespace

pytestmark = pytest.mark.root


@pytest.mark.parametrize("node", MIXED.nodes, ids=lambda node: node.name)
def test_node_runs_the_versions_that_it_is_named_for(mixed: Cluster, node: NodeSpec) -> None:
    info = mixed.api.node(node.name)["status"]["nodeInfo"]
    assert info["kubeletVersion"] == f"v{node.kubernetes}"
    assert info["containerRuntimeVersion"].removeprefix("containerd://").removeprefix("v") == node.containerd


def test_pods_run_on_every_node_from_a_private_registry(namespace: Namespace) -> None:
    for node in MIXED.nodes:
        namespace.create_pod(node.name, TOOL, ("sh", "-c", "cat /etc/tool; sleep 2000000000"), node=node.name)
    for node in MIXED.nodes:
        namespace.wait_ready(node.name)
        assert namespace.logs(node.name) == "ordinary\n"
        assert namespace.exec(node.name, "cat", "/etc/tool") == "ordinary\n"


def test_without_the_pull_secret_a_pod_does_not_start_and_says_why(namespace: Namespace) -> None:
    for node in MIXED.nodes:
        namespace.create_pod(node.name, APPS[0].plain, node=node.name, pull_secret="")
    for node in MIXED.nodes:
        said = namespace.wait_event(node.name, "Failed to pull image")
        assert "401" in said or "authorization failed" in said or "no basic auth credentials" in said
