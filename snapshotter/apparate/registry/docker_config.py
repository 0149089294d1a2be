"""docker's config.json: which entry is meant for a host and a repository. No I/O here."""

from __future__ import annotations

import base64
import fnmatch
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from apparate.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

ENTRIES_MAX = 4096
HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
HUB_KEY = "https://index.docker.io/v1/"
"""What docker stores Docker Hub's credentials under."""
_TOKEN_USER = "<token>"  # noqa: S105  # the user name that says: the secret is an identity token


@dataclass(frozen=True, slots=True)
class Credential:
    """What one may prove oneself with; its secrets appear in no repr."""

    source: str
    """Where it was found, for the log."""
    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    """Exchanged for an access token (OAuth 2 refresh token)."""
    registry_token: str = field(default="", repr=False)
    """Sent as a bearer token as it is."""


@dataclass(frozen=True, slots=True)
class _Entry:
    host: str
    path: str
    credential: Credential


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """The parts of a config.json that we use."""

    entries: tuple[_Entry, ...]
    helpers: Mapping[str, str]
    """Registry, as written, to the name of its credential helper."""
    store: str
    """Helper for all other registries, or empty."""

    def credentials(self, host: str, repository: str) -> tuple[Credential, ...]:
        """Return what the file holds for *repository* at *host*, the closest match first.

        A key may have a path, which has to be a prefix of the repository, and `*` within labels of its host, as in
        Kubernetes' secrets of the type kubernetes.io/dockerconfigjson.
        """
        fitting = [
            entry
            for entry in self.entries
            if _host_fits(entry.host, host) and (not entry.path or f"{repository}/".startswith(f"{entry.path}/"))
        ]
        fitting.sort(key=lambda entry: (-len(entry.path), "*" in entry.host))
        return tuple(entry.credential for entry in fitting)

    def helper(self, host: str) -> str:
        """Return the name of the helper to ask for *host*, empty when there is none."""
        for key, name in self.helpers.items():
            if _host_fits(_split(key)[0], host):
                return name
        return self.store


def parse_docker_config(body: bytes, source: str) -> DockerConfig:
    """Return the configuration in *body*; entries of *source* that hold no secret are left out.

    Raises:
        FormatError: no JSON of the right shape; the error names the key and shows no value.
    """
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        # The text of a JSON error quotes what it met, which may be a secret.
        raise FormatError("docker config", source, "is no JSON") from error
    if not isinstance(raw, dict):
        raise FormatError("docker config", source, "is no JSON object")
    auths = _table(raw, "auths", source)
    helpers = {key: _helper(name, f"credHelpers.{key}") for key, name in _table(raw, "credHelpers", source).items()}
    store = raw.get("credsStore")
    entries: list[_Entry] = []
    for key, value in list(auths.items())[:ENTRIES_MAX]:
        if not isinstance(value, dict):
            raise FormatError("docker config", f"auths.{key}", "is no object")
        credential = _credential(value, f"{source} ({key})", key)
        if credential is not None:
            entries.append(_Entry(*_split(key), credential))
    return DockerConfig(tuple(entries), helpers, _helper(store, "credsStore") if store else "")


def canonical_host(host: str) -> str:
    """Return *host* in lower case without the port 443, Docker Hub under one of its names."""
    host = host.lower().removesuffix(":443")
    return "docker.io" if host in _HUB else host


def helper_key(host: str) -> str:
    """Return what a credential helper knows *host* by."""
    return HUB_KEY if canonical_host(host) == "docker.io" else host


def _table(raw: dict[str, object], key: str, source: str) -> dict[str, object]:
    value = raw.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise FormatError("docker config", f"{source}: {key}", "is no object")
    return value


def _helper(value: object, where: str) -> str:
    if not isinstance(value, str) or not HELPER_NAME.match(value):
        raise FormatError("docker config", where, "is no name of a credential helper")
    return value


def _credential(value: dict[str, object], source: str, key: str) -> Credential | None:
    def text(name: str) -> str:
        found = value.get(name)
        if found is not None and not isinstance(found, str):
            raise FormatError("docker config", f"auths.{key}.{name}", "is no string")
        return found or ""

    username, password = text("username"), text("password")
    if text("auth"):
        try:
            username, colon, password = base64.b64decode(text("auth"), validate=True).decode().partition(":")
        except ValueError as error:  # no base64, no ASCII or no UTF-8
            raise FormatError("docker config", f"auths.{key}.auth", "is no base64 of user:password") from error
        if not colon:
            raise FormatError("docker config", f"auths.{key}.auth", "is no base64 of user:password")
        password = password.rstrip("\0")
    identity, token = text("identitytoken"), text("registrytoken")
    if username == _TOKEN_USER:
        username, password, identity = "", "", identity or password
    if not (username or identity or token):
        return None
    return Credential(source, username, password, identity, token)


def _split(key: str) -> tuple[str, str]:
    """Return host and path of a key of `auths`: a host, or a URL whose version path says nothing."""
    rest = key.partition("://")[2] or key
    host, _, path = rest.partition("/")
    path = path.strip("/")
    return canonical_host(host), "" if path in {"v1", "v2"} else path


def _host_fits(pattern: str, host: str) -> bool:
    wanted = canonical_host(host)
    if "*" not in pattern:
        return pattern == wanted
    pattern_labels, labels = pattern.split("."), wanted.split(".")
    return len(pattern_labels) == len(labels) and all(map(fnmatch.fnmatchcase, labels, pattern_labels))
