"""hosts.toml, read as containerd reads it (containerd, docs/hosts.md and core/remotes/docker/config). No I/O here."""

from __future__ import annotations

import posixpath
import re
import tomllib
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from apparate.errors import FormatError
from apparate.registry.endpoint import Capability

HOSTS_FILE_BYTES_MAX = 1024 * 1024
_CAPABILITIES = {"pull": Capability.PULL, "resolve": Capability.RESOLVE, "push": Capability.PUSH}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*\Z")
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class HostEntry:
    """One host of the file. An empty *host* is the registry itself, its place not given by `server`."""

    scheme: str = ""
    host: str = ""
    path: str = ""
    capabilities: Capability = Capability.PULL | Capability.RESOLVE | Capability.PUSH
    skip_verify: bool | None = None
    ca_files: tuple[str, ...] = ()
    client_pairs: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    dial_timeout_s: float | None = None
    proxy: str | None = None

    @property
    def has_tls(self) -> bool:
        """Whether the file says anything about TLS; then even an http:// host is tried with TLS first."""
        return self.skip_verify is not None or bool(self.ca_files or self.client_pairs)


def parse_hosts_file(text: str, directory: str) -> tuple[HostEntry, ...]:
    """Return the hosts in the order in which to try them, the registry itself last; paths are made absolute.

    Raises:
        FormatError: no TOML, or a value of the wrong type; the error names the key.
    """
    try:
        root = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError("hosts.toml", "file", str(error)) from error
    hosts = root.get("host", {})
    if not isinstance(hosts, dict):
        raise FormatError("hosts.toml", "host", "is no table")
    server = root.get("server", "")
    if not isinstance(server, str):
        raise FormatError("hosts.toml", "server", "is no string")
    entries: list[HostEntry] = []
    for name, table in hosts.items():
        if not isinstance(table, dict):
            raise FormatError("hosts.toml", f"host.{name}", "is no table")
        entries.append(_entry(name, table, directory, f"host.{name}."))
    entries.append(_entry(server, root, directory, ""))
    return tuple(entries)


def _entry(server: str, table: dict[str, object], directory: str, where: str) -> HostEntry:
    scheme, host, path = _place(server, override=_flag(table, "override_path", where) or False, where=where)
    return HostEntry(
        scheme,
        host,
        path,
        _capabilities(table.get("capabilities"), where),
        _flag(table, "skip_verify", where),
        _paths(table.get("ca"), directory, f"{where}ca"),
        _pairs(table.get("client"), directory, f"{where}client"),
        _headers(table.get("header"), f"{where}header"),
        _duration(table.get("dial_timeout"), f"{where}dial_timeout"),
        _proxy(table.get("proxy"), f"{where}proxy"),
    )


def _place(server: str, *, override: bool, where: str) -> tuple[str, str, str]:
    """Return scheme, host and API root of *server*, empty all three when it is."""
    if not server:
        return "", "", ""
    if not server.startswith("http"):
        server = f"https://{server}"
    try:
        parts = urlsplit(server)
        _ = parts.port
    except ValueError as error:
        raise FormatError("hosts.toml", f"{where}server", f"{server[:200]!r}: {error}") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise FormatError("hosts.toml", f"{where}server", f"{server[:200]!r} is no http or https URL")
    path = parts.path
    if path:
        path = posixpath.normpath(path)
        path = "" if path in {"/", "//", "."} else path
        if not path.endswith("/v2") and not override:
            path += "/v2"
    elif not override:
        path = "/v2"
    return parts.scheme, parts.netloc.rpartition("@")[2], path


def _capabilities(value: object, where: str) -> Capability:
    names = _strings(value, f"{where}capabilities")
    if not names:
        return Capability.every()
    found = Capability(0)
    for name in names:
        one = _CAPABILITIES.get(name.lower())
        if one is None:
            raise FormatError("hosts.toml", f"{where}capabilities", f"{name[:40]!r} is none of pull, resolve, push")
        found |= one
    return found


def _flag(table: dict[str, object], key: str, where: str) -> bool | None:
    value = table.get(key)
    if value is None or isinstance(value, bool):
        return value
    raise FormatError("hosts.toml", f"{where}{key}", "is neither true nor false")


def _strings(value: object, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FormatError("hosts.toml", where, "is no list of strings")
    return tuple(value)


def _paths(value: object, directory: str, where: str) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else _strings(value, where)
    return tuple(_absolute(name, directory) for name in names)


def _pairs(value: object, directory: str, where: str) -> tuple[tuple[str, str], ...]:
    if value is None or isinstance(value, str):
        return ((_absolute(value, directory), ""),) if value else ()
    if not isinstance(value, list):
        raise FormatError("hosts.toml", where, "is neither a path nor a list")
    pairs: list[tuple[str, str]] = []
    for item in value:
        if isinstance(item, str):
            pairs.append((_absolute(item, directory), ""))
            continue
        names = _strings(item, where)
        if len(names) != 2:
            raise FormatError("hosts.toml", where, "a pair has a certificate and a key")
        pairs.append((_absolute(names[0], directory), _absolute(names[1], directory) if names[1] else ""))
    return tuple(pairs)


def _headers(value: object, where: str) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise FormatError("hosts.toml", where, "is no table")
    out: list[tuple[str, str]] = []
    for name, content in value.items():
        texts = (content,) if isinstance(content, str) else _strings(content, f"{where}.{name}")
        if not _HEADER_NAME.match(name) or not all(_HEADER_VALUE.match(text) for text in texts):
            raise FormatError("hosts.toml", f"{where}.{name[:40]!r}", "is no HTTP header")
        out.append((name, ", ".join(texts)))
    return tuple(out)


def _duration(value: object, where: str) -> float | None:
    """Return the seconds of a Go duration, as 1m30s; None when absent or empty."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not value or _DURATION.sub("", value):
        raise FormatError("hosts.toml", where, f"{str(value)[:40]!r} is no duration as 500ms or 5s")
    return sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION.findall(value)) or None


def _proxy(value: object, where: str) -> str | None:
    if value is None or value == "":
        return None
    parts = None
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        usable = parts is not None and parts.hostname and parts.path in {"", "/"} and not parts.query + parts.fragment
        _ = parts.port if parts is not None else None
    except ValueError:
        usable = False
    if parts is None or not usable or parts.scheme not in {"http", "https", "socks5", "socks5h"}:
        # The value may hold a password, so it is not shown.
        raise FormatError("hosts.toml", where, "is no URL of an http, https or socks5 proxy without a path")
    return f"{parts.scheme}://{parts.netloc}"


def _absolute(path: str, directory: str) -> str:
    return str(PurePosixPath(directory) / path)
