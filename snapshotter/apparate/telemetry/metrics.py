"""Metrics in Prometheus' text format, served on a unix socket and, if set, on TCP.

Every metric is defined here, so that docs/metrics.md can be held against this one list (a test does). Labels have few values
by design: never a layer, a path or a reference.
"""

from __future__ import annotations

import http.server
import os
import socket
import socketserver
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from apparate.errors import InvalidArgument, Unavailable
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

REGISTRY = CollectorRegistry(auto_describe=True)
AGENT = CollectorRegistry(auto_describe=True)
"""The agent's own: its page joins them to those of the services, which have all of `REGISTRY`."""
_log = get_logger("telemetry.metrics")
_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)

FETCHED_BYTES = Counter(
    "apparate_layer_fetched_bytes", "Bytes of layers received from registries.", ["priority"], registry=REGISTRY
)
REQUESTS = Counter(
    "apparate_registry_requests", "Requests to registries, by outcome.", ["method", "outcome"], registry=REGISTRY
)
MISSES = Counter("apparate_loader_misses", "FUSE reads that had to wait for a registry.", registry=REGISTRY)
READS = Counter("apparate_loader_reads", "FUSE reads.", registry=REGISTRY)
READ_ERRORS = Counter("apparate_loader_read_errors", "FUSE reads answered with an error.", registry=REGISTRY)
PUSHED_BYTES = Counter("apparate_loader_pushed_bytes", "Bytes pushed into the page cache.", registry=REGISTRY)
PUSHES_DROPPED = Counter(
    "apparate_loader_pushes_dropped", "Pieces not pushed because the queue was full.", registry=REGISTRY
)
ATTACH_SECONDS = Histogram(
    "apparate_layer_attach_seconds", "Time to make a layer mountable.", ["source"], buckets=_SECONDS, registry=REGISTRY
)
INTEGRITY_ERRORS = Counter(
    "apparate_layer_integrity_errors", "Members whose bytes did not match their digest.", registry=REGISTRY
)
LAYERS = Gauge("apparate_layer_layers", "Layers on this node, by state.", ["state"], registry=REGISTRY)
STORED_BYTES = Gauge("apparate_layer_stored_bytes", "Bytes of layer data on disk.", registry=REGISTRY)
EVICTED_BYTES = Counter("apparate_layer_evicted_bytes", "Bytes given back to the disk.", registry=REGISTRY)
PREPARES = Counter(
    "apparate_snapshot_prepares",
    "Prepared layers, by how: remote, unpacked, ordinary or fallback.",
    ["how"],
    registry=REGISTRY,
)
CALLS = Histogram(
    "apparate_snapshot_call_seconds", "Duration of snapshotter calls.", ["call"], buckets=_SECONDS, registry=REGISTRY
)
PART_FAILURES = Counter(
    "apparate_service_part_failures", "Attempts to open a part of the service that failed.", ["part"], registry=REGISTRY
)

REFUSED_WALL_NAME = "apparate_registry_credential_refused_wall_seconds"
REFUSED_WALL = Gauge(
    REFUSED_WALL_NAME,
    "When a registry last refused a credential, Unix time; 0: not since the start.",
    registry=REGISTRY,
)

API_REQUESTS = Counter(
    "apparate_agent_api_requests", "Requests to the API server, by outcome.", ["method", "outcome"], registry=AGENT
)
AGENT_EVENTS = Counter(
    "apparate_agent_events",
    "Events on the node, by outcome: sent, limited, failed.",
    ["reason", "outcome"],
    registry=AGENT,
)
AGENT_IMAGES = Gauge("apparate_agent_images", "Images on this node, by state.", ["state"], registry=AGENT)
AGENT_INFO = Gauge("apparate_agent_info", "Always 1.", ["version", "driver"], registry=AGENT)
AGENT_LAZY = Gauge("apparate_agent_mode_lazy", "1: new images are loaded on demand.", registry=AGENT)
AGENT_PREPARE_FAILED = Gauge("apparate_agent_prepare_failed", "1: the node could not be prepared.", registry=AGENT)
AGENT_READY = Gauge("apparate_agent_ready", "1: a lazy pod would start here now.", registry=AGENT)
AGENT_SECRETS = Gauge("apparate_agent_secrets", "Secrets whose credentials are on the host.", registry=AGENT)
AGENT_SERVICE_UP = Gauge(
    "apparate_agent_service_up", "1: the service of the host is ready.", ["service"], registry=AGENT
)


@dataclass(frozen=True, slots=True)
class Page:
    """What a path answers: status, content type, body."""

    status: int
    content_type: str
    body: bytes


def metrics_page() -> Page:
    """Return every metric."""
    return Page(200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY))


class TelemetryServer:
    """Serves pages by path on a unix socket (mode 0600) and optionally on TCP, each from threads of its own."""

    def __init__(
        self,
        pages: Mapping[str, Callable[[], Page]],
        socket_path: Path | None,
        tcp_address: str = "",
        *,
        private_pages: Mapping[str, Callable[[], Page]] | None = None,
    ) -> None:
        """Begin to serve; *private_pages* are on the socket only.

        Raises:
            InvalidArgument, Unavailable: the address or the socket cannot be used.
        """
        self._servers: list[socketserver.BaseServer] = []
        self._socket_path = socket_path
        if socket_path is not None:
            self._servers.append(_unix_server(socket_path, _handler({**pages, **(private_pages or {})})))
        if tcp_address:
            self._servers.append(_tcp_server(tcp_address, _handler(pages)))
        for server in self._servers:
            threading.Thread(target=server.serve_forever, name="telemetry", daemon=True).start()

    def close(self) -> None:
        """Stop serving and remove the socket."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        if self._socket_path is not None:
            self._socket_path.unlink(missing_ok=True)


def _handler(pages: Mapping[str, Callable[[], Page]]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10  # a client that says nothing holds a thread no longer than this

        def do_GET(self) -> None:
            make = pages.get(self.path.partition("?")[0])
            page = make() if make else Page(404, "text/plain", b"not found\n")
            self.send_response(page.status)
            self.send_header("Content-Type", page.content_type)
            self.send_header("Content-Length", str(len(page.body)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # the reader left: nothing is lost
                self.wfile.write(page.body)

        def address_string(self) -> str:
            return "local"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is http.server's
            _log.debug("telemetry request", request=format % args)

    return Handler


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False


def _unix_server(path: Path, handler: type[http.server.BaseHTTPRequestHandler]) -> socketserver.BaseServer:
    old_umask = os.umask(0o077)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.umask(0o177)
        return _UnixServer(str(path), handler)
    except OSError as error:
        raise Unavailable(f"telemetry socket {path}: {error.strerror or error}") from error
    finally:
        os.umask(old_umask)


def _tcp_server(address: str, handler: type[http.server.BaseHTTPRequestHandler]) -> socketserver.BaseServer:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise InvalidArgument(f"telemetry address {address!r}: write host:port")
    host = host.strip("[]")
    everywhere = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if everywhere or ":" in host else socket.AF_INET

    class Server(http.server.ThreadingHTTPServer):
        address_family = family
        block_on_close = False

        def server_bind(self) -> None:
            if everywhere:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

    try:
        return Server((host, int(port)), handler)
    except OSError as error:
        raise Unavailable(f"telemetry address {address}: {error.strerror or error}") from error
