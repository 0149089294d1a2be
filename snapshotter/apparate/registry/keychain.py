"""Credentials of registries, found anew whenever they are needed: files that change are read again."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apparate.errors import FormatError
from apparate.registry.docker_config import Credential, DockerConfig, helper_key, parse_docker_config
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apparate.registry.deadline import Deadline
    from apparate.registry.settings import RegistrySettings

FILES_MAX = 256
"""Credential files considered in our own directory."""
FILE_BYTES_MAX = 1024 * 1024
CLUSTER_PREFIX = "chart-"
"""Files of our own directory whose names begin so come from Secrets of the cluster."""
LEAVING_NAME = ".leaving"
"""A file of this name in our own directory says that those of the cluster are to go when no layer needs them."""
HELPER_TIMEOUT_S = 10.0
HELPER_OUTPUT_BYTES_MAX = 64 * 1024
EVENT_FILE_REFUSED = "credential file cannot be used"
EVENT_HELPER_FAILED = "credential helper failed"

_log = get_logger("registry.keychain")


@dataclass(frozen=True, slots=True)
class _Read:
    stamp: tuple[int, int, int, int]
    config: DockerConfig | None


class Keychain:
    """Looks credentials up; thread-safe. No secret is kept longer than the file it came from stays the same."""

    def __init__(self, settings: RegistrySettings, environ: Mapping[str, str] | None = None) -> None:
        self._own = Path(settings.credentials_dir) if settings.credentials_dir else None
        self._docker = _docker_config(settings.docker_config, os.environ if environ is None else environ)
        self._lock = threading.Lock()
        self._read: dict[Path, _Read] = {}

    def lookup(self, host: str, repository: str, deadline: Deadline) -> tuple[Credential, ...]:
        """Return every credential for *repository* at *host*, in the order in which to try them.

        Our own files come first, the newest before the others; then docker's config.json, its helper before its entries.
        A file or helper that cannot be used is logged and passed over.
        """
        found: list[Credential] = []
        for path in (*self._own_files(), *((self._docker,) if self._docker else ())):
            config = self._config(path, private=path != self._docker)
            if config is None:
                continue
            helper = config.helper(host)
            if helper:
                given = _ask_helper(helper, host, deadline)
                found += [given] if given is not None else []
            found += config.credentials(host, repository)
        return tuple(dict.fromkeys(found))

    def _own_files(self) -> list[Path]:
        if self._own is None:
            return []
        try:
            with os.scandir(self._own) as entries:
                files = [
                    (entry.stat().st_mtime_ns, entry.name)
                    for entry in entries
                    if entry.name.endswith(".json") and not entry.name.startswith(".") and entry.is_file()
                ]
        except FileNotFoundError:
            return []
        except OSError as error:
            _log.warning(EVENT_FILE_REFUSED, path=str(self._own), error=error.strerror)
            return []
        return [self._own / name for _, name in sorted(files, reverse=True)[:FILES_MAX]]

    def _config(self, path: Path, *, private: bool) -> DockerConfig | None:
        """Return what the file at *path* says, None when it is absent or refused; *private*: others must not read it."""
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                stamp = (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)
                with self._lock:
                    known = self._read.get(path)
                if known is not None and known.stamp == stamp:
                    return known.config
                config = _parsed(path, found, file.read(FILE_BYTES_MAX + 1), private=private)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning(EVENT_FILE_REFUSED, path=str(path), error=error.strerror)
            return None
        with self._lock:
            self._read[path] = _Read(stamp, config)
        return config


def cluster_files(directory: Path) -> list[Path]:
    """Return the credential files in *directory* that come from the cluster."""
    return sorted(directory.glob(f"{CLUSTER_PREFIX}*.json")) if directory.is_dir() else []


def _docker_config(setting: str, environ: Mapping[str, str]) -> Path | None:
    if setting:
        return Path(setting)
    if environ.get("DOCKER_CONFIG"):
        return Path(environ["DOCKER_CONFIG"]) / "config.json"
    return Path(environ["HOME"]) / ".docker/config.json" if environ.get("HOME") else None


def _parsed(path: Path, found: os.stat_result, body: bytes, *, private: bool) -> DockerConfig | None:
    reason = ""
    if private and stat.S_IMODE(found.st_mode) & 0o077:
        reason = "others may read it: chmod 0600"
    elif private and found.st_uid not in {0, os.geteuid()}:
        reason = "it belongs to another user"
    elif len(body) > FILE_BYTES_MAX:
        reason = f"larger than {FILE_BYTES_MAX} bytes"
    else:
        try:
            return parse_docker_config(body, str(path))
        except FormatError as error:
            reason = str(error)
    _log.warning(EVENT_FILE_REFUSED, path=str(path), error=reason)
    return None


def _ask_helper(name: str, host: str, deadline: Deadline) -> Credential | None:
    """Return what `docker-credential-<name> get` knows of *host* (docker, credential helper protocol)."""
    program, error = f"docker-credential-{name}", ""
    try:
        done = subprocess.run(
            [program, "get"],
            input=helper_key(host).encode(),
            capture_output=True,
            timeout=max(min(HELPER_TIMEOUT_S, deadline.remaining()), 0.001),
            check=False,
        )
    except FileNotFoundError:
        error = "it is not on PATH"
    except subprocess.TimeoutExpired:
        error = "it did not answer in time"
    except OSError as failure:
        error = failure.strerror or "it cannot be started"
    else:
        if done.returncode == 0:
            credential = _given(done.stdout, program)
            if credential is not None:
                return credential
            error = "its answer does not parse"
        elif b"credentials not found" in done.stdout.lower() + done.stderr.lower():
            return None
        else:
            error = f"exit status {done.returncode}"  # what it printed may hold a secret
    _log.warning(EVENT_HELPER_FAILED, helper=program, host=host, error=error)
    return None


def _given(output: bytes, program: str) -> Credential | None:
    try:
        answer = json.loads(output[:HELPER_OUTPUT_BYTES_MAX])
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(username, str) or not isinstance(secret, str):
        return None
    if username == "<token>":
        return Credential(program, identity_token=secret)
    return Credential(program, username, secret)
