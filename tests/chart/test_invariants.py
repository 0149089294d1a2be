"""What holds for every rendering, whatever the values and the version of Kubernetes (style: chart)."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from tests.chart.renders import FEATURES, NAMESPACE, VERSIONS, one, rendered
from tests.support.helm import Document, containers, documents, pod_specs, template

LABEL = "cloud.tencent.com/apparate"
AGENT_PAGE = Path(__file__).parents[2] / "snapshotter/docs/agent.md"
PRIVILEGED = {"prepare", "remove"}
UNDER_TEST = {"lazy", "ordinary"}
AGENT_FOLDERS = {"/etc/apparate", "/run/apparate", "/var/lib/apparate"}
WITH_AGENT = tuple(feature for feature in FEATURES if feature != "remove")

every = pytest.mark.parametrize(("feature", "version"), [(one, two) for one in FEATURES for two in VERSIONS])
agents = pytest.mark.parametrize(("feature", "version"), [(one, two) for one in WITH_AGENT for two in VERSIONS])


def _secrets(objects: tuple[Document, ...]) -> list[str]:
    """Return every password that is in a pull Secret among *objects*."""
    found = []
    for each in objects:
        if each["kind"] == "Secret":
            auths = json.loads(base64.b64decode(each["data"][".dockerconfigjson"]))["auths"]
            found += [entry["password"] for entry in auths.values()]
    return found


@every
def test_only_what_changes_the_host_is_privileged(feature: str, version: str) -> None:
    for _, spec in pod_specs(rendered(feature, version)):
        names = {container["name"] for container in containers(spec)}
        assert spec.get("hostPID", False) == bool(names & PRIVILEGED)
        assert not spec.get("hostNetwork")
        assert not spec.get("hostIPC")
        for container in containers(spec):
            if container["name"] in UNDER_TEST:
                assert not container.get("securityContext")
                continue
            rights = container["securityContext"]
            assert rights["privileged"] == (container["name"] in PRIVILEGED)
            assert rights["readOnlyRootFilesystem"]
            if container["name"] not in PRIVILEGED:
                assert not rights["allowPrivilegeEscalation"]
                assert rights["capabilities"]["drop"] == ["ALL"]
                assert rights["capabilities"].get("add", []) == (
                    ["DAC_OVERRIDE"] if container["name"] == "agent" else []
                )


@every
def test_every_container_has_limits_a_last_word_and_a_fixed_image(feature: str, version: str) -> None:
    for _, spec in pod_specs(rendered(feature, version)):
        for container in containers(spec):
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
            assert re.search(r":[^/@]+(@sha256:[0-9a-f]{64})?$", container["image"])
            assert ":latest" not in container["image"]


@every
def test_the_hosts_folders_are_the_documented_ones(feature: str, version: str) -> None:
    allowed = {"prepare": {"/host"}, "remove": {"/host"}, "agent": AGENT_FOLDERS, "check": {"/run/apparate"}}
    for _, spec in pod_specs(rendered(feature, version)):
        paths = {volume["name"]: volume["hostPath"]["path"] for volume in spec.get("volumes", [])}
        used = set()
        for container in containers(spec):
            mounts = container.get("volumeMounts", [])
            assert {mount["mountPath"] for mount in mounts} == allowed.get(container["name"], set())
            for mount in mounts:
                used.add(mount["name"])
                assert paths[mount["name"]] == (mount["mountPath"] if mount["mountPath"] != "/host" else "/")
                assert mount.get("mountPropagation", "None") in {"None", "HostToContainer"}
                if mount["mountPath"] in {"/run/apparate", "/host"}:  # below them the host mounts and unmounts
                    assert mount["mountPropagation"] == "HostToContainer"
        assert used == set(paths)


@every
def test_pods_go_to_labelled_or_named_nodes_only(feature: str, version: str) -> None:
    for _, spec in pod_specs(rendered(feature, version)):
        named = "affinity" in spec and "matchFields" in json.dumps(spec["affinity"])
        assert spec.get("nodeSelector", {}).get(LABEL) == "true" or named
        assert spec["enableServiceLinks"] is False


@every
def test_a_password_is_in_its_secret_and_nowhere_else(feature: str, version: str) -> None:
    objects = rendered(feature, version)
    others = json.dumps([each for each in objects if each["kind"] != "Secret"])
    for password in _secrets(objects):
        assert json.dumps(password)[1:-1] not in others
        assert base64.b64encode(password.encode()).decode().rstrip("=") not in others


@every
def test_rights_are_named_one_by_one(feature: str, version: str) -> None:
    for each in rendered(feature, version):
        for rule in each.get("rules", []) if each["kind"] in {"Role", "ClusterRole"} else []:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            if "secrets" in rule["resources"]:
                assert each["kind"] == "Role"
                assert bool(rule.get("resourceNames")) == (each["metadata"]["namespace"] == NAMESPACE)
                assert rule["verbs"] == ["list", "watch"]


@every
def test_what_is_referred_to_is_there(feature: str, version: str) -> None:
    objects = rendered(feature, version)
    names = {(each["kind"], each["metadata"]["name"]) for each in objects}
    for _, spec in pod_specs(objects):
        assert ("ServiceAccount", spec["serviceAccountName"]) in names
        assert spec["automountServiceAccountToken"] == any(
            container["name"] in PRIVILEGED for container in containers(spec)
        )
        for container in containers(spec):
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("configMapKeyRef")
                assert reference is None or ("ConfigMap", reference["name"]) in names
    for each in objects:
        if each["kind"] in {"RoleBinding", "ClusterRoleBinding"}:
            assert (each["roleRef"]["kind"], each["roleRef"]["name"]) in names
            assert all(("ServiceAccount", subject["name"]) in names for subject in each["subjects"])


@every
def test_objects_say_what_they_belong_to(feature: str, version: str) -> None:
    for each in rendered(feature, version):
        labels = each["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "apparate"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert len(each["metadata"]["name"]) <= 63


@agents
def test_daemon_set_is_as_a_node_needs_it(feature: str, version: str) -> None:
    objects = rendered(feature, version)
    daemon_set = one(objects, "DaemonSet")
    spec = daemon_set["spec"]["template"]["spec"]
    (prepare,), (agent,) = spec["initContainers"], spec["containers"]
    assert (prepare["name"], agent["name"]) == ("prepare", "agent")
    assert spec.get("priorityClassName") == (None if version.startswith("1.16.") else "system-node-critical")
    if feature != "fleet":
        assert spec["tolerations"] == [{"operator": "Exists"}]
    port = {"httpGet": {"path": "/livez", "port": "metrics"}}
    assert agent["livenessProbe"].items() >= port.items()
    assert agent["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert ("startupProbe" in agent) == (not version.startswith("1.16."))
    update = daemon_set["spec"]["updateStrategy"]
    assert update["type"] == "RollingUpdate"
    turns = int(_environment(agent)["APPARATE_MAX_UNAVAILABLE"])
    assert update["rollingUpdate"]["maxUnavailable"] == turns
    leases = [
        rule for rule in one(objects, "Role", daemon_set["metadata"]["name"])["rules"] if "leases" in rule["resources"]
    ]
    assert leases[1]["resourceNames"] == [f"apparate-prepare-{turn}" for turn in range(turns)]


@agents
def test_selector_is_fixed_and_matches_the_pods(feature: str, version: str) -> None:
    daemon_set = one(rendered(feature, version), "DaemonSet")
    selector = daemon_set["spec"]["selector"]["matchLabels"]
    assert set(selector) == {f"app.kubernetes.io/{part}" for part in ("name", "instance", "component")}
    assert selector.items() <= daemon_set["spec"]["template"]["metadata"]["labels"].items()


def _environment(container: Document) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container["env"]}


@agents
def test_environment_is_the_documented_one(feature: str, version: str) -> None:
    """docs/agent.md fixes what the chart sets and the agent reads."""
    table = AGENT_PAGE.read_text().partition("## Environment")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    assert "APPARATE_SECRETS" in documented
    spec = one(rendered(feature, version), "DaemonSet")["spec"]["template"]["spec"]
    both = set(_environment(spec["initContainers"][0])) | set(_environment(spec["containers"][0]))
    assert both == documented
    assert spec["initContainers"][0]["command"][1:] == ["agent", "prepare"]
    assert spec["containers"][0]["command"][1:] == ["agent", "run"]


def test_secrets_are_named_to_the_agent_and_used_for_its_own_image() -> None:
    for feature, names in {
        "credentials": ["apparate-pull"],
        "existing-secrets": ["registry-internal", "registry-team"],
        "air-gapped": ["mirror"],
        "no-credentials": [],
    }.items():
        objects = rendered(feature)
        spec = one(objects, "DaemonSet")["spec"]["template"]["spec"]
        assert [each["name"] for each in spec.get("imagePullSecrets", [])] == names
        assert _environment(spec["containers"][0])["APPARATE_SECRETS"] == ",".join(names)
        rules = one(objects, "Role", "apparate")["rules"]
        assert [rule["resourceNames"] for rule in rules if "secrets" in rule["resources"]] == ([names] if names else [])


def test_a_secret_holds_what_was_given_whatever_its_characters() -> None:
    secret = one(rendered("credentials"), "Secret")
    assert secret["type"] == "kubernetes.io/dockerconfigjson"
    ((server, entry),) = json.loads(base64.b64decode(secret["data"][".dockerconfigjson"]))["auths"].items()
    assert server == "demo.tencentcloudcr.com"
    assert (entry["username"], entry["password"]) == ("100012345678", 'pa:ss"w\\örd')
    assert base64.b64decode(entry["auth"]).decode() == '100012345678:pa:ss"w\\örd'


def test_a_list_of_credentials_gives_one_secret() -> None:
    secret = one(rendered("credentials-list"), "Secret")
    auths = json.loads(base64.b64decode(secret["data"][".dockerconfigjson"]))["auths"]
    assert {server: entry["username"] for server, entry in auths.items()} == {
        "demo.tencentcloudcr.com": "one",
        "registry.internal:5000": "two",
    }


def test_followed_namespaces_give_rights_there_and_nowhere_else() -> None:
    objects = rendered("existing-secrets")
    for namespace in ("team-a", "team-b"):
        (role,) = (each for each in objects if each["kind"] == "Role" and each["metadata"]["namespace"] == namespace)
        assert role["rules"] == [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list", "watch"]}]
    assert {each["metadata"].get("namespace") for each in objects} == {None, NAMESPACE, "default", "team-a", "team-b"}


def test_a_new_password_rolls_no_pod() -> None:
    def render(password: str) -> list[Document]:
        given = {"dockerUsername": "user", "dockerPassword": password, "dockerServer": "registry.internal"}
        return documents(template(settings=[f"imagePullSecretsCrs.{name}={value}" for name, value in given.items()]))

    before, after = render("old"), render("new")
    assert [each["kind"] for each, other in zip(before, after, strict=True) if each != other] == ["Secret"]


@pytest.mark.parametrize(
    ("settings", "image"),
    [
        (["image.registry=r.internal"], "r.internal/apparate/apparate:1.0.0"),
        (["image.registry=r.internal", "image.tag=1.0.1"], "r.internal/apparate/apparate:1.0.1"),
        (["image.registry=", "image.repository=r.internal/a"], "r.internal/a:1.0.0"),
        (["global.imageRegistry=mirror:5000"], "mirror:5000/apparate/apparate:1.0.0"),
        (["image=r.internal:5000/a/b"], "r.internal:5000/a/b:1.0.0"),
        (["image=r.internal/a/b:2@sha256:" + "0" * 64], "r.internal/a/b:2@sha256:" + "0" * 64),
        (["image=r.internal/a/b@sha256:" + "0" * 64], "r.internal/a/b@sha256:" + "0" * 64),
        (["image=r.internal/a/b:2", "global.imageRegistry=mirror"], "mirror/a/b:2"),
        (["image=a/b:2", "global.imageRegistry=mirror"], "mirror/a/b:2"),
    ],
)
def test_image_by_map_by_string_and_by_mirror(settings: list[str], image: str) -> None:
    spec = one(tuple(documents(template(settings=settings))), "DaemonSet")["spec"]["template"]["spec"]
    assert {container["image"] for container in containers(spec)} == {image}


def test_removal_is_one_job_for_each_node_and_nothing_that_stays() -> None:
    objects = rendered("remove")
    kinds = [each["kind"] for each in objects]
    assert sorted(set(kinds)) == ["ClusterRole", "ClusterRoleBinding", "Job", "Secret", "ServiceAccount"]
    jobs = [each for each in objects if each["kind"] == "Job"]
    nodes = [job["metadata"]["annotations"]["apparate.cloud.tencent.com/node"] for job in jobs]
    assert len(nodes) == 2
    assert one(objects, "ClusterRole")["rules"][0]["resourceNames"] == nodes
    for job, node in zip(jobs, nodes, strict=True):
        terms = job["spec"]["template"]["spec"]["affinity"]["nodeAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]
        assert terms["nodeSelectorTerms"] == [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
        ]
        (container,) = containers(job["spec"]["template"]["spec"])
        assert container["command"][1:] == ["agent", "remove"]
