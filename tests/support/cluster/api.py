"""The API server from outside: plain requests for what is polled, kubectl and helm for what people type."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import urllib3
from tests.support.processes import run

REQUEST_TIMEOUT_S: Final = 15.0
KUBECTL_TIMEOUT_S: Final = 180.0
CONNECTIONS: Final = 8
HTTP_OK: Final = 200
NOT_FOUND: Final = 404

Document = dict[str, Any]


class ApiError(Exception):
    """The API server refused a request; `status` is HTTP's."""

    def __init__(self, what: str, status: int, body: str) -> None:
        super().__init__(f"{what}: {status}: {body[:2000]}")
        self.status = status


class Api:
    """Requests to the API server that *kubeconfig* (as settings.kubeconfig writes it) names."""

    def __init__(self, kubeconfig: Path) -> None:
        document = json.loads(kubeconfig.read_text())
        cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
        context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        with tempfile.NamedTemporaryFile() as pair:  # the ssl module takes a client's certificate from a file alone
            pair.write(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
            pair.flush()
            context.load_cert_chain(pair.name)
        self._server = cluster["server"]
        self._pool = urllib3.PoolManager(
            ssl_context=context, retries=False, timeout=REQUEST_TIMEOUT_S, maxsize=CONNECTIONS
        )

    def close(self) -> None:
        self._pool.clear()

    def text(self, path: str) -> str:
        """GET *path* as text.

        Raises:
            ApiError: any answer but 200.
        """
        return self._request("GET", path)

    def get(self, path: str, **query: str) -> Document:
        """GET *path*, as `/api/v1/nodes`."""
        answer: Document = json.loads(self._request("GET", f"{path}?{urlencode(query)}" if query else path))
        return answer

    def find(self, path: str) -> Document | None:
        """The object at *path*, or nothing."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise

    def items(self, path: str, **query: str) -> list[Document]:
        return list(self.get(path, **query)["items"])

    def is_ready(self) -> bool:
        """Whether the API server answers, and says that it is ready."""
        try:
            return self._request("GET", "/readyz") == "ok"
        except (ApiError, urllib3.exceptions.HTTPError):
            return False

    def node(self, name: str) -> Document:
        return self.get(f"/api/v1/nodes/{name}")

    def pods(self, namespace: str = "", selector: str = "") -> list[Document]:
        place = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
        return self.items(place, labelSelector=selector) if selector else self.items(place)

    def pod(self, namespace: str, name: str) -> Document | None:
        return self.find(f"/api/v1/namespaces/{namespace}/pods/{quote(name)}")

    def events(self, namespace: str, about: str) -> list[str]:
        """What events of *namespace* say about the object named *about*: `reason: message`."""
        found = self.items(f"/api/v1/namespaces/{namespace}/events", fieldSelector=f"involvedObject.name={about}")
        return [f"{event['reason']}: {event.get('message', '')}" for event in found]

    def stats(self, node: str) -> Document:
        """kubelet's account of its node: `/stats/summary`."""
        return self.get(f"/api/v1/nodes/{node}/proxy/stats/summary")

    def _request(self, method: str, path: str) -> str:
        answer = self._pool.request(method, f"{self._server}{path}", headers={"Accept": "application/json"})
        body = answer.data.decode(errors="replace")
        if answer.status != HTTP_OK:
            raise ApiError(f"{method} {path}", answer.status, body)
        return body


class Kubectl:
    """kubectl with one kubeconfig, as people run it.

    Raises:
        AssertionError: a command failed; the message has all that it said.
    """

    def __init__(self, program: Path, kubeconfig: Path) -> None:
        self._command = [str(program), f"--kubeconfig={kubeconfig}"]

    def __call__(self, *words: str, given: str = "", timeout_s: float = KUBECTL_TIMEOUT_S) -> str:
        return run([*self._command, *words], input=given, timeout_s=timeout_s)

    def apply(self, *documents: Mapping[str, Any]) -> None:
        """Create or change *documents*."""
        self("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))

    def status_of(self, *words: str, timeout_s: float = KUBECTL_TIMEOUT_S) -> tuple[int, str]:
        """Exit code and output of a command that may fail."""
        done = subprocess.run(
            [*self._command, *words], capture_output=True, text=True, check=False, timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def exec(self, namespace: str, pod: str, *command: str) -> str:
        return self("exec", f"--namespace={namespace}", pod, "--", *command)
