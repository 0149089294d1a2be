"""Nodes on which the chart cannot do its work: containerd stays up, the reason is where people look, the roll-out stops."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.fingerprint import assert_same, fingerprint
from tests.support.cluster.helm import Chart, Helm
from tests.support.cluster.images import APPS, TOOL, version_in
from tests.support.cluster.layout import LATE_NODE, NEW_NODE, OLD_NODE
from tests.support.cluster.machine import Machine
from tests.support.cluster.pods import Namespace
from tests.support.cluster.proofs import assert_lazy, start
from tests.support.cluster.release import Release
from tests.support.cluster.workers import Workers

pytestmark = [pytest.mark.root, pytest.mark.fuse]

CONFIG = "/etc/containerd/config.toml"
BREAK = {
    OLD_NODE.name: f"cp {CONFIG} /root/config.toml; printf '[plugins\\n' >>{CONFIG}",
    NEW_NODE.name: "mount --bind /etc /etc && mount -o remount,bind,ro /etc",
    LATE_NODE.name: "rm /dev/fuse",
}
MEND = {
    OLD_NODE.name: f"cp /root/config.toml {CONFIG}",
    NEW_NODE.name: "umount /etc",
    LATE_NODE.name: "mknod -m 666 /dev/fuse c 10 229",
}
SAYS = {OLD_NODE.name: CONFIG, NEW_NODE.name: "ead-only", LATE_NODE.name: "/dev/fuse"}
ALL = tuple(BREAK)


@pytest.fixture
def chart(mixed: Cluster, workers: Workers, packages: Path, tmp_path: Path) -> Iterator[Chart]:
    """The chart, ready to be installed on nodes that nobody has prepared, all of them labelled."""
    workers.want(f"failures {tmp_path}", lambda _: None, ())
    mixed.label(LATE_NODE.name)
    helm = Helm(tmp_path / "bin", mixed.kubeconfig, "helm-3")
    made = Chart.packaged(helm, tmp_path, version_in(packages), mixed.site.registry)
    yield made
    made.uninstall()
    mixed.label(LATE_NODE.name, None)


def test_what_fails_is_taken_back_and_said_and_mending_it_is_enough(
    chart: Chart, mixed: Cluster, namespace: Namespace
) -> None:
    """Three nodes, three faults, three turns."""
    machines = {node: mixed.machines[node] for node in ALL}
    for node, machine in machines.items():
        namespace.start_pod(f"before-{node}", TOOL, node=node)
        machine.run("sh", "-c", BREAK[node])
    before = {node: _containerd(machine) for node, machine in machines.items()}
    chart.install("--set", f"maxUnavailable={len(ALL)}")
    release = Release(mixed, chart)
    for node, machine in machines.items():
        verdict = release.wait_verdict(node, "False", "PrepareFailed")
        assert SAYS[node] in verdict.message
        assert SAYS[node] in release.annotation(node, "error")
        assert SAYS[node] in release.wait_event(node, "ApparatePrepareFailed")
        assert SAYS[node] in release.logs(node)
        assert "apparate_agent_prepare_failed 1.0" in release.metrics(node)
        assert_same(before[node], _containerd(machine), node)
        namespace.start_pod(f"after-{node}", TOOL, node=node)
    for node, machine in machines.items():
        machine.run("sh", "-c", MEND[node])
        release.restart(node)
    release.wait_ready(*ALL)
    with ThreadPoolExecutor(len(ALL)) as pool:
        for started in pool.map(lambda node: start(namespace, f"lazy-{node}", APPS[0], node=node), ALL):
            assert_lazy(started, APPS[0])


def test_a_node_that_fails_stops_the_roll_out(chart: Chart, mixed: Cluster) -> None:
    """One turn; the node that has it fails, so no other node is touched until it is mended."""
    broken = OLD_NODE.name
    for node in ALL:
        if node != broken:
            mixed.label(node, None)
    mixed.machines[broken].run("sh", "-c", BREAK[broken])
    untouched = {node: fingerprint(mixed.machines[node]) for node in ALL if node != broken}
    chart.install()
    release = Release(mixed, chart)
    release.wait_verdict(broken, "False", "PrepareFailed")
    for node in untouched:
        mixed.label(node)
    for node, before in untouched.items():
        assert broken in release.wait_verdict(node, "False", "WaitingForTurn").message
        assert_same(before, _without_notes(fingerprint(mixed.machines[node])), node)
    mixed.machines[broken].run("sh", "-c", MEND[broken])
    release.restart(broken)
    release.wait_ready(*ALL)


def _containerd(machine: Machine) -> list[str]:
    """What must not have changed where preparing failed: containerd's configuration and process."""
    process = machine.run("systemctl", "show", "--property=ActiveState", "--value", "containerd.service")
    return [process, machine.run("sha256sum", CONFIG)]


def _without_notes(lines: list[str]) -> list[str]:
    """Without what a waiting pod notes for itself."""
    return [line for line in lines if "/var/lib/apparate" not in line and "/etc/apparate" not in line]
