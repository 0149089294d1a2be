"""One call of the distribution API at one endpoint: authentication, redirects, plain HTTP where it may be."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from apparate.errors import ApparateError, RegistryError, Unavailable
from apparate.registry.answers import REDIRECTS, redirected, refusal
from apparate.registry.endpoint import Endpoint, Origin, origin_of
from apparate.registry.redact import redact_url
from apparate.registry.transport import NotConnected, Request, Response, Route, TlsNotSpoken
from apparate.telemetry import metrics
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from apparate.registry.auth import Authorizer, Negotiation
    from apparate.registry.deadline import Deadline
    from apparate.registry.transport import Sender

REDIRECTS_MAX = 10
ROUNDS_MAX = 12
"""Requests for one call at one endpoint, counting each other credential tried."""
TARGETS_MAX = 4096
"""Addresses remembered that blobs were redirected to."""
TARGET_S = 300.0
"""How long such an address is used. Signed ones live a minute to an hour; an expired one costs one request more."""
EVENT_PLAIN_HTTP = "registry speaks plain HTTP"

_log = get_logger("registry.exchange")


@dataclass(frozen=True, slots=True)
class Call:
    """What to ask. *path* is relative to the API root; *url*, where set, is a Location the registry gave."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    body: Callable[[], bytes | Iterable[bytes]] | None = None
    """Makes the body anew for every attempt."""
    scopes: tuple[str, ...] = ()
    accepted: frozenset[int] = field(default=frozenset({200}))
    url: str = ""
    follow: bool = True
    """Whether redirects are followed; uploads take the Location of their answers themselves."""
    keep_target: bool = False
    """Whether the address it was redirected to serves the next call of the same path too."""


class Exchange:
    """Carries Calls to endpoints; thread-safe."""

    def __init__(self, sender: Sender, authorizer: Authorizer) -> None:
        self._sender = sender
        self._authorizer = authorizer
        self._targets = _Targets()
        self._plain: set[Origin] = set()

    def perform(self, endpoint: Endpoint, call: Call, deadline: Deadline) -> Response:
        """Return the answer, whose status is one of `call.accepted`; the caller closes it.

        401 and 403 get one renewed token and every other credential there is; an address that a blob was redirected to
        earlier and that refuses now is dropped, and the registry is asked again.

        Raises:
            NotFound: 404.
            RegistryError: the registry refused.
            Unavailable: no answer, or one that says to come back later.
            FailedPrecondition: see Sender.
        """
        outcome = "error"
        try:
            response = self._performed(endpoint, call, deadline)
            outcome = "ok"
        except ApparateError as error:
            outcome = "temporary" if error.temporary else "refused"
            raise
        finally:
            metrics.REQUESTS.labels(call.method, outcome).inc()
        return response

    def _performed(self, endpoint: Endpoint, call: Call, deadline: Deadline) -> Response:
        if endpoint.http_fallback and endpoint.origin in self._plain:
            endpoint = dataclasses.replace(endpoint, scheme="http")
        try:
            response = self._answer(endpoint, call, deadline)
        except NotConnected as error:
            if not self._may_be_plain(endpoint, error):
                raise
            plain = dataclasses.replace(endpoint, scheme="http")
            response = self._answer(plain, call, deadline)
            _log.info(EVENT_PLAIN_HTTP, host=endpoint.host)
            self._plain.add(endpoint.origin)
        if response.status in call.accepted:
            return response
        with response:
            raise _with_advice(refusal(response), endpoint)

    def _may_be_plain(self, endpoint: Endpoint, error: NotConnected) -> bool:
        # As containerd: TLS is tried first; plain HTTP follows where the handshake was answered in it, or where no port
        # was named and nothing listens on that of TLS.
        if not endpoint.http_fallback or endpoint.scheme != "https":
            return False
        return isinstance(error, TlsNotSpoken) or urlsplit(f"//{endpoint.host}").port is None

    def _answer(self, endpoint: Endpoint, call: Call, deadline: Deadline) -> Response:
        if not call.keep_target:
            return self._authorized(endpoint, call, deadline)
        key = f"{endpoint.namespace} {endpoint.url(call.path)}"
        target = self._targets.get(key)
        if target:
            kept = self._at_target(endpoint, call, target, deadline)
            if kept is not None:
                return kept
            self._targets.drop(key)
        response = self._authorized(endpoint, call, deadline)
        if origin_of(response.url) != endpoint.origin and response.status in call.accepted:
            self._targets.put(key, response.url)
        return response

    def _authorized(self, endpoint: Endpoint, call: Call, deadline: Deadline) -> Response:
        negotiation = self._authorizer.negotiation(endpoint, call.scopes, deadline)
        url = call.url or endpoint.url(call.path, call.query)
        response = self._follow(endpoint, call, url, negotiation, deadline)
        for _ in range(ROUNDS_MAX):
            # Behind a redirect nobody got a credential of ours, so a new one would not help.
            if response.status not in {401, 403} or response.url != url:
                break
            with contextlib.ExitStack() as undo:
                undo.callback(response.close)
                if not negotiation.refused(response):
                    undo.pop_all()  # it stays open: its body says why
                    break
            response = self._follow(endpoint, call, url, negotiation, deadline)
        return response

    def _at_target(self, endpoint: Endpoint, call: Call, target: str, deadline: Deadline) -> Response | None:
        """Return what a remembered address answers if it is of use."""
        try:
            response = self._send(endpoint, call, target, "", deadline)
        except Unavailable as error:
            _log.debug("redirect target failed", url=redact_url(target), error=str(error))
            return None
        if response.status in call.accepted or response.status == 416:
            return response
        response.close()
        return None

    def _follow(
        self, endpoint: Endpoint, call: Call, url: str, negotiation: Negotiation, deadline: Deadline
    ) -> Response:
        authorization = negotiation.header()
        for _ in range(REDIRECTS_MAX + 1):
            response = self._send(endpoint, call, url, authorization, deadline)
            location = response.header("location")
            if not call.follow or response.status not in REDIRECTS or not location:
                return response
            response.close()
            url = redirected(url, location)
        raise Unavailable(f"{call.method} {redact_url(url)}: more than {REDIRECTS_MAX} redirects")

    def _send(self, endpoint: Endpoint, call: Call, url: str, authorization: str, deadline: Deadline) -> Response:
        """Send *call* to *url*; what is secret goes to the endpoint's own origin and nowhere else."""
        headers = dict(call.headers)
        if origin_of(url) == endpoint.origin:
            headers = {**dict(endpoint.headers), **headers}
            if authorization:
                headers["Authorization"] = authorization
        route = Route(endpoint.tls, endpoint.proxy, endpoint.dial_timeout_s)
        body = call.body() if call.body is not None else None
        return self._sender.send(Request(call.method, url, headers, body), route, deadline)


class _Targets:
    """Where blobs were redirected to, for a while; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._urls: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def get(self, key: str) -> str:
        with self._lock:
            url, until = self._urls.get(key, ("", 0.0))
            if until <= time.monotonic():
                self._urls.pop(key, None)
                return ""
            return url

    def put(self, key: str, url: str) -> None:
        with self._lock:
            self._urls[key] = (url, time.monotonic() + TARGET_S)
            if len(self._urls) > TARGETS_MAX:
                self._urls.popitem(last=False)

    def drop(self, key: str) -> None:
        with self._lock:
            self._urls.pop(key, None)


def _with_advice(error: ApparateError, endpoint: Endpoint) -> ApparateError:
    if isinstance(error, RegistryError) and error.status in {401, 403}:
        advice = f"no credential for {endpoint.host} was found that is allowed to do this; log in, or add it to a pull secret"
        return RegistryError(error.method, error.url, error.status, error.codes, advice)
    return error
