"""What users do wrong, or lose: each is one clear sentence where they look, and nothing is half done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.helm import NAMESPACE, Chart, Helm
from tests.support.cluster.images import APPS, version_in
from tests.support.cluster.layout import OLD_NODE
from tests.support.cluster.pods import Namespace
from tests.support.cluster.proofs import APPARATE, assert_full, assert_lazy, start
from tests.support.cluster.release import Release
from tests.support.cluster.workers import Workers

pytestmark = [pytest.mark.root, pytest.mark.fuse]

NODE = OLD_NODE.name
SECRET = "apparate-pull"
CERTIFICATES = "/etc/containerd/certs.d"
DISTRUSTED, TRUSTED = APPS[4], APPS[5]


@pytest.fixture(scope="module")
def release(
    mixed: Cluster, workers: Workers, packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Release]:
    """The chart, installed while no node has the label; then one has."""
    workers.want("refusals", lambda _: None, ())
    for node in mixed.spec.labelled:
        mixed.label(node, None)
    folder = tmp_path_factory.mktemp("chart")
    helm = Helm(folder / "bin", mixed.kubeconfig, "helm-3")
    chart = Chart.packaged(helm, folder, version_in(packages), mixed.site.registry)
    said = chart.install()
    assert "no node carries the label" in said
    made = Release(mixed, chart)
    made.wait_ready()
    mixed.label(NODE)
    made.wait_ready(NODE)
    yield made
    chart.uninstall()
    for node in mixed.spec.labelled:
        mixed.label(node)


def test_a_second_release_is_refused_and_leaves_nothing(release: Release) -> None:
    helm, archive = release.chart.helm, release.chart.archive
    code, said = helm.status_of("install", "second", archive, "--namespace=elsewhere", "--create-namespace")
    assert code
    assert "apparate-agent" in said
    assert "apparate" in said
    assert not release.cluster.api.items("/apis/apps/v1/namespaces/elsewhere/daemonsets")
    release.wait_ready(NODE)
    release.cluster.kubectl("delete", "namespace", "elsewhere", "--ignore-not-found")


def test_a_secret_that_disappears_is_said_and_a_new_one_is_taken(release: Release) -> None:
    release.cluster.kubectl("delete", "secret", f"--namespace={NAMESPACE}", SECRET)
    verdict = release.wait_verdict(NODE, "False", "SecretUnusable")
    assert SECRET in verdict.message
    assert SECRET in release.wait_event(NODE, "ApparateSecretUnusable")
    release.chart.upgrade()
    release.wait_ready(NODE)


def test_a_registry_that_is_not_trusted_makes_an_ordinary_pull_and_is_named(
    release: Release, namespace: Namespace, mixed: Cluster
) -> None:
    """containerd 1.4 trusts it by its own configuration, we by certs.d, which is gone for a while."""
    machine = mixed.machines[NODE]
    machine.run("mv", CERTIFICATES, "/root/certs.d")
    assert_full(start(namespace, "distrusted", DISTRUSTED, node=NODE), DISTRUSTED)
    assert "certificate" in machine.status_of(APPARATE, "why", DISTRUSTED.lazy)[1]
    assert "certificate" in release.wait_event(NODE, "ApparateImageFallback")
    machine.run("mv", "/root/certs.d", CERTIFICATES)
    assert_lazy(start(namespace, "trusted", TRUSTED, node=NODE), TRUSTED)
