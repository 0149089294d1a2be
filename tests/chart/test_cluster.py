"""What a cluster contains decides too: refusals before anything is made, and notes that say what to do next."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.chart.api import Cluster, notes, warnings
from tests.support.helm import HELMS

LABEL = "cloud.tencent.com/apparate"
IMAGE = "image=r.internal/apparate/apparate:1.0.0"
CREDENTIALS = tuple(
    f"imagePullSecretsCrs.{name}={value}"
    for name, value in {"dockerUsername": "me", "dockerPassword": "hunter2", "dockerServer": "r.internal"}.items()
)

programs = pytest.mark.parametrize("program", HELMS)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """A cluster with one node that carries the label."""
    made = Cluster(tmp_path)
    made.node("node-1", **{LABEL: "true"})
    made.namespace("default")
    return made


@programs
def test_notes_say_the_next_commands(cluster: Cluster, program: str) -> None:
    answer = cluster.install(program, IMAGE, *CREDENTIALS)
    assert warnings(answer) == []
    for command in (
        "kubectl label node NAME cloud.tencent.com/apparate=true",
        "kubectl -n default rollout status daemonset/apparate",
        "kubectl get nodes -l cloud.tencent.com/apparate=true -o custom-columns=",
    ):
        assert f"\n  {command}" in notes(answer)
    assert "helm test" not in notes(answer)
    assert "hunter2" not in notes(answer)


@programs
def test_notes_name_the_test_if_there_is_one(cluster: Cluster, program: str) -> None:
    answer = cluster.install(program, IMAGE, *CREDENTIALS, "tests.lazyImage=r.internal/app:v1-apparate")
    assert "\n  helm test apparate -n default --logs" in notes(answer)


@programs
def test_a_cluster_without_the_label_is_said(cluster: Cluster, program: str) -> None:
    cluster.objects.clear()
    cluster.node("node-1", other="true")
    (warning,) = warnings(cluster.install(program, IMAGE, *CREDENTIALS))
    assert "no node carries the label yet, so nothing runs: kubectl label node NAME" in warning


@programs
def test_missing_credentials_are_said(cluster: Cluster, program: str) -> None:
    (warning,) = warnings(cluster.install(program, IMAGE))
    assert "there are no credentials (imagePullSecretsCrs, imagePullSecrets)" in warning


@programs
def test_a_named_secret_that_is_not_there_is_said(cluster: Cluster, program: str) -> None:
    (warning,) = warnings(cluster.install(program, IMAGE, "imagePullSecrets={registry}"))
    assert "there is no Secret registry in namespace default; it is used as soon as there is one" in warning


@programs
def test_policies_that_ended_are_said(cluster: Cluster, program: str) -> None:
    (warning,) = warnings(cluster.install(program, IMAGE, *CREDENTIALS, "podSecurityPolicy=true"))
    assert "this Kubernetes has no such policies any more" in warning


@programs
def test_the_image_that_stands_for_yours_is_refused(cluster: Cluster, program: str) -> None:
    answer = cluster.install(program, *CREDENTIALS)
    assert answer.code == 1
    assert "push the image that `make package` builds to a registry of yours and name it: --set image=" in answer.errors


@programs
def test_a_second_release_is_refused(cluster: Cluster, program: str) -> None:
    cluster.release("lazy", "node-system")
    answer = cluster.install(program, IMAGE)
    assert answer.code == 1
    assert "this cluster has apparate already, as release lazy in namespace node-system" in answer.errors
    assert "helm upgrade lazy -n node-system" in answer.errors


@programs
def test_the_same_release_is_no_second_one(cluster: Cluster, program: str) -> None:
    cluster.release("apparate", "default")
    assert warnings(cluster.install(program, IMAGE, *CREDENTIALS)) == []


@programs
@pytest.mark.parametrize("level", ["baseline", "restricted"])
def test_a_namespace_that_admits_no_privileged_pod_is_refused(cluster: Cluster, level: str, program: str) -> None:
    cluster.namespace("strict", **{"pod-security.kubernetes.io/enforce": level})
    answer = cluster.install(program, IMAGE, namespace="strict")
    assert answer.code == 1
    assert f"namespace strict admits only pods of level {level}" in answer.errors
    assert "kubectl label --overwrite namespace strict pod-security.kubernetes.io/enforce=privileged" in answer.errors


@programs
def test_removal_waits_for_the_end_of_the_release(cluster: Cluster, program: str) -> None:
    cluster.release("lazy", "node-system")
    answer = cluster.install(program, IMAGE, "removeFrom={node-1}")
    assert answer.code == 1
    assert "apparate is still installed and would come back; first: helm uninstall lazy -n node-system" in answer.errors


@programs
def test_removal_says_how_it_goes_on(cluster: Cluster, program: str) -> None:
    text = notes(cluster.install(program, IMAGE, "removeFrom={node-1}"))
    assert "apparate is being removed from 1 node(s)" in text
    assert "\n  helm uninstall apparate -n default" in text
