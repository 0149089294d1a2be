"""Lazy pods under a real kubelet, on nodes that were prepared by hand: what of it needs no chart."""

from __future__ import annotations

import pytest
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.images import APPS, TOOL
from tests.support.cluster.layout import LATE_NODE, NEW_NODE, OLD_NODE
from tests.support.cluster.pods import Namespace
from tests.support.cluster.proofs import APPARATE, READ_ALL, assert_full, assert_lazy, start

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.usefixtures("by_hand")]

NODES = (OLD_NODE.name, NEW_NODE.name)
FOUR, KEPT, REBOOTED = APPS[0], APPS[1], APPS[2]
OURS = ("apparate-loader.service", "apparate-snapshotter.service")


@pytest.mark.parametrize("node", NODES)
def test_an_accelerated_image_is_loaded_on_demand(namespace: Namespace, node: str) -> None:
    assert_lazy(start(namespace, "lazy", FOUR, node=node), FOUR)
    assert namespace.exec("lazy", *READ_ALL).split()[0] == FOUR.all_digest


@pytest.mark.parametrize("node", NODES)
def test_a_plain_image_is_pulled_in_full(namespace: Namespace, node: str) -> None:
    assert_full(start(namespace, "plain", FOUR, node=node, lazy=False), FOUR)


def test_on_an_unprepared_node_both_are_pulled_in_full(namespace: Namespace) -> None:
    assert_full(start(namespace, "accelerated", FOUR, node=LATE_NODE.name), FOUR)
    assert_full(start(namespace, "plain", KEPT, node=LATE_NODE.name, lazy=False), KEPT)


@pytest.mark.parametrize("node", NODES)
def test_restarts_and_kills_are_not_noticed_by_a_running_pod(namespace: Namespace, mixed: Cluster, node: str) -> None:
    """Whatever is restarted or killed on the node, the container is the same one and reads what it has not read before."""
    namespace.start_pod("kept", KEPT.lazy, node=node)
    before = namespace.status("kept")
    machine = mixed.machines[node]
    machine.run("systemctl", "restart", "kubelet.service")
    machine.run("systemctl", "restart", "containerd.service")
    machine.run("systemctl", "kill", "--signal=KILL", *OURS)
    mixed.wait(lambda: namespace.cluster.kubectl.status_of(*_exec(namespace, "true"))[0] == 0, "exec works again")
    assert namespace.exec("kept", *READ_ALL).split()[0] == KEPT.all_digest
    after = namespace.status("kept")
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)
    namespace.start_pod("new", KEPT.lazy, node=node)


def test_after_a_power_cut_pods_come_back_without_the_registry(namespace: Namespace, mixed: Cluster) -> None:
    """All nodes lose power at once, the registry and the API server with them; the registry stays away."""
    for node in NODES:
        namespace.start_pod(f"lazy-{node}", REBOOTED.lazy, node=node)
        namespace.start_pod(f"tool-{node}", TOOL, node=node)
        mixed.machines[node].run(APPARATE, "complete", REBOOTED.lazy)
    mixed.site.registry.stop()
    machines = [mixed.control, *(mixed.machines[node] for node in NODES)]
    for machine in machines:
        machine.power_cut()
    for machine in machines[1:]:
        machine.power_on()
    for machine in machines[1:]:
        machine.wait_booted()
        machine.run("systemctl", "is-active", *OURS)  # they need neither
    machines[0].power_on()
    for node in NODES:
        for pod in (f"lazy-{node}", f"tool-{node}"):
            namespace.wait_restarted(pod)
        assert namespace.exec(f"lazy-{node}", *READ_ALL).split()[0] == REBOOTED.all_digest
    mixed.site.registry.start()


def _exec(namespace: Namespace, *command: str) -> list[str]:
    return ["exec", f"--namespace={namespace.name}", "kept", "--", *command]
