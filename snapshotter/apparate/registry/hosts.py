"""From a registry's name to the endpoints that serve it: `certs.d`, as containerd's CRI plugin searches it."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apparate.errors import FailedPrecondition, FormatError, InvalidArgument
from apparate.registry.endpoint import Capability, Endpoint, TlsConfig
from apparate.registry.hosts_file import HOSTS_FILE_BYTES_MAX, HostEntry, parse_hosts_file
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from apparate.registry.settings import RegistrySettings

DOCKER_HUB = "docker.io"
DOCKER_HUB_HOST = "registry-1.docker.io"
EVENT_HOSTS_FILE_REFUSED = "hosts.toml cannot be used, only the certificates beside it are"
RECHECK_S = 1.0
"""A change in certs.d is seen within this time: ranged reads come by the hundred, and each look costs six stat calls."""
CERTIFICATES_MAX = 256
"""Certificate files considered in one host's directory."""

Stamp = tuple[tuple[str, int, int, int], ...]
"""Path, inode, mtime and size of every file an answer was made from; it changes when one of them does."""

_log = get_logger("registry.hosts")


@dataclass(frozen=True, slots=True)
class _Loaded:
    directory: str
    stamp: Stamp
    entries: tuple[HostEntry, ...]


class HostTable:
    """Endpoints of registries, read again when a file changes; thread-safe.

    Args:
        settings: where to look.
        recheck_s: how long an answer is given again without looking at the files.
    """

    def __init__(self, settings: RegistrySettings, recheck_s: float = RECHECK_S) -> None:
        self._roots = tuple(Path(root) for root in settings.hosts_dirs)
        self._plain = frozenset(settings.plain_http_hosts)
        self._recheck_s = recheck_s
        self._lock = threading.Lock()
        self._loaded: dict[str, _Loaded] = {}
        self._answers: dict[tuple[str, Capability], tuple[float, tuple[Endpoint, ...]]] = {}

    def endpoints(self, registry: str, needed: Capability) -> tuple[Endpoint, ...]:
        """Return where *registry* can be asked for *needed*, in the order in which to try; none when nowhere.

        Raises:
            FailedPrecondition: a directory or file is there and cannot be read.
        """
        now = time.monotonic()
        with self._lock:
            until, known = self._answers.get((registry, needed), (0.0, ()))
        if now < until:
            return known
        found = self._found(registry, needed)
        with self._lock:
            self._answers[registry, needed] = (now + self._recheck_s, found)
        return found

    def _found(self, registry: str, needed: Capability) -> tuple[Endpoint, ...]:
        entries = list(self._entries(registry))
        if not entries[-1].host:
            entries[-1] = self._itself(entries[-1], registry)
        try:
            made = [_endpoint(entry, registry) for entry in entries if needed in entry.capabilities]
        except ValueError as error:
            raise InvalidArgument(f"registry {registry[:255]!r}: {error}") from error
        if needed is Capability.PUSH:
            made = [dataclasses.replace(endpoint, namespace="") for endpoint in made]
        return tuple(made)

    def _entries(self, registry: str) -> tuple[HostEntry, ...]:
        directory = self._directory(registry)
        if directory is None:
            return (HostEntry(),)
        with self._lock:
            known = self._loaded.get(registry)
        if known is not None and known.directory == str(directory) and known.stamp == _stamp_again(known.stamp):
            return known.entries
        loaded = _load(directory)
        with self._lock:
            self._loaded[registry] = loaded
        return loaded.entries

    def _directory(self, registry: str) -> Path | None:
        name, colon, port = registry.rpartition(":")
        names = (f"{name}_{port}_", registry, "_default") if colon else (registry, "_default")
        for root in self._roots:
            for candidate in names:
                try:
                    (root / candidate).stat()
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as error:
                    raise FailedPrecondition(f"{root / candidate} cannot be read: {error.strerror}") from error
                return root / candidate
        return None

    def _itself(self, entry: HostEntry, registry: str) -> HostEntry:
        """Return *entry*, which names no server, as that of the registry itself."""
        scheme, host, skip_verify = "https", registry, entry.skip_verify
        if registry == DOCKER_HUB:
            host = DOCKER_HUB_HOST
        elif registry in self._plain:
            scheme = "http"
        elif is_loopback(registry):
            port = _port(registry)
            scheme = "https" if port in {"", "443"} else "http"
            skip_verify = skip_verify if port == "80" else True
        return dataclasses.replace(
            entry, scheme=scheme, host=host, path="/v2", capabilities=Capability.every(), skip_verify=skip_verify
        )


def is_loopback(host: str) -> bool:
    """Whether `host[:port]` is this machine: `localhost` or a loopback address."""
    name = host.rpartition(":")[0] if _port(host) else host
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _port(host: str) -> str:
    head, colon, tail = host.rpartition(":")
    return tail if colon and (":" not in head or head.endswith("]")) else ""


def _endpoint(entry: HostEntry, registry: str) -> Endpoint:
    # containerd tries TLS first on a plain host for which TLS is configured, unless the port says plain for sure.
    tries_tls = entry.scheme == "http" and entry.has_tls and _port(entry.host) != "80"
    itself = entry.host in {registry, DOCKER_HUB_HOST if registry == DOCKER_HUB else registry}
    files = (*entry.ca_files, *(path for pair in entry.client_pairs for path in pair if path))
    return Endpoint(
        scheme="https" if tries_tls else entry.scheme,
        host=entry.host,
        path=entry.path,
        capabilities=entry.capabilities,
        tls=TlsConfig(bool(entry.skip_verify), entry.ca_files, entry.client_pairs, _stamp(files)),
        headers=entry.headers,
        dial_timeout_s=entry.dial_timeout_s,
        proxy=entry.proxy,
        http_fallback=tries_tls,
        namespace="" if itself else registry,
    )


def _load(directory: Path) -> _Loaded:
    path = directory / "hosts.toml"
    stamp = _stamp((str(directory), str(path)))
    try:
        text = _read(path)
        entries = parse_hosts_file(text, str(directory)) if text else _certificates(directory)
    except FormatError as error:
        # As containerd does; anything else would make a node lose registries that containerd still reaches.
        _log.error(EVENT_HOSTS_FILE_REFUSED, path=str(path), error=str(error))
        entries = _certificates(directory)
    return _Loaded(str(directory), stamp, entries)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(HOSTS_FILE_BYTES_MAX + 1)
        if len(data) > HOSTS_FILE_BYTES_MAX:
            raise FormatError("hosts.toml", "file", f"is larger than {HOSTS_FILE_BYTES_MAX} bytes")
        return data.decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise FormatError("hosts.toml", "file", "is not UTF-8", error.start) from error
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be read: {error.strerror}") from error


def _certificates(directory: Path) -> tuple[HostEntry, ...]:
    """Return the registry itself with the files of Docker's layout: `*.crt` authorities, `*.cert` and `*.key` pairs."""
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if not entry.is_dir())[:CERTIFICATES_MAX]
    except OSError as error:
        raise FailedPrecondition(f"{directory} cannot be read: {error.strerror}") from error
    present = set(names)
    authorities = tuple(str(directory / name) for name in names if name.endswith(".crt"))
    pairs = tuple(
        (str(directory / name), str(directory / key) if (key := f"{name[:-5]}.key") in present else "")
        for name in names
        if name.endswith(".cert")
    )
    return (HostEntry(ca_files=authorities, client_pairs=pairs),)


def _stamp(paths: tuple[str, ...]) -> Stamp:
    return tuple(_stat(path) for path in paths)


def _stamp_again(stamp: Stamp) -> Stamp:
    return tuple(_stat(path) for path, *_ in stamp)


def _stat(path: str) -> tuple[str, int, int, int]:
    try:
        found = Path(path).stat()
    except OSError:
        return path, 0, 0, 0  # absent or unreadable: whoever reads it says so
    return path, found.st_ino, found.st_mtime_ns, found.st_size
