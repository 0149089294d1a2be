"""Settings of the registry client; the table `[registry]` of a configuration file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """How registries are found, trusted, authenticated against and waited for. Times are seconds."""

    hosts_dirs: tuple[str, ...] = ("/etc/containerd/certs.d", "/etc/docker/certs.d")
    """Directories searched for `<host>/hosts.toml`, as containerd's `config_path`; the first that has the host wins."""
    plain_http_hosts: tuple[str, ...] = ()
    """`host[:port]` that are spoken to in plain HTTP when no hosts.toml says otherwise."""
    credentials_dir: str = "/etc/apparate/credentials"
    """Directory of our own credential files (docker's config.json form, mode 0600), newest first."""
    docker_config: str = ""
    """Path of a docker config.json; empty: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`."""
    connect_timeout_s: float = 5.0
    """For name look-up and TCP together, and as much again for TLS; hosts.toml's `dial_timeout` overrides it per host."""
    idle_timeout_s: float = 10.0
    """A connection that moves no byte for so long is given up and the request tried again."""
    slow_bytes_per_s: int = 1024
    """A body that stays slower than this over `idle_timeout_s` is given up; time its reader takes does not count."""
    connections_per_host: int = 16
    """Idle connections kept per host; more may be open for as long as their requests last."""
    user_agent: str = "apparate/1.0"
