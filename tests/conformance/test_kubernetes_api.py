"""The fake API server behaves as a real one; tests of the cluster run the same suite on real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.kubernetes_fake import FakeKubernetes
from tests.support.kubernetes_suite import ApiServer, KubernetesApiSuite

from apparate.kubernetes.client import Client


class _Fake:
    def __init__(self, fake: FakeKubernetes) -> None:
        self._fake = fake
        self.client = fake.client()
        self.namespace = "apparate"
        self.node = "node-a"
        fake.put("nodes", self.node, {"status": {"conditions": [{"type": "Ready", "status": "True"}]}})

    def powerless(self) -> Client:
        return self._fake.client("powerless", lambda *_: False)

    def unknown(self) -> Client:
        client = self._fake.client("nobody")
        self._fake.revoke("nobody")
        return client


class TestFake(KubernetesApiSuite):
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[ApiServer]:
        with FakeKubernetes(tmp_path) as fake:
            yield _Fake(fake)
