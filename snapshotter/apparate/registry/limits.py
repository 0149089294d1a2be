"""Connections whose every wait is bounded: no step of an exchange, sent or received, can outlast its limits.

urllib3 and http.client bound each recv() alone, so a server that sends one byte now and then could hold a thread for ever
in the status line or the headers. Here each recv() gets what is left of the exchange's deadline, at most the idle timeout,
and a body that trickles is given up.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apparate.registry.deadline import Deadline
    from apparate.registry.resolver import Resolver


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one exchange."""

    deadline: Deadline
    connect_s: float
    """For name look-up and all addresses of a name together; the handshake of TLS gets as much again."""
    idle_s: float
    slow_bytes_per_s: int
    resolver: Resolver

    def wait_s(self) -> float:
        """Return how long the next step may wait; raise TimeoutError when there is no time left."""
        left = min(self.idle_s, self.deadline.remaining())
        if left <= 0:
            raise TimeoutError("the deadline passed")
        return left


_ADDRESS_S_MIN = 0.25
"""What the last of many addresses still gets."""
_CURRENT: ContextVar[Limits] = ContextVar("apparate_registry_limits")


@contextlib.contextmanager
def applied(limits: Limits) -> Iterator[None]:
    """Make connections used in this block, by this thread, keep *limits*; a response keeps them until it is closed."""
    token = _CURRENT.set(limits)
    try:
        yield
    finally:
        _CURRENT.reset(token)


class _BoundedSocketReader(io.RawIOBase):
    """The receiving side of a socket under Limits."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        super().__init__()
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._limits = limits
        self._window_s = 0.0
        self._window_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        self._sock.settimeout(self._limits.wait_s())
        begun = time.monotonic()
        count = self._raw.readinto(buffer)
        self._window_s += time.monotonic() - begun
        self._window_bytes += count or 0
        if self._window_s >= self._limits.idle_s:
            if count and self._window_bytes < self._limits.slow_bytes_per_s * self._window_s:
                raise TimeoutError(f"slower than {self._limits.slow_bytes_per_s} bytes per second")
            self._window_s, self._window_bytes = 0.0, 0
        return count

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _BoundedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        limits = _CURRENT.get(None)
        if limits is not None:
            self.fp.close()
            self.fp = io.BufferedReader(_BoundedSocketReader(sock, limits))


class _BoundedConnection(HTTPConnection):
    response_class = _BoundedResponse

    def connect(self) -> None:
        super().connect()
        self._bound_sending()

    def _new_conn(self) -> socket.socket:
        # The base class looks the name up without any limit, and gives each address the whole connect timeout.
        limits = _CURRENT.get(None)
        if limits is None:
            return super()._new_conn()
        budget = limits.deadline.capped(limits.connect_s)
        name, timeout = self._dns_host, self.timeout
        try:
            addresses = limits.resolver.addresses(name, self.port or 0, max(budget.remaining(), 0.0))
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"the name {name} was not resolved in time") from error
        except (OSError, UnicodeError) as error:
            raise NameResolutionError(name, self, _gaierror(error)) from error
        try:
            for left in range(len(addresses), 1, -1):
                self._dns_host = addresses[-left]
                self.timeout = max(budget.remaining() / left, _ADDRESS_S_MIN)
                with contextlib.suppress(NewConnectionError, ConnectTimeoutError):
                    return super()._new_conn()
            self._dns_host, self.timeout = addresses[-1], max(budget.remaining(), _ADDRESS_S_MIN)
            return super()._new_conn()
        finally:
            self._dns_host, self.timeout = name, timeout

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._bound_sending()
        super().request(*args, **kwargs)

    def _bound_sending(self) -> None:
        # A pooled socket still has the timeout of the last recv() of its last exchange.
        limits = _CURRENT.get(None)
        if limits is not None and self.sock is not None:
            self.sock.settimeout(limits.wait_s())


def _gaierror(error: Exception) -> socket.gaierror:
    return error if isinstance(error, socket.gaierror) else socket.gaierror(socket.EAI_NONAME, str(error))


class _BoundedTlsConnection(_BoundedConnection, HTTPSConnection):
    pass


class BoundedPool(HTTPConnectionPool):
    """Plain connections under Limits."""

    ConnectionCls = _BoundedConnection


class BoundedTlsPool(HTTPSConnectionPool):
    """TLS connections under Limits."""

    ConnectionCls = _BoundedTlsConnection

    def _validate_conn(self, conn: Any) -> None:
        # As the base class, without its warning for an unverified server: whoever sets skip_verify has said so.
        if conn.is_closed:
            conn.connect()
