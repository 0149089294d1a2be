"""A real registry: Debian's `docker-registry` (CNCF Distribution 2.8), on a free loopback port, in a directory of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Self

import pytest
from tests.support.processes import Process, run

PROGRAM = "docker-registry"


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Authority:
    """A certificate authority for one test, below *directory*; `ca` is its certificate."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.ca = directory / "ca.crt"
        self._key = directory / "ca.key"
        extensions = (
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        )
        run(["openssl", "req", "-x509", *_NEW_KEY, "-keyout", self._key, "-out", self.ca, "-days", "2",
             "-subj", "/CN=apparate test authority", *extensions])  # fmt: skip

    def issue(self, name: str, usage: str = "serverAuth") -> tuple[Path, Path]:
        """Return certificate and key of *name*, valid for localhost and 127.0.0.1; *usage* as clientAuth for a client."""
        cert, key, request = (self._directory / f"{name}.{end}" for end in ("crt", "key", "csr"))
        extensions = self._directory / f"{name}.ext"
        extensions.write_text(
            f"subjectAltName=DNS:localhost,DNS:{name},IP:127.0.0.1\nextendedKeyUsage={usage}\n"
            "authorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
        )
        run(["openssl", "req", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}"])
        run(["openssl", "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._key, "-CAcreateserial",
             "-out", cert, "-days", "2", "-extfile", extensions])  # fmt: skip
        return cert, key


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Registry:
    """A registry that stores in *directory*; a context manager: leaving it stops the server, its data stays.

    Args:
        directory: gets `data/`, `config.yml` and `registry.log`.
        users: with entries, basic authentication is demanded (user to password).
        authority: with one, TLS is spoken with a certificate of it.
        client_authority: with one, a client certificate of it is demanded.
        port: 0 takes a free one; it stays the same over stop and start.
        listen: address to serve on.
        netns: network namespace to run in.
        proxy_of: URL of a registry this is a pull-through cache of.
        notifications: URL that gets push and pull events.
    """

    def __init__(
        self,
        directory: Path,
        *,
        users: dict[str, str] | None = None,
        authority: Authority | None = None,
        client_authority: Authority | None = None,
        port: int = 0,
        listen: str = "127.0.0.1",
        netns: str | None = None,
        proxy_of: str | None = None,
        notifications: str | None = None,
    ) -> None:
        if shutil.which(PROGRAM) is None:
            pytest.skip(f"{PROGRAM} is not installed (apt-get install docker-registry)")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = port or free_port()
        self.address = f"{listen}:{self.port}"
        self.tls = authority is not None
        config = self._config(users or {}, authority, client_authority, proxy_of, notifications)
        path = directory / "config.yml"
        path.write_text(json.dumps(config))  # JSON is YAML
        self.log = directory / "registry.log"
        self._process = Process("registry", [PROGRAM, "serve", path], self.log, netns=netns)
        self._netns = netns

    @property
    def host(self) -> str:
        """`host:port` as it stands in a reference."""
        return self.address

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.address}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> Self:
        """Start, or start again after `stop`, on the same port and data."""
        self._process.start(self._serves)
        return self

    def stop(self) -> None:
        if self._process.running:
            self._process.stop()

    def requests(self, method: str = "", part: str = "") -> list[str]:
        """Return the access log's lines for *method* whose line holds *part*."""
        if not self.log.exists():
            return []
        lines = self.log.read_text(errors="replace").splitlines()
        return [
            line for line in lines if f'"{method}' in line and " /v2/" in line and "HTTP/1" in line and part in line
        ]

    def blob_path(self, hexdigest: str) -> Path:
        """Return the file in which the registry keeps the blob sha256:*hexdigest*."""
        return self.directory / "data/docker/registry/v2/blobs/sha256" / hexdigest[:2] / hexdigest / "data"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _serves(self) -> bool:
        if self._netns:
            command = ["ip", "netns", "exec", self._netns, "bash", "-c", f"</dev/tcp/{self.address.replace(':', '/')}"]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _config(
        self,
        users: dict[str, str],
        authority: Authority | None,
        client_authority: Authority | None,
        proxy_of: str | None,
        notifications: str | None,
    ) -> dict[str, object]:
        http: dict[str, object] = {"addr": self.address, "secret": os.urandom(16).hex()}
        config: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.directory / "data")},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": http,
        }
        if authority is not None:
            certificate, key = authority.issue(f"registry-{self.port}")
            tls: dict[str, object] = {"certificate": str(certificate), "key": str(key)}
            if client_authority is not None:
                tls["clientcas"] = [str(client_authority.ca)]
            http["tls"] = tls
        if users:
            table = self.directory / "htpasswd"
            table.write_text("".join(_htpasswd(user, password) for user, password in users.items()))
            config["auth"] = {"htpasswd": {"realm": "apparate tests", "path": str(table)}}
        if proxy_of:
            config["proxy"] = {"remoteurl": proxy_of}
        if notifications:
            endpoint = {"name": "tests", "url": notifications, "timeout": "1s", "threshold": 5, "backoff": "1s"}
            config["notifications"] = {"endpoints": [endpoint]}
        return config


def _htpasswd(user: str, password: str) -> str:
    # bcrypt is all that the registry accepts; 4 is its cheapest cost.
    return run(["htpasswd", "-niB", "-C", "4", user], input=password).strip() + "\n"
