"""A loopback HTTP server that misbehaves on demand, by itself or in front of a real registry.

    with Front(upstream=registry.host) as front:
        front.on("GET", "/blobs/", flip_bit(17), times=1)       # the next blob is damaged, those after it are not
        Reference.parse(f"{front.host}/app:v1") ...             # as if it were the registry
        assert front.count("GET", "/blobs/") == 2

Rules are tried in the order in which they were added; the first that fits answers. What no rule fits is passed on, or answered
with 404 where there is no upstream.
"""

from __future__ import annotations

import http.client
import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
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
        self._server = _Server(("127.0.0.1", 0), _handler(self))
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


# --- what can go wrong ---


def status(code: int, headers: Mapping[str, str] | None = None, *, codes: tuple[str, ...] = ()) -> Action:
    """Answer *code* with an error body of the distribution specification."""
    body = json.dumps({"errors": [{"code": name, "message": f"said {name}"} for name in codes]}).encode()
    return lambda _seen, _forward: Answer(code, {"Content-Type": "application/json", **(headers or {})}, body)


def redirect(to: str, code: int = 307) -> Action:
    """Send the client to *to*, or, where that ends in a slash, to the same path below it."""
    return lambda seen, _forward: Answer(code, {"Location": to.rstrip("/") + seen.path if to.endswith("/") else to})


def html(code: int = 200) -> Action:
    """Answer with a page, as captive portals and confused proxies do."""
    page = b"<!doctype html><title>Please log in</title><h1>Welcome to the guest network</h1>"
    return lambda _seen, _forward: Answer(code, {"Content-Type": "text/html; charset=utf-8"}, page)


def reset() -> Action:
    """Close the connection without an answer."""
    return lambda _seen, _forward: Answer(0)


def flip_bit(at: int) -> Action:
    """Damage byte *at* of the body; its length stays."""

    def action(_seen: Seen, forward: Forward) -> Answer:
        answer = forward()
        body = bytearray(answer.whole())
        if at < len(body):
            body[at] ^= 0x10
        return replace(answer, body=bytes(body))

    return action


def truncate(after: int) -> Action:
    """Close the connection after *after* bytes of the body."""

    def action(_seen: Seen, forward: Forward) -> Answer:
        answer = forward()
        return replace(answer, body=answer.whole()[:after])

    return action


def cut(after: int) -> Action:
    """Send *after* bytes as if they were the whole body."""

    def action(_seen: Seen, forward: Forward) -> Answer:
        answer = forward()
        body = answer.whole()[:after]
        return replace(answer, headers=_with(answer.headers, "Content-Length", str(len(body))), body=body)

    return action


def ignore_range() -> Action:
    """Answer a ranged request with 200 and everything."""
    return lambda _seen, forward: forward(range=None)


def shift_range(by: int) -> Action:
    """Send other bytes than asked for, and say so in Content-Range."""

    def action(seen: Seen, forward: Forward) -> Answer:
        first, _, last = seen.headers["range"].removeprefix("bytes=").partition("-")
        return forward(range=f"bytes={int(first) + by}-{int(last) + by}")

    return action


def lie_in_content_range(text: str) -> Action:
    """Send the right bytes with *text* as Content-Range."""

    def action(_seen: Seen, forward: Forward) -> Answer:
        answer = forward()
        return replace(answer, headers=_with(answer.headers, "Content-Range", text))

    return action


def multipart(boundary: str = "3d6b6a416f9b5") -> Action:
    """Answer a ranged request with a multipart/byteranges body of one part."""

    def action(_seen: Seen, forward: Forward) -> Answer:
        answer = forward()
        if answer.status != 206:
            return answer
        found = {name.lower(): value for name, value in answer.headers.items()}
        head = (
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: {found['content-range']}\r\n\r\n"
        )
        body = head.encode() + answer.whole() + f"\r\n--{boundary}--\r\n".encode()
        kind = f'multipart/byteranges; boundary="{boundary}"'
        return Answer(206, {"Content-Type": kind, "Content-Length": str(len(body))}, body)

    return action


def slow(front: Front, piece_bytes: int, every_s: float) -> Action:
    """Send the body *piece_bytes* at a time with pauses of *every_s* between; ends when the front closes."""

    def action(_seen: Seen, forward: Forward) -> Answer:
        answer = forward()
        body = answer.whole()

        def pieces() -> Iterator[bytes]:
            for begin in range(0, len(body), piece_bytes):
                yield body[begin : begin + piece_bytes]
                if front.closing.wait(every_s):
                    return

        return replace(answer, body=pieces())

    return action


def stall(front: Front, after: int) -> Action:
    """Send *after* bytes of the body and then nothing, the connection left open until the front closes."""

    def action(_seen: Seen, forward: Forward) -> Answer:
        answer = forward()
        body = answer.whole()

        def pieces() -> Iterator[bytes]:
            yield body[:after]
            front.closing.wait()

        return replace(answer, body=pieces())

    return action


def mute(front: Front) -> Action:
    """Say nothing at all until the front closes."""

    def action(_seen: Seen, _forward: Forward) -> Answer:
        front.closing.wait()
        return Answer(0)

    return action


def trickle_headers(front: Front, every_s: float) -> Action:
    """Send one byte of a header now and then, for ever."""

    def action(_seen: Seen, _forward: Forward) -> Answer:
        def pieces() -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nX-Slow: "
            while not front.closing.wait(every_s):
                yield b"x"

        return Answer(-1, body=pieces())

    return action


def _with(headers: Mapping[str, str], name: str, value: str) -> dict[str, str]:
    return {key: old for key, old in headers.items() if key.lower() != name.lower()} | {name: value}


# --- plumbing ---


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    tls: ssl.SSLContext | None = None

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


def _handler(front: Front) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = front.answer(Seen(self.command, self.path, headers, body))
            if answer.status > 0:
                self._send_head(answer)
            sent = self._send_body(answer)
            length = next((v for k, v in answer.headers.items() if k.lower() == "content-length"), None)
            if answer.status <= 0 or (length is not None and self.command != "HEAD" and sent < int(length)):
                self.close_connection = True

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one  # noqa: N815  # http.server's names

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

    return Handler
