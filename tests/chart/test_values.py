"""Values that are wrong are refused before anything is changed, with a sentence that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.support.helm import HELMS, MONITORING, documents, template

SECRET = "hunter2"
"""What must never be in a message."""
_CREDENTIAL = f"dockerUsername: u, dockerPassword: {SECRET}"
BAD = {
    "server missing": (
        f"imagePullSecretsCrs: {{{_CREDENTIAL}}}",
        "imagePullSecretsCrs.dockerServer is empty; give the host of the registry",
    ),
    "server empty in a list": (
        f"imagePullSecretsCrs: [{{{_CREDENTIAL}, dockerServer: r.internal}}, {{{_CREDENTIAL}, dockerServer: ''}}]",
        "imagePullSecretsCrs[1].dockerServer is empty; give the host of the registry",
    ),
    "server with a scheme": (
        f"imagePullSecretsCrs: {{{_CREDENTIAL}, dockerServer: 'https://r.internal:5000'}}",
        "without scheme, path and blanks: r.internal:5000",
    ),
    "server with a path": (
        f"imagePullSecretsCrs: {{{_CREDENTIAL}, dockerServer: r.internal/v2/team}}",
        'imagePullSecretsCrs.dockerServer is "r.internal/v2/team"; give the host of the registry, and its port if need be',
    ),
    "server with a blank": (
        f"imagePullSecretsCrs: {{{_CREDENTIAL}, dockerServer: 'r.internal '}}",
        "without scheme, path and blanks: r.internal",
    ),
    "server that is a number": (
        f"imagePullSecretsCrs: {{{_CREDENTIAL}, dockerServer: 10}}",
        "imagePullSecretsCrs.dockerServer is not text; put it in quotes",
    ),
    "password missing": (
        "imagePullSecretsCrs: {dockerUsername: u, dockerServer: r.internal}",
        "imagePullSecretsCrs.dockerPassword is empty; a registry that needs no credentials needs no entry either",
    ),
    "password that is a number": (
        "imagePullSecretsCrs: {dockerUsername: u, dockerPassword: 2024, dockerServer: r.internal}",
        "imagePullSecretsCrs.dockerPassword is not text; put it in quotes, on the command line with --set-string",
    ),
    "password with a line break": (
        f'imagePullSecretsCrs: {{dockerUsername: u, dockerPassword: "{SECRET}\\n", dockerServer: r.internal}}',
        "imagePullSecretsCrs.dockerPassword begins or ends with a blank or a line break; remove it",
    ),
    "user name that is a number": (
        f"imagePullSecretsCrs: {{dockerUsername: 100, dockerPassword: {SECRET}, dockerServer: r.internal}}",
        "imagePullSecretsCrs.dockerUsername is not text; put it in quotes",
    ),
    "user name with a colon": (
        f"imagePullSecretsCrs: {{dockerUsername: 'u:v', dockerPassword: {SECRET}, dockerServer: r.internal}}",
        "imagePullSecretsCrs.dockerUsername contains a colon",
    ),
    "unknown key of a credential": (
        f"imagePullSecretsCrs: {{{_CREDENTIAL}, dockerServr: r.internal}}",
        "imagePullSecretsCrs.dockerServr is unknown; the keys are dockerUsername, dockerPassword, dockerServer",
    ),
    "same server twice": (
        f"imagePullSecretsCrs: [{{{_CREDENTIAL}, dockerServer: r.internal}}, {{{_CREDENTIAL}, dockerServer: r.internal}}]",
        "imagePullSecretsCrs names r.internal twice; keep one of the two entries",
    ),
    "credential that is a string": (
        "imagePullSecretsCrs: [r.internal]",
        "imagePullSecretsCrs[0] is a string; give a map of dockerUsername, dockerPassword and dockerServer",
    ),
    "credentials that are a string": (
        "imagePullSecretsCrs: r.internal",
        "at '/imagePullSecretsCrs': got string, want ",
    ),
    "image empty": ("image: ''", "image is empty; give a reference such as"),
    "image with a scheme": (
        "image: 'https://r.internal/a:1'",
        "give it without a scheme and without blanks: r.internal/a:1",
    ),
    "image that is a number": ("image: 1", "at '/image': got number, want "),
    "image latest": ("image: r.internal/a:latest", "image: r.internal/a:latest has the tag latest"),
    "image tag latest": ("image: {tag: latest}", "name a version, such as 1.0.0"),
    "image tag that is a number": ("image: {tag: 1.1}", "at '/image/tag': got number, want string"),
    "image with a tag in the repository": ("image: {repository: 'a/b:1'}", "give the tag as image.tag"),
    "image without a repository": ("image: {repository: ''}", "image.repository is empty"),
    "image registry with a scheme": ("image: {registry: 'https://r.internal/'}", "give the host alone: r.internal"),
    "image digest cut off": ("image: {digest: 'sha256:12'}", "give sha256: and 64 hexadecimal digits"),
    "image with an unknown key": ("image: {name: a}", "additional properties 'name' not allowed"),
    "image missing": ("image: null", "missing property 'image'"),
    "unknown value": ("imagePullSecretCrs: {}", "additional properties 'imagePullSecretCrs' not allowed"),
    "no turn at all": ("maxUnavailable: 0", "at '/maxUnavailable': minimum: got 0, want 1"),
    "turns in percent": ("maxUnavailable: 10%", "at '/maxUnavailable': got string, want integer"),
    "privileged port": ("port: 80", "at '/port': minimum: got 80, want 1,024"),
    "every namespace": ("followNamespaces: ['*']", "name each namespace"),
    "namespace twice": ("followNamespaces: [a, a]", "at '/followNamespaces': items at 0 and 1 are equal"),
    "other label": ("nodeSelector: {cloud.tencent.com/apparate: 'false'}", 'is always "true"; leave it out'),
    "secret without a name": ("imagePullSecrets: [{}]", "give the name of a Secret in the release's namespace"),
    "both monitors": (
        "{podMonitor: {enabled: true}, serviceMonitor: {enabled: true}}",
        "would read every metric twice; enable one of them",
    ),
    "switch that is a string": ("dashboard: {enabled: 'yes'}", "at '/dashboard/enabled': got string, want boolean"),
}
ODD = {
    "empty list of credentials": "imagePullSecretsCrs: []",
    "no credentials": "imagePullSecretsCrs: null",
    "server by address": f"imagePullSecretsCrs: {{{_CREDENTIAL}, dockerServer: '10.0.0.1:5000'}}",
    "server by IPv6 address": f"imagePullSecretsCrs: {{{_CREDENTIAL}, dockerServer: '[fd00::1]:5000'}}",
    "values of other charts": "global: {storageClass: fast}",
    "no tolerations": "tolerations: []",
    "no priority": "priorityClassName: ''",
    "long name": f"fullnameOverride: {'a' * 80}",
}


def _file(folder: Path, text: str) -> Path:
    path = folder / "values.yaml"
    path.write_text(text)
    assert isinstance(yaml.safe_load(text), dict)
    return path


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize("case", BAD)
def test_bad_values_are_refused_with_the_fix(case: str, program: str, tmp_path: Path) -> None:
    text, sentence = BAD[case]
    answer = template([_file(tmp_path, text)], apis=[MONITORING], program=program)
    assert answer.code == 1
    assert sentence in answer.errors
    assert SECRET not in answer.errors + answer.output
    assert answer.output == ""


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize("case", ODD)
def test_odd_values_are_taken(case: str, program: str, tmp_path: Path) -> None:
    objects = documents(template([_file(tmp_path, ODD[case])], program=program))
    assert all(len(each["metadata"]["name"]) <= 63 for each in objects)


@pytest.mark.parametrize("switch", ["podMonitor", "serviceMonitor", "prometheusRule"])
def test_what_needs_the_operator_says_so_where_there_is_none(switch: str) -> None:
    answer = template(settings=[f"{switch}.enabled=true"])
    assert answer.code == 1
    assert f"{switch}.enabled needs the Prometheus operator" in answer.errors
    assert f"or set {switch}.enabled=false" in answer.errors


def test_an_older_kubernetes_is_refused() -> None:
    answer = template(kube="1.15.12")
    assert answer.code == 1
    assert "requires kubeVersion: >=1.16.0-0" in answer.errors


@pytest.mark.parametrize("version", ["v1.34.4-gke.100", "v1.29.5+k3s1", "v1.33.1-eks-b9364f6"])
def test_versions_of_providers_are_understood(version: str) -> None:
    (daemon_set,) = (each for each in documents(template(kube=version)) if each["kind"] == "DaemonSet")
    assert "startupProbe" in daemon_set["spec"]["template"]["spec"]["containers"][0]


def test_oldest_kubernetes_keeps_the_priority_where_it_allows_it() -> None:
    for namespace, priority in {"kube-system": "system-node-critical", "elsewhere": None}.items():
        objects = documents(template(kube="1.16.15", namespace=namespace))
        (daemon_set,) = (each for each in objects if each["kind"] == "DaemonSet")
        assert daemon_set["spec"]["template"]["spec"].get("priorityClassName") == priority
