"""A programmable loopback HTTP server, by itself or in front of another; what it can do wrong is in faulty.py."""

from __future__ import annotations

import http.client
import http.server
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.support.distribution import Authority

PIECE_BYTES = 64 * 1024
UPSTREAM_TIMEOUT_S = 30.0
_PER_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "proxy-connection", "host"})


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    path: str
    """Path and query."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = b""

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)


@dataclass(frozen=True)
class Answer:
    """What is sent back. A body shorter than its Content-Length ends in a closed connection."""

    status: int = 200
    """0: the connection is closed without any answer."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes] = b""

    def pieces(self) -> Iterator[bytes]:
        if isinstance(self.body, bytes):
            yield self.body
        else:
            yield from self.body

    def whole(self) -> bytes:
        return b"".join(self.pieces())


Forward = Callable[..., Answer]
"""Passes the request on and returns the answer; keyword arguments replace headers, None removes one."""
Action = Callable[[Seen, Forward], Answer]


@dataclass
class Rule:
    """Answers requests of *method* whose path holds *part*, *times* times (None: always)."""

    method: str
    part: str
    action: Action
    times: int | None = None
    used: int = 0


class Front:
    """The server; a context manager. Thread-safe.

    Args:
        upstream: `host:port` of a server to pass requests on to, in plain HTTP; empty for none.
        authority: with one, TLS is spoken with a certificate of it.
        client_authority: with one, a client certificate of it is demanded.
        tls_name: name in the certificate.
    """

    def __init__(
        self,
        upstream: str = "",
        *,
        authority: Authority | None = None,
        client_authority: Authority | None = None,
        tls_name: str = "front",
    ) -> None:
        self._upstream = upstream
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._seen: list[Seen] = []
        self.closing = threading.Event()
        self._server = _Server(self)
        self.tls = authority is not None
        if authority is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*authority.issue(tls_name))
            if client_authority is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(client_authority.ca)
            self._server.tls = context
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}"

    def on(self, method: str, part: str, action: Action | Answer, *, times: int | None = None) -> Rule:
        """Add a rule, for requests whose method is *method* (empty: any) and whose path and query hold *part*."""
        made = (lambda _seen, _forward: action) if isinstance(action, Answer) else action
        rule = Rule(method, part, made, times)
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forget rules and requests."""
        with self._lock:
            self._rules.clear()
            self._seen.clear()

    def requests(self, method: str = "", part: str = "") -> list[Seen]:
        """Return the requests that came, in order."""
        with self._lock:
            return [seen for seen in self._seen if seen.method.startswith(method) and part in seen.path]

    def count(self, method: str = "", part: str = "") -> int:
        return len(self.requests(method, part))

    def answer(self, seen: Seen) -> Answer:
        """Return the answer to *seen*."""
        with self._lock:
            self._seen.append(seen)
            rule = next((rule for rule in self._rules if _fits(rule, seen)), None)
            if rule is not None:
                rule.used += 1

        def forward(**changes: str | None) -> Answer:
            return self._forward(seen, changes)

        return rule.action(seen, forward) if rule is not None else forward()

    def refuse_tunnel(self, seen: Seen) -> Answer | None:
        """Return what a rule answers to a CONNECT; None: the tunnel is opened."""
        with self._lock:
            self._seen.append(seen)
            rule = next((rule for rule in self._rules if rule.method == "CONNECT" and _fits(rule, seen)), None)
            if rule is None:
                return None
            rule.used += 1
        return rule.action(seen, Answer)

    def _forward(self, seen: Seen, changes: Mapping[str, str | None]) -> Answer:
        if not self._upstream:
            return Answer(404, {"Content-Type": "text/plain"}, b"nothing here\n")
        headers = {name: value for name, value in seen.headers.items() if name not in _PER_HOP}
        for name, value in changes.items():
            headers.pop(name.lower(), None)
            if value is not None:
                headers[name] = value
        connection = http.client.HTTPConnection(self._upstream, timeout=UPSTREAM_TIMEOUT_S)
        # The upstream makes its Locations from Host, and they have to lead back here.
        connection.putrequest(seen.method, seen.path, skip_host=True, skip_accept_encoding=True)
        for name, value in {**headers, "Host": self.host, "Content-Length": str(len(seen.body))}.items():
            connection.putheader(name, value)
        connection.endheaders(seen.body or None)
        response = connection.getresponse()
        kept = {name: value for name, value in response.getheaders() if name.lower() not in _PER_HOP}
        return Answer(response.status, kept, _drained(connection, response))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _fits(rule: Rule, seen: Seen) -> bool:
    left = rule.times is None or rule.used < rule.times
    return left and (not rule.method or rule.method == seen.method) and rule.part in seen.path


def _drained(connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while piece := response.read(PIECE_BYTES):
            yield piece
    finally:
        connection.close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    tls: ssl.SSLContext | None = None

    def __init__(self, front: Front) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.front = front

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(UPSTREAM_TIMEOUT_S)
        with self.tls.wrap_socket(request, server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients that leave early, or refuse our certificate, are what the tests are about.
        del request, client_address


def _relay(one: socket.socket, other: socket.socket, closing: threading.Event) -> None:
    pairs = {one: other, other: one}
    while not closing.is_set():
        ready, _, _ = select.select(list(pairs), [], [], 0.1)
        for source in ready:
            data = source.recv(PIECE_BYTES)
            if not data:
                return
            pairs[source].sendall(data)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.front.answer(Seen(self.command, self.path, headers, body))
        if answer.status > 0:
            self._send_head(answer)
        sent = self._send_body(answer)
        length = next((v for k, v in answer.headers.items() if k.lower() == "content-length"), None)
        if answer.status <= 0 or (length is not None and self.command != "HEAD" and sent < int(length)):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one  # noqa: N815  # http.server's names

    def do_CONNECT(self) -> None:  # http.server's name
        """Be a tunnel to the address asked for, as an HTTP proxy is, unless a rule answers."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.close_connection = True
        refusal = self.server.front.refuse_tunnel(Seen("CONNECT", self.path, headers))
        if refusal is not None:
            self._send_head(refusal)
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), UPSTREAM_TIMEOUT_S) as other:
            self.send_response_only(200)
            self.end_headers()
            _relay(self.connection, other, self.server.front.closing)

    def _send_head(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        names = {name.lower() for name in answer.headers}
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "content-length" not in names:
            if isinstance(answer.body, bytes):
                self.send_header("Content-Length", str(len(answer.body)))
            else:
                self.send_header("Connection", "close")
                self.close_connection = True
        self.end_headers()

    def _send_body(self, answer: Answer) -> int:
        sent = 0
        for piece in answer.pieces():
            if self.command != "HEAD":
                self.wfile.write(piece)
                self.wfile.flush()
            sent += len(piece)
        return sent

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is http.server's
        del format, args
