"""As much of a Kubernetes API server as the role node_label asks: discovery, nodes, patches, dry runs, the rules for labels."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]

UNKNOWN_NODE = "nobody"
_NODE = re.compile(r"/api/v1/nodes/([^/]+)\Z")
_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?\Z")
_VALUE_LENGTH_MAX = 63
_VERBS = ["get", "list", "patch"]
_DISCOVERY: dict[str, Json] = {
    "/version": {"major": "1", "minor": "30", "gitVersion": "v1.30.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [{"name": "nodes", "singularName": "node", "namespaced": False, "kind": "Node", "verbs": _VERBS}],
    },
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    labels: ClassVar[dict[str, dict[str, str]]]
    """Of every node that was asked for: all exist but `UNKNOWN_NODE`."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path in _DISCOVERY:
            self._answer(200, _DISCOVERY[path])
        else:
            self._node(path, None)

    def do_PATCH(self) -> None:
        parts = urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        wanted = body.get("metadata", {}).get("labels", {})
        bad = [value for value in wanted.values() if value is not None and not _is_value(value)]
        if bad:
            self._refuse(422, "Invalid", f"a valid label must consist of alphanumeric characters: {bad[0]}")
        else:
            self._node(parts.path, wanted, dry="dryRun" in parse_qs(parts.query))

    def _node(self, path: str, wanted: dict[str, str | None] | None, *, dry: bool = False) -> None:
        found = _NODE.match(path)
        if found is None or found[1] == UNKNOWN_NODE:
            self._refuse(404, "NotFound", f'nodes "{path.rpartition("/")[2]}" not found')
            return
        labels = dict(self.labels.get(found[1], {}))
        for key, value in (wanted or {}).items():
            labels.pop(key, None)
            if value is not None:
                labels[key] = value
        if not dry:
            self.labels[found[1]] = labels
        self._answer(200, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": found[1], "labels": labels}})

    def _refuse(self, status: int, reason: str, message: str) -> None:
        self._answer(
            status,
            {
                "apiVersion": "v1",
                "kind": "Status",
                "status": "Failure",
                "code": status,
                "reason": reason,
                "message": message,
            },
        )

    def _answer(self, status: int, value: Json) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is http.server's
        """Say nothing."""


def _is_value(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _VALUE_LENGTH_MAX and bool(_VALUE.match(value))


@contextlib.contextmanager
def label_api(folder: Path) -> Iterator[None]:
    """Serve on loopback inside the block; `folder/kubeconfig` leads there, `folder/kubeconfig-dead` to where nobody serves."""

    class Bound(_Handler):
        labels: ClassVar[dict[str, dict[str, str]]] = {}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    (folder / "kubeconfig").write_text(_kubeconfig(int(server.server_address[1])))
    (folder / "kubeconfig-dead").write_text(_kubeconfig(1))
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def server_of(kubeconfig: Path) -> str:
    """Return the address that *kubeconfig*, one of ours, leads to."""
    return str(json.loads(kubeconfig.read_text())["clusters"][0]["cluster"]["server"])


def _kubeconfig(port: int) -> str:
    name = "test"
    value = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": name, "user": {"token": "of-no-use"}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    return json.dumps(value)  # JSON is YAML
