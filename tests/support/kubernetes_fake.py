"""An API server in this process: objects, versions, watches, patches, accounts. Judged by `KubernetesApiSuite`, as a real one.

Nothing is stored, nothing is validated but what a caller here can get wrong. Knobs for trouble are methods of `FakeKubernetes`.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.support.kubernetes_merge import merge, strategic_merge

from apparate.kubernetes.access import Access
from apparate.kubernetes.client import Client

_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/v1)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>status))?)?\Z"
)
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z")
_KINDS = {
    "daemonsets": ("apps/v1", "DaemonSet"),
    "events": ("v1", "Event"),
    "leases": ("coordination.k8s.io/v1", "Lease"),
    "nodes": ("v1", "Node"),
    "secrets": ("v1", "Secret"),
}
_HISTORY_MAX = 1000

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Where:
    resource: str
    namespace: str
    name: str = ""
    sub: str = ""

    @property
    def api_version(self) -> str:
        return _KINDS[self.resource][0]


class _Refused(Exception):
    def __init__(self, status: int, reason: str, message: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.headers = status, reason, message, headers or {}


@dataclass(slots=True)
class _Change:
    version: int
    kind: str
    where: _Where
    object: Json


@dataclass(slots=True)
class FakeKubernetes:
    """One API server, listening on loopback inside the block."""

    folder: Path
    _objects: dict[_Where, Json] = field(default_factory=dict)
    _history: list[_Change] = field(default_factory=list)
    _version: int = 10_000  # the first version that is kept: older ones are "too old"
    _oldest: int = 10_000
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _rights: dict[str, Callable[[str, str, str], bool]] = field(default_factory=dict)
    _broken_watches: int = 0
    _answer: _Refused | None = None
    _server: ThreadingHTTPServer | None = None
    requests: list[str] = field(default_factory=list)
    """`METHOD path?query` of each request, in order."""

    def __enter__(self) -> Self:
        self._rights["admin"] = lambda *_: True
        self._listen(0)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.server_address[1])

    def _listen(self, port: int) -> None:
        fake = self

        class Handler(_Handler):
            server_state = fake

        self._server = _Server(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Stop listening and break every watch: the server is unreachable."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self.break_watches()
        self._server = None

    def restart(self, port: int) -> None:
        """Listen again on *port*; nothing is forgotten."""
        self._listen(port)

    def break_watches(self) -> None:
        """End every watch without a word, as a load balancer does."""
        with self._changed:
            self._broken_watches += 1
            self._changed.notify_all()

    def forget_history(self) -> None:
        """Keep no version before the present one."""
        with self._changed:
            self._history.clear()
            self._version += 1
            self._oldest = self._version

    def answer_all_with(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        """Answer every request so, until `answer_normally`."""
        self._answer = _Refused(status, reason, "as the test wants it", headers)

    def answer_normally(self) -> None:
        self._answer = None

    def account(self, token: str, may: Callable[[str, str, str], bool] | None = None) -> Access:
        """Return access for an account that may do what *may(verb, resource, name)* says, all without it."""
        self._rights[token] = may or (lambda *_: True)
        path = self.folder / f"token-{token}"
        path.write_text(token)
        return Access(f"http://127.0.0.1:{self.port}", None, path)

    def client(self, token: str = "admin", may: Callable[[str, str, str], bool] | None = None) -> Client:
        """Return a client of such an account."""
        return Client(self.account(token, may), "test")

    def revoke(self, token: str) -> None:
        """Let the account be unknown."""
        self._rights.pop(token, None)

    def put(self, resource: str, name: str, value: Json, namespace: str = "") -> Json:
        """Create or replace an object, as somebody else would."""
        where = _Where(resource, namespace, name)
        with self._changed:
            known = where in self._objects
            return self._store("MODIFIED" if known else "ADDED", where, value)

    def remove(self, resource: str, name: str, namespace: str = "") -> None:
        """Delete an object, as somebody else would."""
        with self._changed:
            self._delete(_Where(resource, namespace, name))

    def object(self, resource: str, name: str, namespace: str = "") -> Json:
        """Return an object as it is."""
        return self._objects[_Where(resource, namespace, name)]

    def all(self, resource: str) -> list[Json]:
        """Return every object of *resource*."""
        return [value for where, value in list(self._objects.items()) if where.resource == resource]

    # What follows is called with requests.

    def allow(self, authorization: str, verb: str, where: _Where) -> None:
        token = authorization.removeprefix("Bearer ")
        may = self._rights.get(token)
        if may is None:
            raise _Refused(401, "Unauthorized", "Unauthorized")
        if not may(verb, where.resource, where.name):
            raise _Refused(403, "Forbidden", f'{where.resource} "{where.name}" is forbidden')
        if self._answer is not None:
            raise self._answer

    def get(self, where: _Where) -> Json:
        with self._changed:
            return self._found(_bare(where))

    def listed(self, where: _Where, selector: str) -> Json:
        with self._changed:
            items = [value for at, value in self._objects.items() if _in(at, where) and _selected(value, selector)]
            kind = f"{_KINDS[where.resource][1]}List"
            metadata = {"resourceVersion": str(self._version)}
            return {"kind": kind, "apiVersion": where.api_version, "metadata": metadata, "items": items}

    def create(self, where: _Where, value: Json) -> Json:
        metadata = value.get("metadata", {})
        name = metadata.get("name") or f"{metadata.get('generateName', '')}{uuid.uuid4().hex[:5]}"
        target = _Where(where.resource, where.namespace, name)
        with self._changed:
            if target in self._objects:
                raise _Refused(409, "AlreadyExists", f'{where.resource} "{name}" already exists')
            return self._store("ADDED", target, value)

    def replace(self, where: _Where, value: Json) -> Json:
        with self._changed:
            before = self._found(_bare(where))
            asked = value.get("metadata", {}).get("resourceVersion")
            if asked and asked != before["metadata"]["resourceVersion"]:
                raise _Refused(409, "Conflict", "the object has been modified; please apply your changes to the latest")
            return self._store("MODIFIED", _bare(where), _keeping(before, value, where.sub))

    def patch(self, where: _Where, patch: Json, content_type: str) -> Json:
        kinds = {"application/merge-patch+json": merge, "application/strategic-merge-patch+json": strategic_merge}
        if content_type not in kinds:
            raise _Refused(415, "UnsupportedMediaType", content_type)
        with self._changed:
            before = self._found(_bare(where))
            after = kinds[content_type](before, patch)
            if after == before:
                return before
            return self._store("MODIFIED", _bare(where), _keeping(before, after, where.sub))

    def watch(self, where: _Where, selector: str, version: str, seconds: float) -> Iterator[Json]:
        began = time.monotonic()
        seen = int(version or 0)
        if seen < self._oldest:
            status = {
                "kind": "Status",
                "code": 410,
                "reason": "Expired",
                "message": f"too old resource version: {seen}",
            }
            yield {"type": "ERROR", "object": status}
            return
        breaks = self._broken_watches
        while True:
            with self._changed:
                news = [change for change in self._history if change.version > seen]
                if not news:
                    left = began + seconds - time.monotonic()
                    if left <= 0 or self._broken_watches != breaks:
                        return
                    self._changed.wait(min(left, 1.0))
            for change in news:
                seen = change.version
                if _in(change.where, where) and _selected(change.object, selector):
                    yield {"type": change.kind, "object": change.object}

    def _found(self, where: _Where) -> Json:
        if where not in self._objects:
            raise _Refused(404, "NotFound", f'{where.resource} "{where.name}" not found')
        return self._objects[where]

    def _store(self, kind: str, where: _Where, value: Json) -> Json:
        _validate(where, value)
        self._version += 1
        before = self._objects.get(where, {}).get("metadata", {})
        metadata = {
            **value.get("metadata", {}),
            "name": where.name,
            "resourceVersion": str(self._version),
            "uid": before.get("uid") or str(uuid.uuid4()),
            "creationTimestamp": before.get("creationTimestamp") or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        if where.namespace:
            metadata["namespace"] = where.namespace
        api_version, name = _KINDS[where.resource]
        stored: Json = {**value, "apiVersion": api_version, "kind": name, "metadata": metadata}
        self._objects[where] = json.loads(json.dumps(stored))
        self._remember(kind, where)
        return self._objects[where]

    def _delete(self, where: _Where) -> Json:
        value = self._found(where)
        self._version += 1
        value = {**value, "metadata": {**value["metadata"], "resourceVersion": str(self._version)}}
        self._objects[where] = value
        self._remember("DELETED", where)
        return self._objects.pop(where)

    def delete(self, where: _Where) -> Json:
        with self._changed:
            return self._delete(_bare(where))

    def _remember(self, kind: str, where: _Where) -> None:
        self._history.append(_Change(self._version, kind, where, self._objects[where]))
        if len(self._history) > _HISTORY_MAX:
            self._oldest = self._history.pop(0).version
        self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no news; anything else is shown by the answer it gets."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_state: FakeKubernetes

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        state = self.server_state
        state.requests.append(f"{self.command} {self.path}")
        found = _PATH.match(parts.path)
        try:
            if found is None or found["resource"] not in _KINDS:
                raise _Refused(404, "NotFound", "the server could not find the requested resource")
            where = _Where(found["resource"], found["namespace"] or "", found["name"] or "", found["sub"] or "")
            state.allow(self.headers.get("Authorization", ""), _verb(self.command, where, query), where)
            if query.get("watch") in {"1", "true"}:
                self._stream(where, query)
                return
            self._answer(201 if self.command == "POST" else 200, self._done(where, query, body))
        except _Refused as refusal:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": refusal.status}
            self._answer(
                refusal.status, {**status, "reason": refusal.reason, "message": refusal.message}, refusal.headers
            )

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815  # the names are http.server's

    def _done(self, where: _Where, query: dict[str, str], body: bytes) -> Json:
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

    def _stream(self, where: _Where, query: dict[str, str]) -> None:
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


def _verb(method: str, where: _Where, query: dict[str, str]) -> str:
    if method == "GET":
        return "watch" if query.get("watch") else "get" if where.name else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]


def _bare(where: _Where) -> _Where:
    return _Where(where.resource, where.namespace, where.name)


def _in(at: _Where, collection: _Where) -> bool:
    return at.resource == collection.resource and collection.namespace in {"", at.namespace}


def _selected(value: Json, selector: str) -> bool:
    name, _, wanted = selector.partition("=")
    if not name:
        return True
    if name == "metadata.name":
        return bool(value["metadata"]["name"] == wanted)
    raise _Refused(400, "BadRequest", f"field label not supported: {name}")


def _keeping(before: Json, after: Json, sub: str) -> Json:
    """Return what is stored: `status` changes through its subresource alone, everything else never through it."""
    if sub:
        return {**before, "status": after.get("status", {})}
    return {**after, "status": before["status"]} if "status" in before else after


def _validate(where: _Where, value: Json) -> None:
    if where.resource == "events":
        about = value.get("involvedObject", {}).get("namespace") or "default"
        if about != where.namespace:
            raise _Refused(422, "Invalid", "involvedObject.namespace: does not match event.namespace")
    if where.resource == "leases":
        spec = value.get("spec", {})
        for name in ("acquireTime", "renewTime"):
            if spec.get(name) is not None and not _MICRO_TIME.match(spec[name]):
                raise _Refused(400, "BadRequest", f"{name}: parsing time as MicroTime failed")
        if spec.get("leaseDurationSeconds") is not None and spec["leaseDurationSeconds"] <= 0:
            raise _Refused(422, "Invalid", "spec.leaseDurationSeconds: must be greater than 0")
