"""One call of the distribution API at one endpoint: redirects, and answers turned into values or errors."""

from __future__ import annotations

import email.utils
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from apparate.errors import ApparateError, NotFound, RegistryError, Unavailable
from apparate.registry.endpoint import Endpoint, origin_of
from apparate.registry.redact import redact_url
from apparate.registry.transport import Request, Response, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from apparate.registry.deadline import Deadline
    from apparate.registry.transport import Sender

REDIRECTS_MAX = 10
ERROR_BODY_BYTES_MAX = 64 * 1024
"""How much of an error's body is read for its codes."""
RETRY_AFTER_S_MAX = 3600.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
_CODES_MAX = 8


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


class Exchange:
    """Carries Calls to endpoints; thread-safe."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def perform(self, endpoint: Endpoint, call: Call, deadline: Deadline) -> Response:
        """Return the answer, whose status is one of `call.accepted`; the caller closes it.

        Raises:
            NotFound: 404.
            RegistryError: the registry refused.
            Unavailable: no answer, or one that says to come back later.
            FailedPrecondition: see Sender.
        """
        url = call.url or endpoint.url(call.path, call.query)
        response = self._follow(endpoint, call, url, deadline)
        if response.status in call.accepted:
            return response
        with response:
            raise refusal(response)

    def _follow(self, endpoint: Endpoint, call: Call, url: str, deadline: Deadline) -> Response:
        route = Route(endpoint.tls, endpoint.proxy, endpoint.dial_timeout_s)
        for _ in range(REDIRECTS_MAX + 1):
            headers = dict(call.headers)
            if origin_of(url) == endpoint.origin:
                headers = {**dict(endpoint.headers), **headers}
            body = call.body() if call.body is not None else None
            response = self._sender.send(Request(call.method, url, headers, body), route, deadline)
            if not call.follow or response.status not in _REDIRECTS or not response.header("location"):
                return response
            response.close()
            url = redirected(url, response.header("location"))
        raise Unavailable(f"{call.method} {redact_url(url)}: more than {REDIRECTS_MAX} redirects")


def redirected(url: str, location: str) -> str:
    """Return where *location*, found in the answer to *url*, leads.

    Raises:
        Unavailable: it leads from https to http, or to no web address at all.
    """
    try:
        target = urljoin(url, location)
        parts = urlsplit(target)
        origin_of(target)
    except ValueError as error:
        raise Unavailable(f"GET {redact_url(url)}: redirected to an address that does not parse") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise Unavailable(f"GET {redact_url(url)}: redirected to {redact_url(target)}, which is no web address")
    if urlsplit(url).scheme == "https" and parts.scheme == "http":
        raise Unavailable(f"GET {redact_url(url)}: redirected to plain HTTP at {redact_url(target)}; refused")
    return target


def refusal(response: Response) -> ApparateError:
    """Return the error that *response* stands for; reads its body."""
    url, status = redact_url(response.url), response.status
    codes, message = _codes(response)
    if status == 404:
        return NotFound(f"{response.method} {url}: not found" + (f" ({', '.join(codes)})" if codes else ""))
    if status in _TEMPORARY:
        said = f" ({', '.join(codes)})" if codes else ""
        return Unavailable(f"{response.method} {url}: HTTP status {status}{said}", retry_after_s(response))
    return RegistryError(response.method, url, status, codes, message)


def retry_after_s(response: Response) -> float | None:
    """Return the seconds that the Retry-After header asks to wait (RFC 9110, 10.2.3), at most an hour; None without."""
    text = response.header("retry-after").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return min(float(text), RETRY_AFTER_S_MAX)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return min(max(when.timestamp() - time.time(), 0.0), RETRY_AFTER_S_MAX)


def _codes(response: Response) -> tuple[tuple[str, ...], str]:
    """Return the error codes and the first message in the body (distribution specification, "Error Codes"), if any."""
    try:
        body = response.read_at_most(ERROR_BODY_BYTES_MAX)
    except Unavailable:
        return (), ""  # the status alone tells enough
    try:
        errors = json.loads(body[:ERROR_BODY_BYTES_MAX])["errors"][:_CODES_MAX]
        codes = tuple(str(error["code"])[:64] for error in errors if error.get("code"))
        message = str(errors[0].get("message") or "")[:200] if errors else ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return (), ""
    return codes, "".join(c if c.isprintable() else " " for c in message)
