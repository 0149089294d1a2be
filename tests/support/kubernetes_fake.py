"""An API server in this process: objects, versions, watches, patches, accounts. Judged by `KubernetesApiSuite`, as a real one.

Nothing is stored, nothing is validated but what a caller here can get wrong. Knobs for trouble are methods of `FakeKubernetes`.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from tests.support.kubernetes_http import KINDS, Handler, Json, Refused, Server, Where
from tests.support.kubernetes_merge import merge, strategic_merge

from apparate.kubernetes.access import Access
from apparate.kubernetes.client import Client

_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z")
_HISTORY_MAX = 1000


@dataclass(slots=True)
class _Change:
    version: int
    kind: str
    where: Where
    object: Json


@dataclass(slots=True)
class FakeKubernetes:
    """One API server, listening on loopback inside the block."""

    folder: Path
    certificate: tuple[Path, Path] | None = None
    """With certificate and key, TLS is spoken."""
    ca: Path | None = None
    _objects: dict[Where, Json] = field(default_factory=dict)
    _history: list[_Change] = field(default_factory=list)
    _version: int = 10_000  # the first version that is kept: older ones are "too old"
    _oldest: int = 10_000
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _rights: dict[str, Callable[[str, str, str], bool]] = field(default_factory=dict)
    _broken_watches: int = 0
    _answer: Refused | None = None
    _server: Server | None = None
    _port: int = 0
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
        return self._port

    def _listen(self, port: int) -> None:
        fake = self

        class Bound(Handler):
            server_state = fake

        self._server = Server(("127.0.0.1", port), Bound)
        self._port = int(self._server.server_address[1])
        if self.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Stop listening and break every watch: the server is unreachable."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.hang_up()
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
        self._answer = Refused(status, reason, "as the test wants it", headers)

    def answer_normally(self) -> None:
        self._answer = None

    def account(self, token: str, may: Callable[[str, str, str], bool] | None = None) -> Access:
        """Return access for an account that may do what *may(verb, resource, name)* says, all without it."""
        self._rights[token] = may or (lambda *_: True)
        path = self.folder / f"token-{token}"
        path.write_text(token)
        return Access(f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}", self.ca, path)

    def client(self, token: str = "admin", may: Callable[[str, str, str], bool] | None = None) -> Client:
        """Return a client of such an account."""
        return Client(self.account(token, may), "test")

    def revoke(self, token: str) -> None:
        """Let the account be unknown."""
        self._rights.pop(token, None)

    def put(self, resource: str, name: str, value: Json, namespace: str = "") -> Json:
        """Create or replace an object, as somebody else would."""
        where = Where(resource, namespace, name)
        with self._changed:
            known = where in self._objects
            return self._store("MODIFIED" if known else "ADDED", where, value)

    def remove(self, resource: str, name: str, namespace: str = "") -> None:
        """Delete an object, as somebody else would."""
        with self._changed:
            self._delete(Where(resource, namespace, name))

    def object(self, resource: str, name: str, namespace: str = "") -> Json:
        """Return an object as it is."""
        return self._objects[Where(resource, namespace, name)]

    def all(self, resource: str) -> list[Json]:
        """Return every object of *resource*."""
        return [value for where, value in list(self._objects.items()) if where.resource == resource]

    # What follows is called with requests.

    def allow(self, authorization: str, verb: str, where: Where) -> None:
        token = authorization.removeprefix("Bearer ")
        may = self._rights.get(token)
        if may is None:
            raise Refused(401, "Unauthorized", "Unauthorized")
        if not may(verb, where.resource, where.name):
            raise Refused(403, "Forbidden", f'{where.resource} "{where.name}" is forbidden')
        if self._answer is not None:
            raise self._answer

    def get(self, where: Where) -> Json:
        with self._changed:
            return self._found(_bare(where))

    def listed(self, where: Where, selector: str) -> Json:
        with self._changed:
            items = [value for at, value in self._objects.items() if _in(at, where) and _selected(value, selector)]
            kind = f"{KINDS[where.resource][1]}List"
            metadata = {"resourceVersion": str(self._version)}
            return {"kind": kind, "apiVersion": where.api_version, "metadata": metadata, "items": items}

    def create(self, where: Where, value: Json) -> Json:
        metadata = value.get("metadata", {})
        name = metadata.get("name") or f"{metadata.get('generateName', '')}{uuid.uuid4().hex[:5]}"
        target = Where(where.resource, where.namespace, name)
        with self._changed:
            if target in self._objects:
                raise Refused(409, "AlreadyExists", f'{where.resource} "{name}" already exists')
            return self._store("ADDED", target, value)

    def replace(self, where: Where, value: Json) -> Json:
        with self._changed:
            before = self._found(_bare(where))
            asked = value.get("metadata", {}).get("resourceVersion")
            if asked and asked != before["metadata"]["resourceVersion"]:
                raise Refused(409, "Conflict", "the object has been modified; please apply your changes to the latest")
            return self._store("MODIFIED", _bare(where), _keeping(before, value, where.sub))

    def patch(self, where: Where, patch: Json, content_type: str) -> Json:
        kinds = {"application/merge-patch+json": merge, "application/strategic-merge-patch+json": strategic_merge}
        if content_type not in kinds:
            raise Refused(415, "UnsupportedMediaType", content_type)
        with self._changed:
            before = self._found(_bare(where))
            after = kinds[content_type](before, patch)
            if after == before:
                return before
            return self._store("MODIFIED", _bare(where), _keeping(before, after, where.sub))

    def watch(self, where: Where, selector: str, version: str, seconds: float) -> Iterator[Json]:
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

    def _found(self, where: Where) -> Json:
        if where not in self._objects:
            raise Refused(404, "NotFound", f'{where.resource} "{where.name}" not found')
        return self._objects[where]

    def _store(self, kind: str, where: Where, value: Json) -> Json:
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
        api_version, name = KINDS[where.resource]
        stored: Json = {**value, "apiVersion": api_version, "kind": name, "metadata": metadata}
        self._objects[where] = json.loads(json.dumps(stored))
        self._remember(kind, where)
        return self._objects[where]

    def _delete(self, where: Where) -> Json:
        value = self._found(where)
        self._version += 1
        value = {**value, "metadata": {**value["metadata"], "resourceVersion": str(self._version)}}
        self._objects[where] = value
        self._remember("DELETED", where)
        return self._objects.pop(where)

    def delete(self, where: Where) -> Json:
        with self._changed:
            return self._delete(_bare(where))

    def _remember(self, kind: str, where: Where) -> None:
        self._history.append(_Change(self._version, kind, where, self._objects[where]))
        if len(self._history) > _HISTORY_MAX:
            self._oldest = self._history.pop(0).version
        self._changed.notify_all()


def _bare(where: Where) -> Where:
    return Where(where.resource, where.namespace, where.name)


def _in(at: Where, collection: Where) -> bool:
    return at.resource == collection.resource and collection.namespace in {"", at.namespace}


def _selected(value: Json, selector: str) -> bool:
    name, _, wanted = selector.partition("=")
    if not name:
        return True
    if name == "metadata.name":
        return bool(value["metadata"]["name"] == wanted)
    if name == "type" and value["kind"] == "Secret":
        return bool(value.get("type") == wanted)
    raise Refused(400, "BadRequest", f"field label not supported: {name}")


def _keeping(before: Json, after: Json, sub: str) -> Json:
    """Return what is stored: `status` changes through its subresource alone, everything else never through it."""
    if sub:
        return {**before, "status": after.get("status", {})}
    return {**after, "status": before["status"]} if "status" in before else after


def _validate(where: Where, value: Json) -> None:
    if where.resource == "events":
        about = value.get("involvedObject", {}).get("namespace") or "default"
        if about != where.namespace:
            raise Refused(422, "Invalid", "involvedObject.namespace: does not match event.namespace")
    if where.resource == "leases":
        spec = value.get("spec", {})
        for name in ("acquireTime", "renewTime"):
            if spec.get(name) is not None and not _MICRO_TIME.match(spec[name]):
                raise Refused(400, "BadRequest", f"{name}: parsing time as MicroTime failed")
        if spec.get("leaseDurationSeconds") is not None and spec["leaseDurationSeconds"] <= 0:
            raise Refused(422, "Invalid", "spec.leaseDurationSeconds: must be greater than 0")
