"""One HTTP request and its answer: pooled connections, TLS, proxies, bounded waits; no policy.

Redirects, authentication and retries belong to those above. Whatever urllib3 raises is translated here.
"""

from __future__ import annotations

import ssl
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import urlsplit

import urllib3
from urllib3 import exceptions as http_errors

from apparate.errors import ApparateError, FailedPrecondition, Unavailable
from apparate.registry.limits import BoundedPool, BoundedTlsPool, Limits, applied
from apparate.registry.redact import redact_url
from apparate.registry.resolver import Resolver
from apparate.registry.tls import context_for, speaks_plain_http

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from apparate.registry.deadline import Deadline
    from apparate.registry.endpoint import TlsConfig
    from apparate.registry.proxies import ProxyRules
    from apparate.registry.settings import RegistrySettings

POOL_MANAGERS_MAX = 32
"""Sets of connections, one per TLS configuration and proxy; the least recently used is dropped beyond this."""
HOSTS_MAX = 64
"""Hosts with idle connections, of each of these sets."""
SEND_BLOCK_BYTES = 256 * 1024
"""How much of a body is sent in one step."""


class NotConnected(Unavailable):
    """No connection came about, so nothing of the request was sent."""


class TlsNotSpoken(NotConnected):
    """The server answered a TLS handshake in plain HTTP."""


_NOT_CONNECTED = (http_errors.NewConnectionError, http_errors.ConnectTimeoutError, http_errors.ProxyError)


class Body(Protocol):
    """The receiving side of an answer."""

    def read1(self, amt: int | None = None, /) -> bytes:
        """Return what one step of the network brings, up to *amt* bytes; nothing at the end."""

    def close(self) -> None:
        """Give the connection up, unless the body was read to its end."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. *body* is bytes, or pieces that add up to the Content-Length header."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes] | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach a host."""

    tls: TlsConfig
    proxy: str | None = None
    """A proxy's URL; None means what the environment says."""
    connect_timeout_s: float | None = None


class Response:
    """Status, headers and a body that is still to be read. Close it, or use it as a context manager."""

    def __init__(self, request: Request, status: int, headers: Mapping[str, str], body: Body) -> None:
        self.method = request.method
        self.url = request.url
        self.status = status
        self._headers = {name.lower(): value for name, value in headers.items()}
        self._body = body

    def header(self, name: str) -> str:
        """Return the header *name*, empty when absent."""
        return self._headers.get(name.lower(), "")

    @property
    def content_length(self) -> int | None:
        """The announced length of the body in bytes; None when there is none or it is no number."""
        text = self.header("content-length").strip()
        return int(text) if text.isascii() and text.isdigit() else None

    def read1(self, size: int) -> bytes:
        """Return up to *size* bytes, as they come; nothing at the end of the body.

        Raises:
            Unavailable: the connection broke, the body ended before its announced length, or a limit passed.
        """
        try:
            return self._body.read1(size) or b""
        except http_errors.HTTPError as error:
            raise translated(error, self.method, self.url) from error

    def read_at_most(self, limit: int) -> bytes:
        """Return the whole body if it has at most *limit* bytes, else *limit* + 1 bytes of it."""
        parts: list[bytes] = []
        wanted = limit + 1
        while wanted > 0 and (data := self.read1(wanted)):
            parts.append(data)
            wanted -= len(data)
        return b"".join(parts)

    def close(self) -> None:
        """Release the connection: for reuse when the body was read to its end, else it is closed."""
        self._body.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sender(Protocol):
    """What can carry a Request; the seam at which tests replace the network."""

    def send(self, request: Request, route: Route, deadline: Deadline) -> Response:
        """Return the answer, whatever its status.

        Raises:
            Unavailable: no connection, no answer, or not in time.
            TlsNotSpoken: as its docstring says.
            FailedPrecondition: the server's certificate is not trusted, or our own files cannot be used.
        """

    def close(self) -> None:
        """Let go of idle connections."""


class Transport:
    """Sender over the network; thread-safe."""

    def __init__(self, settings: RegistrySettings, proxies: ProxyRules) -> None:
        self._settings = settings
        self._proxies = proxies
        self._resolver = Resolver()
        self._lock = threading.Lock()
        self._managers: OrderedDict[tuple[TlsConfig | None, str], urllib3.PoolManager] = OrderedDict()

    def send(self, request: Request, route: Route, deadline: Deadline) -> Response:
        """See Sender."""
        settings = self._settings
        connect_s = min(route.connect_timeout_s or settings.connect_timeout_s, deadline.remaining())
        if connect_s <= 0:
            raise Unavailable(f"{request.method} {redact_url(request.url)}: the deadline passed")
        proxy = route.proxy if route.proxy is not None else self._proxies.proxy_for(request.url)
        # Loading the system's authorities takes 20 ms and a megabyte, so only who speaks TLS does it.
        tls = route.tls if urlsplit(request.url).scheme == "https" or urlsplit(proxy or "").scheme == "https" else None
        manager = self._manager(tls, proxy or "")
        limits = Limits(deadline, connect_s, settings.idle_timeout_s, settings.slow_bytes_per_s, self._resolver)
        try:
            with applied(limits):
                raw = manager.urlopen(
                    request.method,
                    request.url,
                    redirect=False,
                    retries=False,
                    preload_content=False,
                    decode_content=False,
                    assert_same_host=False,
                    headers={"User-Agent": settings.user_agent, "Accept-Encoding": "identity", **request.headers},
                    body=request.body,
                    timeout=urllib3.Timeout(connect=connect_s, read=settings.idle_timeout_s),
                )
        except (http_errors.HTTPError, OSError, UnicodeError) as error:
            raise translated(error, request.method, request.url) from error
        return Response(request, raw.status, raw.headers, _UrllibBody(raw))

    def close(self) -> None:
        """Close idle connections; those in use close when their responses do."""
        with self._lock:
            managers = list(self._managers.values())
            self._managers.clear()
        for manager in managers:
            _close_idle(manager)

    def _manager(self, tls: TlsConfig | None, proxy: str) -> urllib3.PoolManager:
        with self._lock:
            manager = self._managers.get((tls, proxy))
            if manager is not None:
                self._managers.move_to_end((tls, proxy))
                return manager
        made = self._make_manager(tls, proxy)
        with self._lock:
            manager = self._managers.setdefault((tls, proxy), made)
            oldest = self._managers.popitem(last=False)[1] if len(self._managers) > POOL_MANAGERS_MAX else None
        if oldest is not None:
            _close_idle(oldest)
        return manager

    def _make_manager(self, tls: TlsConfig | None, proxy: str) -> urllib3.PoolManager:
        context = None if tls is None else context_for(tls)
        size, checked = self._settings.connections_per_host, tls is None or not tls.skip_verify
        manager: urllib3.PoolManager
        if proxy:
            parts = urlsplit(proxy)
            if parts.scheme not in {"http", "https"}:
                raise FailedPrecondition(f"proxies of the kind {parts.scheme} are not supported, only http and https")
            credentials = f"{parts.username}:{parts.password or ''}" if parts.username else None
            manager = urllib3.ProxyManager(
                f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
                proxy_headers=urllib3.make_headers(proxy_basic_auth=credentials),
                num_pools=HOSTS_MAX,
                maxsize=size,
                blocksize=SEND_BLOCK_BYTES,
                ssl_context=context,
                assert_hostname=None if checked else False,
            )
        else:
            manager = urllib3.PoolManager(
                num_pools=HOSTS_MAX,
                maxsize=size,
                blocksize=SEND_BLOCK_BYTES,
                ssl_context=context,
                assert_hostname=None if checked else False,
            )
        manager.pool_classes_by_scheme = {"http": BoundedPool, "https": BoundedTlsPool}
        return manager


def _close_idle(manager: urllib3.PoolManager) -> None:
    # clear() alone leaves the sockets to the garbage collector.
    for key in manager.pools.keys():  # noqa: SIM118  # the container is no mapping: it cannot be iterated
        pool = manager.pools.get(key)
        if pool is not None:
            pool.close()
    manager.clear()


class _UrllibBody:
    """Body of a urllib3 response."""

    def __init__(self, raw: urllib3.BaseHTTPResponse) -> None:
        self._raw = raw

    def read1(self, amt: int | None = None, /) -> bytes:
        return self._raw.read1(amt)

    def close(self) -> None:
        if getattr(self._raw, "length_remaining", None) == 0:
            self._raw.drain_conn()  # an answer without a body (HEAD, 204) has to be told so to go back to its pool
        # A connection whose body was read to the end has gone back to its pool by now; any other must not.
        self._raw.close()


def translated(error: Exception, method: str, url: str) -> ApparateError:
    """Return our error for what urllib3 raised during *method* *url*; its text holds no secret."""
    what = f"{method} {redact_url(url)}"
    cause = _root(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        host = urlsplit(url).hostname
        return FailedPrecondition(
            f"{what}: the certificate of {host} is not trusted ({cause.verify_message}); "
            f"name its CA in certs.d/{host}/hosts.toml"
        )
    if isinstance(cause, ssl.SSLError) and speaks_plain_http(cause):
        return TlsNotSpoken(f"{what}: the server speaks plain HTTP; its hosts.toml or plain_http_hosts must say so")
    if isinstance(error, http_errors.LocationValueError | UnicodeError):
        return FailedPrecondition(f"{what}: the URL or a header cannot be encoded")
    kind = NotConnected if isinstance(error, _NOT_CONNECTED) else Unavailable
    return kind(f"{what}: {_described(error, cause)}")


def _root(error: BaseException) -> BaseException:
    seen = error
    for _ in range(8):
        inner = seen.__cause__ or next((a for a in seen.args if isinstance(a, BaseException)), None) or seen.__context__
        if inner is None:
            break
        seen = inner
    return seen


def _described(error: Exception, cause: BaseException) -> str:
    if isinstance(error, http_errors.NameResolutionError):
        return "the host name cannot be resolved"
    if isinstance(error, http_errors.ProxyError):
        return f"the proxy cannot be used: {_short(cause)}"
    if isinstance(error, http_errors.NewConnectionError):  # a ConnectTimeoutError too
        return f"cannot connect: {_short(cause)}"
    if isinstance(error, http_errors.ConnectTimeoutError):
        return "no connection in time"
    if isinstance(error, http_errors.ReadTimeoutError | TimeoutError):
        return f"no answer in time ({_short(cause)})"
    return f"the connection broke: {_short(cause)}"


def _short(cause: BaseException) -> str:
    return (getattr(cause, "strerror", None) or str(cause) or type(cause).__name__)[:200]
