"""Requests to an API server: blocking, thread-safe, JSON in and out.

No generated client: of its thousand classes a node would use four, and each node would pay for all of them (docs/agent.md,
"Why no client library").
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import urllib3

from apparate.errors import ApparateError, FailedPrecondition, Unavailable
from apparate.kubernetes.errors import Expired, error_of
from apparate.telemetry import metrics

if TYPE_CHECKING:
    from apparate.kubernetes.access import Access

Object = Mapping[str, Any]
"""An object of the API as JSON; nobody here writes into one."""

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 15.0
WATCH_S: Final = 300
"""A watch is asked to end by itself after this; the next one goes on from where it ended."""
WATCH_GRACE_S: Final = 30.0
BODY_BYTES_MAX: Final = 64 * 1024 * 1024
"""A list of Secrets of one namespace: one Secret is at most 1 MiB, in base64."""
LINE_BYTES_MAX: Final = 4 * 1024 * 1024
"""One event of a watch holds one object."""
_CHUNK_BYTES: Final = 64 * 1024
_CONNECTIONS: Final = 4

STRATEGIC: Final = "application/strategic-merge-patch+json"
MERGE: Final = "application/merge-patch+json"

# A connection whose peer is gone without a word is noticed within about half a minute, also when only the peer would speak.
_KEEPALIVE: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event of a watch: ADDED, MODIFIED, DELETED or BOOKMARK."""

    kind: str
    object: Object

    @property
    def version(self) -> str:
        """The version to go on from."""
        return str(self.object.get("metadata", {}).get("resourceVersion", ""))


class Client:
    """Talks to one API server with one account."""

    def __init__(self, access: Access, user_agent: str) -> None:
        self._access = access
        self._agent = user_agent
        if access.server.startswith("https://") and access.ca is None:
            raise FailedPrecondition(f"{access.server}: no authorities to hold its certificate against")
        self._pool = urllib3.PoolManager(
            num_pools=1,
            maxsize=_CONNECTIONS,
            retries=False,
            ca_certs=str(access.ca) if access.ca else None,
            cert_reqs="CERT_REQUIRED",
            socket_options=_KEEPALIVE,
        )

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        """Return the object, or the list, at *path*.

        Raises:
            NotFound, Denied, Unavailable, ApparateError: as the server says, or it does not answer.
        """
        return self._request("GET", path, query=query)

    def create(self, path: str, body: Object) -> Object:
        """Create *body* in the collection *path*. Raises as `get`, and AlreadyExists."""
        return self._request("POST", path, body=body)

    def replace(self, path: str, body: Object) -> Object:
        """Replace the object at *path*. Raises as `get`, and Conflict: its resourceVersion is not the newest."""
        return self._request("PUT", path, body=body)

    def patch(self, path: str, body: Object, kind: str = STRATEGIC) -> Object:
        """Patch the object at *path*; *kind* is STRATEGIC (lists of the core API are merged by key) or MERGE."""
        return self._request("PATCH", path, body=body, content_type=kind)

    def watch(self, path: str, query: Mapping[str, str], version: str) -> Iterator[WatchEvent]:
        """Yield what changes in the collection *path* after *version*, until the server ends the watch.

        Closing the iterator ends the request.

        Raises:
            Expired: *version* is no longer kept.
            Denied, Unavailable, ApparateError: as for `get`; what was yielded before is valid.
        """
        asked = {**query, "watch": "1", "resourceVersion": version, "timeoutSeconds": str(WATCH_S)}
        asked["allowWatchBookmarks"] = "true"
        what = f"WATCH {path}"
        response = self._open("GET", path, asked, None, "", WATCH_S + WATCH_GRACE_S, what)
        try:
            for line in _lines(response, what):
                yield _event(line, what)
        finally:
            response.close()  # not back into the pool: there is more to come on it

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()

    def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        what = f"{method} {path}"
        response = self._open(method, path, query, body, content_type, READ_TIMEOUT_S, what)
        try:
            data = _read(response, what)
        finally:
            response.release_conn()
        return _object(data, what)

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Object | None,
        content_type: str,
        read_timeout_s: float,
        what: str,
    ) -> urllib3.BaseHTTPResponse:
        """Return an answer of status 2xx whose body has not been read."""
        headers = self._headers({} if body is None else {"Content-Type": content_type})
        outcome = "unreachable"
        try:
            response = self._pool.request(
                method,
                f"{self._access.server}{path}{f'?{urlencode(query)}' if query else ''}",
                body=None if body is None else json.dumps(body).encode(),
                headers=headers,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=read_timeout_s),
                preload_content=False,
                redirect=False,
            )
            outcome = "ok" if response.status < 300 else str(response.status)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(f"{what}: the API server does not answer: {_cause(error)}") from error
        finally:
            metrics.API_REQUESTS.labels(method, outcome).inc()
        if response.status < 300:
            return response
        raise _refusal(response, what)

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": self._agent, **more}
        token = self._access.read_token()
        return {**headers, "Authorization": f"Bearer {token}"} if token else headers


def collection(group_version: str, resource: str, namespace: str = "") -> str:
    """Return the path of a collection, as `collection("coordination.k8s.io/v1", "leases", "kube-system")`."""
    root = f"/api/{group_version}" if "/" not in group_version else f"/apis/{group_version}"
    return f"{root}/namespaces/{namespace}/{resource}" if namespace else f"{root}/{resource}"


def _refusal(response: urllib3.BaseHTTPResponse, what: str) -> ApparateError:
    """Read what is not of status 2xx to its end and return the error that it says."""
    try:
        status = _parsed(_read(response, what)) or {}
    finally:
        response.release_conn()
    reason, message = str(status.get("reason") or ""), str(status.get("message") or "")
    retry_after_s = _seconds(response.headers.get("retry-after", ""))
    return error_of(what, response.status, reason, message, retry_after_s, secrets=_is_of_secrets(what))


def _is_of_secrets(what: str) -> bool:
    return "/secrets" in what


def _lines(response: urllib3.BaseHTTPResponse, what: str) -> Iterator[bytes]:
    kept = b""
    try:
        for chunk in response.stream(_CHUNK_BYTES):
            *whole, kept = (kept + chunk).split(b"\n")
            if len(kept) > LINE_BYTES_MAX:
                raise Unavailable(f"{what}: one event is larger than {LINE_BYTES_MAX} bytes")
            yield from (line for line in whole if line.strip())
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Unavailable(f"{what}: the connection broke: {_cause(error)}") from error


def _event(line: bytes, what: str) -> WatchEvent:
    found = _object(line, what)
    kind, value = found.get("type"), found.get("object")
    if not isinstance(kind, str) or not isinstance(value, dict):
        raise Unavailable(f"{what}: an event has no type or no object")
    if kind != "ERROR":
        return WatchEvent(kind, value)
    status = value.get("code")
    reason, message = str(value.get("reason") or ""), str(value.get("message") or "")
    if status == 410 or reason in {"Expired", "Gone"}:
        raise Expired(f"{what}: {reason or 'Gone'}")
    raise error_of(
        what, status if isinstance(status, int) else 500, reason, message, None, secrets=_is_of_secrets(what)
    )


def _read(response: urllib3.BaseHTTPResponse, what: str) -> bytes:
    parts, size = [], 0
    try:
        for chunk in response.stream(_CHUNK_BYTES):
            parts.append(chunk)
            size += len(chunk)
            if size > BODY_BYTES_MAX:
                response.close()
                raise Unavailable(f"{what}: the answer is larger than {BODY_BYTES_MAX} bytes")
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Unavailable(f"{what}: the connection broke: {_cause(error)}") from error
    return b"".join(parts)


def _object(data: bytes, what: str) -> Object:
    found = _parsed(data)
    if found is None:
        raise Unavailable(f"{what}: the answer is no JSON object")  # its text is not shown: it may hold a secret
    return found


def _parsed(data: bytes) -> Object | None:
    """Return the JSON object in *data*; None for anything else, as a proxy's page."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _cause(error: Exception) -> str:
    """Return the innermost reason: urllib3 wraps it, and its own text repeats the URL."""
    reason = getattr(error, "reason", None)
    return str(reason if reason is not None else error)


def _seconds(text: str) -> float | None:
    return float(text) if text.isdigit() else None
