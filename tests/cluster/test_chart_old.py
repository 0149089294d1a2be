"""The chart on an old Kubernetes, installed with helm 4: the main path."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.helm import NAMESPACE, Chart, Helm
from tests.support.cluster.images import APPS, version_in
from tests.support.cluster.layout import OLD
from tests.support.cluster.pods import Namespace
from tests.support.cluster.proofs import APPARATE, assert_full, assert_lazy, start
from tests.support.cluster.release import Release

pytestmark = [pytest.mark.root, pytest.mark.fuse]

FIRST, SECOND = APPS[0], APPS[1]


def test_the_main_path_on_an_old_api_server(old: Cluster, packages: Path, tmp_path: Path) -> None:
    (node,) = OLD.labelled
    namespace = Namespace(old, "main-path")
    namespace.create()
    helm = Helm(tmp_path / "bin", old.kubeconfig, "helm-4")
    chart = Chart.packaged(helm, tmp_path, version_in(packages), old.site.registry)
    helm("install", "apparate", chart.archive, "--dry-run=server")
    chart.install()
    release = Release(old, chart)
    release.wait_ready(node)
    assert_lazy(start(namespace, "accelerated", FIRST, node=node), FIRST)
    assert_full(start(namespace, "plain", FIRST, node=node, lazy=False), FIRST)
    assert FIRST.lazy in old.kubectl.exec(NAMESPACE, release.agent(node), APPARATE, "images")
    old.label(node, None)
    release.wait_ready()
    old.wait(lambda: release.annotation(node, "mode") == "ordinary", f"{node} is ordinary")
    assert_full(start(namespace, "ordinary", SECOND, node=node), SECOND)
    chart.uninstall("--wait")
    namespace.remove()
