"""A registry in memory, behind the registry client's transport seam: no network, no threads of its own.

It passes tests/conformance/test_registry.py like the real one, so what is built on it may rely on it.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from apparate.registry.client import RegistryClient
from apparate.registry.deadline import Deadline
from apparate.registry.settings import RegistrySettings
from apparate.registry.transport import Request, Response, Route

_PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>blobs/uploads|blobs|manifests)/(?P<what>[^/]*)\Z")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)\Z")


@dataclass
class Repository:
    """What one name holds."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Digest to media type and body."""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """An answer: status, headers, body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


Fault = Callable[[Request], Reply | Exception | None]
"""Is shown each request first; what it returns is the answer, what it returns as an exception is raised."""


class FakeRegistry:
    """The registry; a Sender. *host* is what references to it begin with."""

    def __init__(self, host: str = "registry.test") -> None:
        self.host = host
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytearray] = {}
        self.requests: list[Request] = []
        self.routes: list[Route] = []
        self.fault: Fault = lambda _request: None
        self.closed = False
        self._lock = threading.Lock()

    def client(self) -> RegistryClient:
        """Return a client whose every request comes here."""
        settings = RegistrySettings(hosts_dirs=(), credentials_dir="", docker_config="/nonexistent")
        return RegistryClient(settings, sender=self)

    def repository(self, name: str) -> Repository:
        return self.repositories.setdefault(name, Repository())

    def count(self, method: str = "", part: str = "") -> int:
        return sum(request.method.startswith(method) and part in request.url for request in self.requests)

    def send(self, request: Request, route: Route, deadline: Deadline) -> Response:
        """See Sender."""
        deadline.check(f"{request.method} {request.url}")
        body = request.body if isinstance(request.body, bytes) else b"".join(request.body or ())
        with self._lock:
            self.requests.append(request)
            self.routes.append(route)
            said = self.fault(request)
            if isinstance(said, Exception):
                raise said
            reply = said if said is not None else self._answer(request, body)
        headers = {"Content-Length": str(len(reply.body)), **reply.headers}
        return Response(request, reply.status, headers, _Body(b"" if request.method == "HEAD" else reply.body))

    def close(self) -> None:
        """See Sender."""
        self.closed = True

    def _answer(self, request: Request, body: bytes) -> Reply:
        parts = urlsplit(request.url)
        match = _PATH.match(parts.path)
        if match is None:
            return _error(404, "NAME_UNKNOWN")
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        name, kind, what = match["name"], match["kind"], match["what"]
        if kind == "blobs/uploads":
            return self._upload(request, name, what, query, body)
        if kind == "blobs":
            return self._blob(request, name, what)
        return self._manifest(request, name, what, body)

    def _blob(self, request: Request, name: str, digest: str) -> Reply:
        blobs = self.repository(name).blobs
        if digest not in blobs:
            return _error(404, "BLOB_UNKNOWN")
        if request.method == "DELETE":
            del blobs[digest]
            return Reply(202)
        data = blobs[digest]
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}
        match = _RANGE.match(request.headers.get("Range", ""))
        if match is None:
            return Reply(200, headers, data)
        begin, end = _bounds(match, len(data))
        if begin >= end:
            return Reply(416, {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        return Reply(206, headers, data[begin:end])

    def _manifest(self, request: Request, name: str, what: str, body: bytes) -> Reply:
        repository = self.repository(name)
        if request.method == "PUT":
            digest = _digest(body)
            if ":" not in what:
                repository.tags[what] = digest
            elif what != digest:
                return _error(400, "DIGEST_INVALID")
            repository.manifests[digest] = (request.headers.get("Content-Type", ""), body)
            return Reply(201, {"Docker-Content-Digest": digest, "Location": request.url})
        digest = what if ":" in what else repository.tags.get(what, "")
        if digest not in repository.manifests:
            return _error(404, "MANIFEST_UNKNOWN")
        if request.method == "DELETE":
            del repository.manifests[digest]
            repository.tags = {tag: target for tag, target in repository.tags.items() if target != digest}
            return Reply(202)
        media_type, stored = repository.manifests[digest]
        return Reply(200, {"Content-Type": media_type, "Docker-Content-Digest": digest}, stored)

    def _upload(self, request: Request, name: str, session: str, query: dict[str, str], body: bytes) -> Reply:
        blobs = self.repository(name).blobs
        if request.method == "POST":
            mounted = self.repository(query.get("from", "")).blobs.get(query.get("mount", ""))
            if mounted is not None:
                blobs[query["mount"]] = mounted
                return Reply(201, {"Location": f"/v2/{name}/blobs/{query['mount']}"})
            session = f"session-{len(self.requests)}"
            self.uploads[session] = bytearray()
            return Reply(202, {"Location": f"/v2/{name}/blobs/uploads/{session}?state=0", "Range": "0-0"})
        held = self.uploads.get(session)
        if held is None:
            return _error(404, "BLOB_UPLOAD_UNKNOWN")
        where = {"Location": f"/v2/{name}/blobs/uploads/{session}?state={len(held) + len(body)}"}
        if request.method == "DELETE":
            del self.uploads[session]
            return Reply(204)
        if request.method == "GET":
            return Reply(204, {**where, "Range": f"0-{max(len(held) - 1, 0)}"})
        if request.headers.get("Content-Range", f"{len(held)}-").partition("-")[0] != str(len(held)):
            return Reply(416, where)
        if len(body) != int(request.headers["Content-Length"]):
            return _error(400, "SIZE_INVALID")
        held += body
        if request.method == "PATCH":
            return Reply(202, {**where, "Range": f"0-{len(held) - 1}"})
        if _digest(bytes(held)) != query.get("digest"):
            return _error(400, "DIGEST_INVALID")
        blobs[query["digest"]] = bytes(self.uploads.pop(session))
        return Reply(201, {"Location": f"/v2/{name}/blobs/{query['digest']}", "Docker-Content-Digest": query["digest"]})


class _Body:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def read1(self, amt: int | None = None, /) -> bytes:
        size = len(self._data) if amt is None else amt
        piece, self._data = bytes(self._data[:size]), self._data[size:]
        return piece

    def close(self) -> None:
        self._data = memoryview(b"")


def _bounds(match: re.Match[str], size: int) -> tuple[int, int]:
    first, last = match[1], match[2]
    if not first:
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1, size) if last else size


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _error(status: int, code: str) -> Reply:
    return Reply(status, {"Content-Type": "application/json"}, json.dumps({"errors": [{"code": code}]}).encode())
