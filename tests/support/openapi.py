"""The API schemas of Kubernetes versions, and of the Prometheus operator, as judges of rendered objects.

    python -m tests.support.openapi          # fetch all of them into the cache

They come from the published Go modules, whose checksums are fixed here. Of each only what our objects use is kept, without
descriptions, so a cached schema is some 100 KB instead of 5 MB. Unknown fields are refused, as `kubectl --validate=strict` does.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator
from tests.support.peers import cache_root, published

SUMS = {
    "1.16.15": "h1:JNIbOrzvNRcGO07TVvTosW5ubMwc5LfuQdu7cy104Dg=",
    "1.20.15": "h1:eGwdo4cRbRbi3AuFxQxzKz/uObB8nFt7eNhc3/KN4r0=",
    "1.25.16": "h1:pdtEdre7aInDvXas+mWzpTiK/7cpcaGRyYB+Bedr2+Q=",
    "1.30.14": "h1:MrlKXh9uhLIJpyxOeXhcndzRVSvwiV9iJ8NgH8nqPsg=",
    "1.37.2": "h1:A2VDEiObzkYqFTKhSsn0ZEb0RlLEXpHWj93gi2HqEwE=",
}
"""Versions of Kubernetes for which the chart is rendered: the oldest, the newest, and where APIs came and went between."""
OPERATOR = (
    "github.com/prometheus-operator/prometheus-operator@v0.85.0",
    "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
)
KINDS = {
    "v1": ("ConfigMap", "Pod", "ResourceQuota", "Secret", "Service", "ServiceAccount"),
    "apps/v1": ("DaemonSet",),
    "batch/v1": ("Job",),
    "networking.k8s.io/v1": ("NetworkPolicy",),
    "policy/v1beta1": ("PodSecurityPolicy",),
    "rbac.authorization.k8s.io/v1": ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"),
}
"""What the chart may consist of; a kind that a version does not have is not in its schema."""
OPERATOR_KINDS = {"PodMonitor": "podmonitors", "ServiceMonitor": "servicemonitors", "PrometheusRule": "prometheusrules"}
_KEPT = ("type", "format", "items", "required", "properties", "additionalProperties", "enum", "pattern", "$ref")
_SPECIAL = {
    "int-or-string": {"type": ["integer", "string"]},
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": ["string", "number"]},
}


def problems(document: Mapping[str, Any], version: str) -> list[str]:
    """Return what Kubernetes *version* would refuse in *document*: one line for each."""
    name = f"{document['apiVersion']} {document['kind']}"
    validator = _validators(version).get(name)
    if validator is None:
        return [f"Kubernetes {version} has no {name}"]
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


@functools.cache
def _validators(version: str) -> dict[str, Draft7Validator]:
    schema = json.loads(_cached(version).read_text())
    operator = json.loads(_cached("operator").read_text())
    found = {name: Draft7Validator({**schema, "$ref": reference}) for name, reference in schema["kinds"].items()}
    return found | {name: Draft7Validator(one) for name, one in operator.items()}


def _cached(name: str) -> Path:
    key = hashlib.sha256(f"{SUMS.get(name, OPERATOR)} {Path(__file__).read_text()}".encode()).hexdigest()[:16]
    path = cache_root() / "openapi" / f"{name}-{key}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = dict(_operator()) if name == "operator" else _kubernetes(name)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(made))
        scratch.rename(path)
    return path


def _kubernetes(version: str) -> dict[str, Any]:
    """Return the trimmed definitions of *version*, and for each of our kinds a reference to its own."""
    with published(f"k8s.io/kubernetes@v{version}", SUMS[version]) as files:
        given = json.loads((files / "api/openapi-spec/swagger.json").read_text())["definitions"]
    kinds = {}
    for name, definition in given.items():
        for gvk in definition.get("x-kubernetes-group-version-kind", []):
            api = f"{gvk['group']}/{gvk['version']}".lstrip("/")
            if gvk["kind"] in KINDS.get(api, ()):
                kinds[f"{api} {gvk['kind']}"] = f"#/definitions/{name}"
    needed: dict[str, Any] = {}
    waiting = [reference.rpartition("/")[2] for reference in kinds.values()]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed[name] = _SPECIAL.get(name) or _strict(given[name])
            waiting += [reference.rpartition("/")[2] for reference in _references(needed[name])]
    return {"kinds": kinds, "definitions": needed}


def _operator() -> Iterator[tuple[str, Any]]:
    with published(*OPERATOR) as files:
        for kind, plural in OPERATOR_KINDS.items():
            path = files / "example/prometheus-operator-crd" / f"monitoring.coreos.com_{plural}.yaml"
            (version,) = yaml.safe_load(path.read_text())["spec"]["versions"]
            schema = _strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            yield f"monitoring.coreos.com/v1 {kind}", schema


def _strict(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return *schema* without prose; an object takes only the fields that it names."""
    if schema.get("format") == "int-or-string" or schema.get("x-kubernetes-int-or-string"):
        return dict(_SPECIAL["int-or-string"])
    kept = {key: value for key, value in schema.items() if key in _KEPT}
    if "properties" in kept:
        kept["properties"] = {name: _strict(below) for name, below in kept["properties"].items()}
        kept.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = _strict(kept[key])
    return kept


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for value in schema.values():
            yield from _references(value)


if __name__ == "__main__":
    for each in (*SUMS, "operator"):
        print(_cached(each), file=sys.stderr)
