"""Which proxy a URL is fetched through: HTTP_PROXY, HTTPS_PROXY and NO_PROXY, read as Go programs read them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from apparate.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class ProxyRules:
    """Proxies of this process (Go, golang.org/x/net/http/httpproxy). Empty strings mean none."""

    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Return the rules in *environ*; upper case goes before lower case.

        Raises:
            InvalidArgument: a proxy's URL does not parse; it is not shown, for it may hold a password.
        """

        def value(name: str) -> str:
            return (environ.get(name) or environ.get(name.lower()) or "").strip()

        no_proxy = tuple(part.strip().lower() for part in value("NO_PROXY").split(",") if part.strip())
        return cls(_url("HTTP_PROXY", value("HTTP_PROXY")), _url("HTTPS_PROXY", value("HTTPS_PROXY")), no_proxy)

    def proxy_for(self, url: str) -> str:
        """Return the URL of the proxy for *url*, empty when it is reached directly."""
        parts = urlsplit(url)
        proxy = self.https_proxy if parts.scheme == "https" else self.http_proxy
        host = (parts.hostname or "").lower().rstrip(".")
        if not proxy or _is_loopback(host):
            return ""
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
        return "" if any(_excluded(rule, host, port) for rule in self.no_proxy) else proxy


def _url(name: str, proxy: str) -> str:
    if not proxy:
        return ""
    url = proxy if "://" in proxy else f"http://{proxy}"
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise InvalidArgument(f"environment variable {name} holds no URL of a proxy; write http://host:port")
    return url


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _excluded(rule: str, host: str, port: int) -> bool:
    """Whether *rule* of NO_PROXY names *host*: `*`, an address, a network, or a domain with its subdomains; `:port` narrows."""
    if rule == "*":
        return True
    address = _address(host)
    if "/" in rule:
        try:
            return address is not None and address in ipaddress.ip_network(rule, strict=False)
        except ValueError:
            return False
    name, colon, digits = rule.rpartition(":")
    if colon and digits.isdigit() and (_address(rule) is None):
        if int(digits) != port:
            return False
        rule = name
    wanted = _address(rule)
    if wanted is not None:
        return address == wanted
    if rule.startswith("*."):
        rule = rule[1:]
    if rule.startswith("."):
        return host.endswith(rule)
    return host == rule or host.endswith(f".{rule}")
