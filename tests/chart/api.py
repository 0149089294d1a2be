"""As much of an API server as helm asks before it installs anything: what there is to ask for, and some objects.

`helm install --dry-run=server` renders with it, so that what templates look up, and the notes, can be tested without a cluster.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tests.support.chart_readme import CHART
from tests.support.helm import Answer, helm

VERSION = "v1.34.4"
POLL_S = 0.02
"""How long the end of the server may take."""
_KINDS = {
    "v1": ("ConfigMap", "Namespace", "Node", "Pod", "Secret", "Service", "ServiceAccount"),
    "apps/v1": ("DaemonSet",),
    "batch/v1": ("Job",),
    "rbac.authorization.k8s.io/v1": ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"),
}
_CLUSTER_WIDE = {"Namespace", "Node", "ClusterRole", "ClusterRoleBinding"}
_VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]

Object = dict[str, Any]


@dataclass
class Cluster:
    """A cluster that never changes: path of an object -> object. Everything else is not found."""

    folder: Path
    objects: dict[str, Object] = field(default_factory=dict)

    def node(self, name: str, **labels: str) -> None:
        """Add a node."""
        self.objects[f"/api/v1/nodes/{name}"] = {"metadata": {"name": name, "labels": labels}}

    def namespace(self, name: str, **labels: str) -> None:
        """Add a namespace."""
        self.objects[f"/api/v1/namespaces/{name}"] = {"metadata": {"name": name, "labels": labels}}

    def release(self, name: str, namespace: str) -> None:
        """Add what tells that our chart is installed."""
        owner = {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": namespace}
        path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/apparate-agent"
        labels = {"app.kubernetes.io/managed-by": "Helm"}
        self.objects[path] = {"metadata": {"name": "apparate-agent", "annotations": owner, "labels": labels}}

    def install(self, program: str, *settings: str, namespace: str = "default") -> Answer:
        """Return what `helm install` says, short of creating anything."""
        with self._served() as url:
            kubeconfig = self.folder / "kubeconfig"
            kubeconfig.write_text(json.dumps(_kubeconfig(url)))
            options = [f"--kubeconfig={kubeconfig}", f"--namespace={namespace}", "--dry-run=server"]
            for setting in settings:
                options += ["--set", setting]
            return helm(program, "install", "apparate", CHART, "--disable-openapi-validation", *options)

    @contextlib.contextmanager
    def _served(self) -> Iterator[str]:
        objects = self.objects

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = _answer(objects, self.path.partition("?")[0])
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
                """Say nothing."""

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True).start()
            yield f"http://127.0.0.1:{server.server_address[1]}"
            server.shutdown()


def _answer(objects: dict[str, Object], path: str) -> tuple[int, Object]:
    found = _discovery().get(path)
    if found is not None:
        return HTTPStatus.OK, found
    for api, kind, root in _collections():
        if path == f"{root}/{_plural(kind)}" or (
            path.startswith(f"{root}/namespaces/") and path.endswith(_plural(kind))
        ):
            items = [value for place, value in objects.items() if place.startswith(f"{path}/")]
            return HTTPStatus.OK, {"kind": f"{kind}List", "apiVersion": api, "metadata": {}, "items": items}
        if path in objects and path.startswith(f"{root}/{_plural(kind)}/"):
            return HTTPStatus.OK, {"kind": kind, "apiVersion": api, **objects[path]}
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "message": path}
    return HTTPStatus.NOT_FOUND, {**status, "code": 404}


def _collections() -> Iterator[tuple[str, str, str]]:
    """Yield each API version, kind and the path below which its objects are."""
    for api, kinds in _KINDS.items():
        for kind in kinds:
            yield api, kind, f"/apis/{api}" if "/" in api else f"/api/{api}"


def _discovery() -> dict[str, Object]:
    groups = [api for api in _KINDS if "/" in api]
    found: dict[str, Object] = {
        "/version": {"major": "1", "minor": "34", "gitVersion": VERSION},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(api) for api in groups]},
    }
    for api, kinds in _KINDS.items():
        resources = [
            {"name": _plural(kind), "kind": kind, "namespaced": kind not in _CLUSTER_WIDE, "verbs": _VERBS}
            for kind in kinds
        ]
        path = f"/apis/{api}" if "/" in api else f"/api/{api}"
        found[path] = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": resources}
    return found


def _group(api: str) -> Object:
    version = {"groupVersion": api, "version": api.rpartition("/")[2]}
    return {"name": api.rpartition("/")[0], "versions": [version], "preferredVersion": version}


def _plural(kind: str) -> str:
    return f"{kind.lower()}s"


def _kubeconfig(url: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fake", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me"}}],
        "current-context": "fake",
    }


def notes(answer: Answer) -> str:
    """Return the notes of an installation."""
    assert answer.code == 0, answer.errors
    return answer.output.partition("\nNOTES:\n")[2]


def warnings(answer: Answer) -> Iterable[str]:
    """Return the warnings in the notes of an installation."""
    return [line for line in notes(answer).splitlines() if line.startswith("WARNING: ")]
