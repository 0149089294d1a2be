"""The chart on a real Kubernetes, installed as its users are told: labels, lazy pods, credentials, upgrades, kills."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cluster import secrecy
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.helm import NAMESPACE, Chart, Helm
from tests.support.cluster.images import APPS, TOOL, version_in
from tests.support.cluster.layout import LATE_NODE, MIXED
from tests.support.cluster.pods import Namespace
from tests.support.cluster.proofs import APPARATE, READ_ALL, Reader, assert_full, assert_lazy, start
from tests.support.cluster.registry import USER
from tests.support.cluster.release import Release
from tests.support.cluster.workers import Workers

pytestmark = [pytest.mark.root, pytest.mark.fuse]

LABELLED = MIXED.labelled
CASES, LATE, REFUSED, LOADED, REBOOTED = APPS[0], APPS[1], APPS[2], APPS[3], APPS[4]
WITHIN_S = 60.0
"""How soon right credentials must work again."""
CREDENTIALS = f"/etc/apparate/credentials/chart-{NAMESPACE}_apparate-pull.json"
OURS = ("apparate-loader.service", "apparate-snapshotter.service")


@pytest.fixture(scope="module")
def release(
    mixed: Cluster, workers: Workers, packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Release]:
    """The chart, installed with helm 3 on nodes that nobody has prepared; the password is in nobody's command line meanwhile."""
    workers.want("chart", lambda _: None, ())
    folder = tmp_path_factory.mktemp("chart")
    helm = Helm(folder / "bin", mixed.kubeconfig, "helm-3")
    chart = Chart.packaged(helm, folder, version_in(packages), mixed.site.registry)
    made = Release(mixed, chart)
    registry = mixed.site.registry
    with secrecy.nobody_says(secrecy.forms(USER, registry.password, registry.docker_config())):
        chart.install()
        made.wait_ready(*LABELLED)
    yield made
    chart.uninstall()


def test_labelled_nodes_get_the_agent_and_no_other(release: Release, mixed: Cluster, packages: Path) -> None:
    assert set(release.agents()) == set(LABELLED)
    for node in LABELLED:
        assert release.verdict(node).status == "True"
        assert release.annotation(node, "mode") == "lazy"
        assert release.annotation(node, "version") == version_in(packages)
        assert release.annotation(node, "driver")
    assert release.verdict(LATE_NODE.name).status == ""
    assert mixed.machines[LATE_NODE.name].status_of("test", "-e", "/opt/apparate")[0]


@pytest.mark.parametrize("node", LABELLED)
def test_on_a_labelled_node_accelerated_images_are_lazy_and_plain_ones_are_not(
    release: Release, namespace: Namespace, node: str
) -> None:
    assert_lazy(start(namespace, "accelerated", CASES, node=node), CASES)
    assert_full(start(namespace, "plain", CASES, node=node, lazy=False), CASES)
    said = release.cluster.kubectl.exec(NAMESPACE, release.agent(node), APPARATE, "images")
    assert CASES.lazy in said
    assert CASES.plain in said
    assert namespace.exec("accelerated", *READ_ALL).split()[0] == CASES.all_digest


@pytest.mark.usefixtures("release")
def test_on_an_unlabelled_node_both_are_pulled_in_full(namespace: Namespace) -> None:
    assert_full(start(namespace, "accelerated", CASES, node=LATE_NODE.name), CASES)
    assert_full(start(namespace, "plain", LATE, node=LATE_NODE.name, lazy=False), LATE)


def test_a_node_that_is_labelled_later_becomes_ready_and_leaves_again(
    release: Release, namespace: Namespace, mixed: Cluster
) -> None:
    node = LATE_NODE.name
    mixed.label(node)
    try:
        release.wait_ready(*LABELLED, node)
        assert_lazy(start(namespace, "lazy", LATE, node=node), LATE)
        before = namespace.status("lazy")
    finally:
        mixed.label(node, None)
    release.wait_ready(*LABELLED)
    mixed.wait(lambda: release.annotation(node, "mode") == "ordinary", f"{node} is ordinary")
    assert_full(start(namespace, "ordinary", REFUSED, node=node), REFUSED)
    assert namespace.exec("lazy", *READ_ALL).split()[0] == LATE.all_digest
    after = namespace.status("lazy")
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)


def test_helm_test_passes(release: Release) -> None:
    settings = {"lazyImage": CASES.lazy, "ordinaryImage": TOOL, "lazyCommand[0]": "true", "ordinaryCommand[0]": "true"}
    release.chart.upgrade(
        *(word for key, value in settings.items() for word in ("--set-string", f"tests.{key}={value}"))
    )
    try:
        assert release.chart.helm("test", "apparate", "--logs", "--timeout=120s").count("Succeeded") == 2
    finally:
        release.chart.upgrade("--reset-values")


def test_a_wrong_password_is_said_and_the_right_one_works_within_a_minute(
    release: Release, namespace: Namespace, mixed: Cluster
) -> None:
    for node in LABELLED:
        mixed.machines[node].run("test", "-e", CREDENTIALS)
    before = {node: mixed.machines[node].run("cat", CREDENTIALS) for node in LABELLED}
    release.chart.upgrade("--set", "imagePullSecretsCrs.dockerPassword=wrong")
    for node in LABELLED:
        machine = mixed.machines[node]
        mixed.wait(lambda m=machine, n=node: m.run("cat", CREDENTIALS) != before[n], f"{node} has it")  # type: ignore[misc]  # bound now
        namespace.create_pod(f"refused-{node}", REFUSED.lazy, node=node)
        release.wait_verdict(node, "False", "CredentialsRefused")
        release.wait_event(node, "ApparateCredentialsRefused")
        assert "401" in "".join(machine.journal(unit) for unit in OURS)
        namespace.wait_ready(f"refused-{node}")  # it has its own credentials, and is pulled in full
        namespace.delete_pod(f"refused-{node}")
    release.chart.upgrade()
    for node in LABELLED:
        release.wait_verdict(node, "True", "Ready", WITHIN_S)
        assert_lazy(start(namespace, f"again-{node}", LOADED, node=node), LOADED)


def test_the_password_is_on_a_node_in_one_file_of_root(release: Release, mixed: Cluster) -> None:
    registry = mixed.site.registry
    words = secrecy.forms(USER, registry.password, registry.docker_config())
    for node in LABELLED:
        machine = mixed.machines[node]
        assert machine.run("stat", "-c", "%a %U", CREDENTIALS) == "600 root\n"
        assert secrecy.places_with(machine, words, spared=(CREDENTIALS,)) == []
        said = release.logs(node) + "\n".join(release.events(node))
        assert not [word for word in words if word in said]


def test_an_upgrade_kills_and_restarts_under_load_are_not_noticed(
    release: Release, namespace: Namespace, mixed: Cluster, next_packages: Path, packages: Path
) -> None:
    """A pod on each node reads its lazy image all the time; everything of ours is replaced, restarted or killed meanwhile."""
    readers = {node: Reader.start(namespace, f"reader-{node}", LOADED, node) for node in LABELLED}
    release.chart.upgrade("--set", f"image.tag={version_in(next_packages)}")
    release.wait_ready(*LABELLED)
    for node, reader in readers.items():
        machine = mixed.machines[node]
        assert machine.run("readlink", "-f", "/opt/apparate/current").strip().endswith(version_in(next_packages))
        reader.goes_on()
        release.restart(node)
        machine.run("systemctl", "kill", "--signal=KILL", *OURS)
        reader.goes_on()
        machine.run("systemctl", "restart", "kubelet.service")
        machine.run("systemctl", "restart", "containerd.service")
        reader.goes_on()
    release.wait_ready(*LABELLED)
    release.chart.upgrade()
    release.wait_ready(*LABELLED)
    for node, reader in readers.items():
        assert (
            mixed.machines[node].run("readlink", "-f", "/opt/apparate/current").strip().endswith(version_in(packages))
        )
        reader.goes_on()
        reader.assert_unharmed()


def test_after_a_power_cut_without_registry_and_api_server_pods_come_back(
    release: Release, namespace: Namespace, mixed: Cluster
) -> None:
    for node in LABELLED:
        namespace.start_pod(f"lazy-{node}", REBOOTED.lazy, node=node)
        mixed.machines[node].run(APPARATE, "complete", REBOOTED.lazy)
    mixed.site.registry.stop()
    mixed.control.power_cut()
    for node in LABELLED:
        mixed.machines[node].power_cut()
    for node in LABELLED:
        mixed.machines[node].power_on()
    for node in LABELLED:
        mixed.machines[node].wait_booted()
        mixed.machines[node].run("systemctl", "is-active", *OURS)
    mixed.control.power_on()
    for node in LABELLED:
        namespace.wait_restarted(f"lazy-{node}")
        assert namespace.exec(f"lazy-{node}", *READ_ALL).split()[0] == REBOOTED.all_digest
    mixed.site.registry.start()
    release.wait_ready(*LABELLED)
