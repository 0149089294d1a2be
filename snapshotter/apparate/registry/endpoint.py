"""One place where a registry's content can be had or put: the registry itself or a mirror of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode, urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}
Origin = tuple[str, str, int]
"""Scheme, host and port: what a secret must not leave (RFC 6454, section 4)."""


class Capability(enum.Flag):
    """What a host may be asked for (containerd, docs/hosts.md, "capabilities field")."""

    PULL = enum.auto()
    """Content by digest."""
    RESOLVE = enum.auto()
    """The digest of a tag: needs trust."""
    PUSH = enum.auto()

    @classmethod
    def every(cls) -> Capability:
        """Return what a registry itself can do."""
        return cls.PULL | cls.RESOLVE | cls.PUSH


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """How a server proves itself and we prove ourselves. Paths are absolute; *stamp* changes when a file does."""

    skip_verify: bool = False
    ca_files: tuple[str, ...] = ()
    client_pairs: tuple[tuple[str, str], ...] = ()
    """(certificate, key); an empty key path means that the certificate's file holds the key too."""
    stamp: tuple[tuple[str, int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how to speak the distribution API."""

    scheme: str
    host: str
    """`host[:port]`."""
    path: str = "/v2"
    capabilities: Capability = Capability.PULL | Capability.RESOLVE | Capability.PUSH
    tls: TlsConfig = TlsConfig()
    headers: tuple[tuple[str, str], ...] = ()
    dial_timeout_s: float | None = None
    proxy: str | None = None
    """Explicit proxy URL; None means what the environment says."""
    http_fallback: bool = False
    """*scheme* is https, but a server that turns out to speak plain HTTP is spoken to so."""
    namespace: str = ""
    """Registry this is a mirror of, sent as `ns`; empty for the registry itself."""
    origin: Origin = field(init=False, compare=False)
    """The origin that credentials of this endpoint are bound to."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", origin_of(f"{self.scheme}://{self.host}"))

    def url(self, path: str, query: tuple[tuple[str, str], ...] = ()) -> str:
        """Return the URL of *path*, relative to the API root, with *query* and the mirror's namespace."""
        if self.namespace:
            query = (*query, ("ns", self.namespace))
        tail = f"?{urlencode(query, safe=':/')}" if query else ""
        return f"{self.scheme}://{self.host}{self.path}/{quote(path, safe='/:@')}{tail}"


def origin_of(url: str) -> Origin:
    """Return the origin of *url*, the default port filled in.

    Raises:
        ValueError: the URL has no usable port.
    """
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
