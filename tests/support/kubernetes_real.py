"""A real API server for `KubernetesApiSuite`, known by a kubeconfig of an administrator.

class TestApi(KubernetesApiSuite):
    @pytest.fixture(scope="class")
    def server(self, mixed, tmp_path_factory):
        yield from RealServer.of(mixed.kubectl, mixed.kubeconfig, tmp_path_factory.mktemp("api"), node)
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from apparate.kubernetes.access import Access
from apparate.kubernetes.client import Client

NAMESPACE = "apparate-api-suite"
ADMIN = "admin"
POWERLESS = "powerless"


class RealServer:
    """Two accounts of a namespace, one of which may do everything; `kubectl create token` exists from Kubernetes 1.24 on."""

    namespace = NAMESPACE

    def __init__(self, kubectl: Callable[..., str], kubeconfig: Path, folder: Path, node: str) -> None:
        cluster = json.loads(kubeconfig.read_text())["clusters"][0]["cluster"]
        self._kubectl, self._folder, self._server = kubectl, folder, cluster["server"]
        self._ca = folder / "ca.crt"
        self._ca.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
        self.node = node
        for account in (ADMIN, POWERLESS):
            self._kubectl("create", "serviceaccount", f"--namespace={NAMESPACE}", account)
        binding = ("--clusterrole=cluster-admin", f"--serviceaccount={NAMESPACE}:{ADMIN}")
        self._kubectl("create", "clusterrolebinding", NAMESPACE, *binding)
        self.client = self._client(ADMIN, self._token(ADMIN))

    @classmethod
    def of(cls, kubectl: Callable[..., str], kubeconfig: Path, folder: Path, node: str) -> Iterator[Self]:
        """Yield one, and remove afterwards what it made."""
        kubectl("create", "namespace", NAMESPACE)
        try:
            yield cls(kubectl, kubeconfig, folder, node)
        finally:
            kubectl("delete", "clusterrolebinding", NAMESPACE, "--ignore-not-found")
            kubectl("delete", "namespace", NAMESPACE)

    def powerless(self) -> Client:
        return self._client(POWERLESS, self._token(POWERLESS))

    def unknown(self) -> Client:
        return self._client("unknown", "nobody's")

    def _token(self, account: str) -> str:
        return self._kubectl("create", "token", f"--namespace={NAMESPACE}", account).strip()

    def _client(self, name: str, token: str) -> Client:
        path = self._folder / name
        path.write_text(token)
        return Client(Access(self._server, self._ca, path), "apparate-tests")
