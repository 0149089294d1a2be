"""Secrets of the cluster as credential files of the host: written when they change, removed when they go.

    /etc/apparate/credentials/chart-<namespace>_<name>.json    0600, docker's config.json with `auths` alone

Only `auths` is taken over: a Secret that names a credential helper must not choose a program that the host runs. A file is not
touched while its Secret stays the same, because the newest file is tried first (docs/registry.md).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apparate.errors import ApparateError, FormatError, InvalidArgument
from apparate.kubernetes.client import Object
from apparate.kubernetes.watch import Objects
from apparate.node import files
from apparate.registry.docker_config import parse_docker_config
from apparate.registry.keychain import CLUSTER_PREFIX, FILE_BYTES_MAX, cluster_files
from apparate.telemetry.logging import get_logger

_log = get_logger("node.agent.credentials")

WRITTEN: Final = "credentials written"
REMOVED: Final = "credentials removed"

DOCKER_CONFIG_TYPE: Final = "kubernetes.io/dockerconfigjson"
DOCKER_CFG_TYPE: Final = "kubernetes.io/dockercfg"
"""The older one: the table `auths` without its name."""
FOLLOWED_MAX: Final = 128
"""Secrets of followed namespaces; the keychain reads 256 files in all."""
NAME_CHARS_MAX: Final = 200
_FILE_MODE: Final = 0o600
_DIRECTORY_MODE: Final = 0o700


@dataclass(frozen=True, slots=True)
class Source:
    """Where Secrets come from: one by its *name*, or with name "" the pull Secrets of a followed namespace."""

    namespace: str
    name: str = ""


class Credentials:
    """The credential files of one node. Thread-safe."""

    def __init__(self, directory: Path, sources: Iterable[Source]) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._told: dict[Source, Objects | None] = dict.fromkeys(sources)
        self._problems: dict[Source, str] = {}

    def update(self, source: Source, secrets: Objects) -> None:
        """Bring the files up to date with everything that *source* has now."""
        with self._lock:
            self._told[source] = secrets
            self._write_all()

    def problem(self) -> str:
        """Return what is wrong with Secrets that were named; empty: nothing."""
        with self._lock:
            return "; ".join(text for source, text in sorted(self._problems.items(), key=str) if source.name)

    def unread(self) -> list[Source]:
        """Return the named Secrets that have not been told, and of which there is nothing from earlier."""
        with self._lock:
            silent = [source for source, secrets in self._told.items() if secrets is None and source.name]
        return [source for source in silent if not self._file(source.namespace, source.name).exists()]

    def followed_problem(self) -> str:
        """Return what is wrong with Secrets of followed namespaces: their owners' business, nobody waits for it."""
        with self._lock:
            return "; ".join(text for source, text in sorted(self._problems.items(), key=str) if not source.name)

    def count(self) -> int:
        """Return how many Secrets are in use."""
        return len(cluster_files(self._directory))

    def _write_all(self) -> None:
        wanted: dict[Path, bytes] = {}
        self._problems = {}
        for source, secrets in self._told.items():
            if secrets is not None:
                wanted |= self._wanted(source, secrets)
        try:
            self._directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            for path in cluster_files(self._directory):
                if path not in wanted and not self._may_be_wanted(path):
                    files.replace(path, None)
                    _log.info(REMOVED, path=str(path))
            for path, body in wanted.items():
                _write(path, body)
        except (ApparateError, OSError) as error:
            self._problems[Source("", str(self._directory))] = f"credentials cannot be written: {error}"

    def _wanted(self, source: Source, secrets: Objects) -> dict[Path, bytes]:
        """Return the files of *source*, and note what is wrong with it."""
        if source.name and not secrets:
            self._problems[source] = (
                f"Secret {source.namespace}/{source.name} does not exist: create it, or do not name it"
            )
            return {}
        found, wrong = {}, []
        newest = sorted(secrets.values(), key=_created, reverse=True)
        limit = len(newest) if source.name else FOLLOWED_MAX
        if len(newest) > limit:
            wrong.append(f"namespace {source.namespace} has {len(newest)} pull Secrets, the {limit} newest are used")
        for secret in newest[:limit]:
            try:
                metadata = secret["metadata"]
                found[self._file(metadata["namespace"], metadata["name"])] = docker_config(secret)
            except InvalidArgument as error:
                wrong.append(str(error))
        if wrong:
            self._problems[source] = "; ".join(wrong)
        return found

    def _may_be_wanted(self, path: Path) -> bool:
        """Whether *path* is of a source that has not told yet what it has: unknown means in use."""
        silent = [source for source, secrets in self._told.items() if secrets is None]
        names = {file_name(source.namespace, source.name) for source in silent if source.name}
        return path.name in names or any(
            path.name.startswith(f"{CLUSTER_PREFIX}{source.namespace}_") for source in silent if not source.name
        )

    def _file(self, namespace: str, name: str) -> Path:
        return self._directory / file_name(namespace, name)


def remove_all(directory: Path) -> int:
    """Remove every credential that came from the cluster; return how many there were. Raises Unavailable."""
    found = cluster_files(directory)
    for path in found:
        files.replace(path, None)
        _log.info(REMOVED, path=str(path))
    return len(found)


def file_name(namespace: str, name: str) -> str:
    """Return the name of the file for a Secret. No other Secret has it: `_` is in no name of Kubernetes."""
    plain = f"{namespace}_{name}"
    if len(plain) > NAME_CHARS_MAX:
        plain = f"{plain[:NAME_CHARS_MAX]}_{hashlib.sha256(plain.encode()).hexdigest()[:16]}"
    return f"{CLUSTER_PREFIX}{plain}.json"


def docker_config(secret: Object) -> bytes:
    """Return the credentials in *secret* as docker's config.json.

    Raises:
        InvalidArgument: it holds none; the message quotes nothing of it.
    """
    metadata = secret.get("metadata", {})
    what = f"Secret {metadata.get('namespace')}/{metadata.get('name')}"
    kind = secret.get("type")
    keys = {DOCKER_CONFIG_TYPE: ".dockerconfigjson", DOCKER_CFG_TYPE: ".dockercfg"}
    if kind not in keys:
        raise InvalidArgument(
            f"{what} is of type {kind}, not {DOCKER_CONFIG_TYPE}: make it with kubectl create secret docker-registry"
        )
    body = _decoded(secret, keys[kind], what)
    try:
        value = json.loads(body)
        auths = value.get("auths") if kind == DOCKER_CONFIG_TYPE else value
        out = json.dumps({"auths": auths}, sort_keys=True).encode()
        entries = parse_docker_config(out, what).entries
    except FormatError as error:
        raise InvalidArgument(f"{what} cannot be used: {error}") from error
    except (ValueError, AttributeError, RecursionError):
        raise InvalidArgument(f"{what} cannot be used: {keys[kind]} is no JSON object") from None  # its text is secret
    if not entries:
        raise InvalidArgument(f"{what} holds no credentials: auths has no entry with a user or a token")
    if len(out) > FILE_BYTES_MAX:
        raise InvalidArgument(f"{what} is larger than {FILE_BYTES_MAX} bytes")
    return out


def _decoded(secret: Object, key: str, what: str) -> bytes:
    data: Mapping[str, Any] = secret.get("data") or {}
    try:
        return base64.b64decode(data[key], validate=True)
    except KeyError:
        raise InvalidArgument(f"{what} has no {key}") from None
    except (binascii.Error, TypeError, ValueError):
        raise InvalidArgument(f"{what} cannot be used: {key} is no base64") from None


def _write(path: Path, body: bytes) -> None:
    if path.exists() and path.stat().st_mode & 0o077:
        path.chmod(_FILE_MODE)  # the keychain refuses what others may read
    if files.read(path) != body:
        files.replace(path, body, mode=_FILE_MODE)
        _log.info(WRITTEN, path=str(path))


def _created(secret: Object) -> str:
    return str(secret.get("metadata", {}).get("creationTimestamp", ""))
