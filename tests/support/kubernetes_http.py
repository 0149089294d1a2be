"""HTTP of the fake API server: paths, verbs, streams; what they do is `FakeKubernetes`."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qs, urlsplit

_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/v1)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>status))?)?\Z"
)
KINDS = {
    "daemonsets": ("apps/v1", "DaemonSet"),
    "events": ("v1", "Event"),
    "leases": ("coordination.k8s.io/v1", "Lease"),
    "nodes": ("v1", "Node"),
    "secrets": ("v1", "Secret"),
}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Where:
    """A collection, or an object of it, or its subresource."""

    resource: str
    namespace: str
    name: str = ""
    sub: str = ""

    @property
    def api_version(self) -> str:
        """The group and version of the resource."""
        return KINDS[self.resource][0]


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, reason: str, message: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.headers = status, reason, message, headers or {}


class State(Protocol):
    """What requests are served from."""

    requests: list[str]

    def allow(self, authorization: str, verb: str, where: Where) -> None: ...
    def get(self, where: Where) -> Json: ...
    def listed(self, where: Where, selector: str) -> Json: ...
    def create(self, where: Where, value: Json) -> Json: ...
    def replace(self, where: Where, value: Json) -> Json: ...
    def patch(self, where: Where, patch: Json, content_type: str) -> Json: ...
    def delete(self, where: Where) -> Json: ...
    def watch(self, where: Where, selector: str, version: str, seconds: float) -> Iterator[Json]: ...


class Server(ThreadingHTTPServer):
    """Listens; `hang_up` ends what is open."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End every connection, also those that wait for another request."""
        for connection in list(self._open):
            with suppress(OSError):  # it has just ended
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no news; anything else is shown by the answer it gets."""


class Handler(BaseHTTPRequestHandler):
    """Serves `server_state`, which a subclass has."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_state: ClassVar[State]

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        state = self.server_state
        state.requests.append(f"{self.command} {self.path}")
        found = _PATH.match(parts.path)
        try:
            if found is None or found["resource"] not in KINDS:
                raise Refused(404, "NotFound", "the server could not find the requested resource")
            where = Where(found["resource"], found["namespace"] or "", found["name"] or "", found["sub"] or "")
            state.allow(self.headers.get("Authorization", ""), _verb(self.command, where, query), where)
            if query.get("watch") in {"1", "true"}:
                self._stream(where, query)
                return
            self._answer(201 if self.command == "POST" else 200, self._done(where, query, body))
        except Refused as refusal:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": refusal.status}
            self._answer(
                refusal.status, {**status, "reason": refusal.reason, "message": refusal.message}, refusal.headers
            )

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815  # the names are http.server's

    def _done(self, where: Where, query: dict[str, str], body: bytes) -> Json:
        state = self.server_state
        if self.command == "GET":
            return state.get(where) if where.name else state.listed(where, query.get("fieldSelector", ""))
        if self.command == "DELETE":
            return state.delete(where)
        value = json.loads(body)
        if self.command == "POST":
            return state.create(where, value)
        if self.command == "PUT":
            return state.replace(where, value)
        return state.patch(where, value, self.headers.get("Content-Type", ""))

    def _answer(self, status: int, value: Json, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, where: Where, query: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        seconds = float(query.get("timeoutSeconds", "60"))
        with suppress(OSError):  # the client left
            for event in self.server_state.watch(
                where, query.get("fieldSelector", ""), query.get("resourceVersion", ""), seconds
            ):
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is http.server's
        """Say nothing."""


def _verb(method: str, where: Where, query: dict[str, str]) -> str:
    if method == "GET":
        return "watch" if query.get("watch") else "get" if where.name else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]
