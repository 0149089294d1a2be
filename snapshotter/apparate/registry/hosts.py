"""From a registry's name to the endpoints that serve it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apparate.registry.endpoint import Capability, Endpoint

if TYPE_CHECKING:
    from apparate.registry.settings import RegistrySettings


class HostTable:
    """Endpoints of registries."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings

    def endpoints(self, registry: str, needed: Capability) -> tuple[Endpoint, ...]:
        """Return where *registry* can be asked for *needed*, in the order in which to try."""
        del needed
        host = "registry-1.docker.io" if registry == "docker.io" else registry
        name = host.rpartition(":")[0] or host
        plain = host in self._settings.plain_http_hosts or name in {"localhost", "127.0.0.1", "[::1]"}
        return (Endpoint("http" if plain else "https", host),)
