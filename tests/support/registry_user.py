"""A node as a user of registries: its credentials and hosts.toml files, a client that reads them, and one blob to fetch."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from apparate.oci.digest import Digest
from apparate.oci.reference import Reference
from apparate.registry.client import RegistryClient
from apparate.registry.deadline import Deadline
from apparate.registry.settings import RegistrySettings

PATIENCE_S = 20.0
BLOB = b"some layer" * 1000
DIGEST = Digest.of(BLOB)
USER, PASSWORD = "robot$ci", "p:ss w\u00f6rd"


class Node:
    """A node's files and a client that uses them."""

    def __init__(self, root: Path) -> None:
        self.hosts = root / "certs.d"
        self.credentials = root / "credentials"
        self.docker = root / "docker.json"
        self.credentials.mkdir()
        self.hosts.mkdir()
        self.client = RegistryClient(
            RegistrySettings(
                hosts_dirs=(str(self.hosts),),
                credentials_dir=str(self.credentials),
                docker_config=str(self.docker),
                idle_timeout_s=2.0,
            )
        )

    def log_in(self, name: str, host: str, user: str, password: str) -> None:
        path = self.credentials / f"{name}.json"
        path.touch(0o600)
        path.write_text(json.dumps({"auths": {host: {"auth": basic_pair(user, password)}}}))

    def hosts_toml(self, registry: str, text: str) -> Path:
        directory = self.hosts / registry
        directory.mkdir(exist_ok=True)
        (directory / "hosts.toml").write_text(text)
        return directory

    def read(self, name: str) -> bytes:
        return fetch(self.client, name)


def basic_pair(user: str, password: str) -> str:
    """What the header `Authorization: Basic` carries."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def fetch(client: RegistryClient, name: str, deadline: Deadline | None = None) -> bytes:
    with client.blob(Reference.parse(name), DIGEST, deadline=deadline or Deadline.after(PATIENCE_S)) as stream:
        return stream.read()


def store(client: RegistryClient, name: str) -> None:
    client.upload_blob(Reference.parse(name), DIGEST, len(BLOB), lambda: [BLOB])


def store_openly(name: str) -> None:
    client = RegistryClient(RegistrySettings(hosts_dirs=()))
    store(client, name)
    client.close()
