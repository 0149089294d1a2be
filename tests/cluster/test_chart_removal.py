"""Getting rid of the chart: nothing that runs breaks, and the documented removal leaves nodes as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.fingerprint import assert_same, fingerprint
from tests.support.cluster.helm import Chart, Helm
from tests.support.cluster.images import APPS, TOOL, version_in
from tests.support.cluster.layout import MIXED
from tests.support.cluster.pods import Namespace
from tests.support.cluster.proofs import READ_ALL, Reader, assert_full, start
from tests.support.cluster.release import Release
from tests.support.cluster.workers import Workers

pytestmark = [pytest.mark.root, pytest.mark.fuse]

LABELLED = MIXED.labelled
READ, AFTER = APPS[0], APPS[1]
REMOVAL = "apparate-remove"


def test_uninstalling_breaks_nothing_and_removal_leaves_nodes_as_they_were(
    mixed: Cluster, workers: Workers, packages: Path, tmp_path: Path, namespace: Namespace
) -> None:
    workers.want("removal", lambda _: None, ())
    machines = {node: mixed.machines[node] for node in LABELLED}
    for node in LABELLED:  # containerd's own first traces
        namespace.start_pod(f"ordinary-{node}", TOOL, node=node)
    before = {node: fingerprint(machine) for node, machine in machines.items()}
    helm = Helm(tmp_path / "bin", mixed.kubeconfig, "helm-3")
    chart = Chart.packaged(helm, tmp_path, version_in(packages), mixed.site.registry)
    chart.install()
    release = Release(mixed, chart)
    release.wait_ready(*LABELLED)
    readers = {node: Reader.start(namespace, f"reader-{node}", READ, node) for node in LABELLED}

    chart.uninstall("--wait")

    for node, reader in readers.items():
        mixed.wait(lambda n=node: release.annotation(n, "mode") in {"ordinary", ""}, f"{node} is ordinary")  # type: ignore[misc]  # bound now
        reader.goes_on()
        assert_full(start(namespace, f"after-{node}", AFTER, node=node), AFTER)
        assert namespace.exec(f"after-{node}", *READ_ALL).split()[0] == AFTER.all_digest
        reader.assert_unharmed()
        namespace.delete_pod(reader.pod)
        namespace.delete_pod(f"after-{node}")

    names = ",".join(LABELLED)
    helm(
        "install",
        REMOVAL,
        chart.archive,
        "--set",
        f"removeFrom={{{names}}}",
        "--wait",
        "--wait-for-jobs",
        "--timeout=180s",
    )
    helm("uninstall", REMOVAL, "--wait")
    for node, machine in machines.items():
        assert release.verdict(node).status == ""
        assert_same(before[node], fingerprint(machine), node)
        assert namespace.exec(f"ordinary-{node}", "cat", "/etc/tool") == "ordinary\n"
        namespace.start_pod(f"plain-{node}", READ.lazy, node=node)
