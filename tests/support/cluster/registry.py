"""The private registry of a cluster: TLS by an authority that only the site knows, a password, and a log that tells bytes served.

Images are pushed beforehand, to the same data on loopback without either; so no test needs credentials to set itself up.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.cluster.layout import REGISTRY_HOST, REGISTRY_IP
from tests.support.cluster.pki import Authority
from tests.support.cluster.podman import LABEL, podman
from tests.support.distribution import Registry
from tests.support.nodes.images import REGISTRY
from tests.support.processes import run, wait_until

USER: Final = "puller"
START_TIMEOUT_S: Final = 30.0
_CONFIG: Final = "/etc/registry"
_LINE: Final = re.compile(r'^(\S+) - .*"(GET|HEAD) (/v2/\S+) HTTP/[\d.]+" (\d{3}) (\d+)')


class PrivateRegistry:
    """The registry at `REGISTRY_HOST` for machines of the podman network *network*, number *number*.

    Args:
        folder: gets data, certificates, configuration and log.
        image: of the container that it runs in; it has the program.
    """

    def __init__(self, folder: Path, *, network: str, number: int, image: str, owner: str) -> None:
        self.folder = folder
        self.ip = f"10.91.{number}.{REGISTRY_IP}"
        self.password = secrets.token_urlsafe(24)
        self.container = f"{network}-registry"
        self.log = folder / "log" / "access.log"
        self._network = network
        self._image = image
        self._owner = owner
        for name in ("data", "etc", "log"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.authority = Authority(folder / "pki", "site authority")

    @contextmanager
    def filling(self) -> Iterator[Registry]:
        """The same data, served on loopback to whoever asks; not while the registry runs."""
        with Registry(self.folder) as open_registry:
            yield open_registry

    def create(self) -> None:
        """Make and start the registry."""
        names = (f"DNS:{REGISTRY_HOST}", f"IP:{self.ip}")
        certificate, key = self.authority.issue("registry", f"/CN={REGISTRY_HOST}", names)
        shutil.copy(certificate, self.folder / "etc" / "tls.crt")
        shutil.copy(key, self.folder / "etc" / "tls.key")
        self._write_password(self.password)
        (self.folder / "etc" / "config.json").write_text(json.dumps(_configuration()))
        podman(
            "run", "--detach", f"--name={self.container}", "--hostname=registry", f"--network={self._network}",
            f"--ip={self.ip}", f"--label={LABEL}={self._owner}", f"--volume={self.folder}/etc:{_CONFIG}:ro",
            f"--volume={self.folder}/data:/data", f"--volume={self.folder}/log:/log", "--systemd=false",
            "--entrypoint=/bin/sh", self._image,
            "-c", f"exec /usr/local/bin/{REGISTRY} serve {_CONFIG}/config.json >>/log/access.log 2>&1",
        )  # fmt: skip
        self._wait_serves()

    def stop(self) -> None:
        """Be unreachable; connections are refused at once."""
        podman("stop", "--time", "1", self.container)

    def start(self) -> None:
        podman("start", self.container)
        self._wait_serves()

    def docker_config(self, password: str | None = None) -> str:
        """The content of a `kubernetes.io/dockerconfigjson` Secret, with another *password* if one is given."""
        entry = {"username": USER, "password": self.password if password is None else password}
        return json.dumps({"auths": {REGISTRY_HOST: entry}})

    def served_bytes(self, node_ip: str, repository: str = "") -> int:
        """Bytes of blobs of *repository* (or of all) served to *node_ip* so far."""
        return sum(size for path, size in self._served(node_ip) if f"/v2/{repository}" in path and "/blobs/" in path)

    def requests(self, node_ip: str) -> int:
        """Requests from *node_ip* that were answered so far, refused ones included."""
        return sum(1 for line in self._lines() if line.startswith(f"{node_ip} "))

    def _served(self, node_ip: str) -> Iterator[tuple[str, int]]:
        for line in self._lines():
            match = _LINE.match(line)
            if match and match[1] == node_ip and match[4] in {"200", "206"} and match[2] == "GET":
                yield match[3], int(match[5])

    def _lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []

    def _write_password(self, password: str) -> None:
        # bcrypt is all that the registry accepts; 4 is its cheapest cost.
        table = run(["htpasswd", "-niB", "-C", "4", USER], input=password)
        (self.folder / "etc" / "htpasswd").write_text(table.strip() + "\n")

    def _wait_serves(self) -> None:
        command: list[str | Path] = [
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--cacert",
            self.authority.ca,
        ]
        command += ["--connect-timeout", "1", f"https://{self.ip}/v2/"]
        wait_until(
            lambda: run(["sh", "-c", '"$@" || true', "sh", *command]) == "401", "the registry serves", START_TIMEOUT_S
        )


def _configuration() -> dict[str, object]:
    return {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {
            "filesystem": {"rootdirectory": "/data"},
            "delete": {"enabled": True},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "auth": {"htpasswd": {"realm": "site", "path": f"{_CONFIG}/htpasswd"}},
        "http": {
            "addr": ":443",
            "secret": secrets.token_hex(16),
            "tls": {"certificate": f"{_CONFIG}/tls.crt", "key": f"{_CONFIG}/tls.key"},
        },
    }
