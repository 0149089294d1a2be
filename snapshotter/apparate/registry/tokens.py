"""Access tokens from a token server (distribution, docs/spec/auth/token.md and oauth.md)."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit, urlunsplit

from apparate.errors import RegistryError, Unavailable
from apparate.registry.answers import redirected, refusal
from apparate.registry.endpoint import origin_of
from apparate.registry.redact import redact_url
from apparate.registry.transport import Request, Response

if TYPE_CHECKING:
    from apparate.registry.deadline import Deadline
    from apparate.registry.docker_config import Credential
    from apparate.registry.transport import Route, Sender

CLIENT_ID = "apparate"
TOKEN_ANSWER_BYTES_MAX = 1024 * 1024
LIFETIME_DEFAULT_S = 60
LIFETIME_USED = 0.8
"""Share of its lifetime after which a token is renewed rather than used."""
LIFETIME_MAX_S = 24 * 3600
REDIRECTS_MAX = 3


@dataclass(frozen=True, slots=True)
class Realm:
    """Where tokens are given and for what."""

    url: str
    service: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """An access token and the monotonic time until which to use it."""

    value: str = field(repr=False)
    use_until: float


def fetch_token(sender: Sender, realm: Realm, credential: Credential | None, route: Route, deadline: Deadline) -> Token:
    """Return a token of *realm* for *credential*, an anonymous one for None. It may allow less than asked.

    Raises:
        RegistryError: the server refused, or its answer holds no token.
        Unavailable: no answer in time, or one that says to come back later.
    """
    if credential is not None and credential.registry_token:
        return Token(credential.registry_token, float("inf"))
    if credential is not None and credential.identity_token:
        request = _exchange_request(realm, credential.identity_token)
    else:
        request = _plain_request(realm, credential)
    asked_at = time.monotonic()
    with _followed(sender, request, route, deadline) as response:
        if response.status != 200:
            raise refusal(response)
        return _token(response, asked_at)


def basic(credential: Credential) -> str:
    """Return the Authorization header's value (RFC 7617, in UTF-8)."""
    pair = f"{credential.username}:{credential.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _plain_request(realm: Realm, credential: Credential | None) -> Request:
    query = [("service", realm.service)] if realm.service else []
    query += [("scope", scope) for scope in realm.scopes]
    headers = {}
    if credential is not None:
        query.append(("account", credential.username))
        headers["Authorization"] = basic(credential)
    parts = urlsplit(realm.url)
    joined = "&".join(part for part in (parts.query, urlencode(query)) if part)
    return Request("GET", urlunsplit(parts._replace(query=joined, fragment="")), headers)


def _exchange_request(realm: Realm, identity_token: str) -> Request:
    form = {
        "grant_type": "refresh_token",
        "refresh_token": identity_token,
        "service": realm.service,
        "client_id": CLIENT_ID,
        "scope": " ".join(realm.scopes),
    }
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return Request("POST", realm.url, headers, urlencode(form).encode())


def _followed(sender: Sender, request: Request, route: Route, deadline: Deadline) -> Response:
    """Send *request*; a redirected GET is followed, without the credential where it leaves the realm's origin."""
    home = origin_of(request.url)
    for _ in range(REDIRECTS_MAX + 1):
        response = sender.send(request, route, deadline)
        location = response.header("location")
        if request.method != "GET" or response.status not in {301, 302, 303, 307, 308} or not location:
            return response
        response.close()
        url = redirected(request.url, location)
        request = Request("GET", url, request.headers if origin_of(url) == home else {})
    raise Unavailable(f"GET {redact_url(request.url)}: more than {REDIRECTS_MAX} redirects")


def _token(response: Response, asked_at: float) -> Token:
    url = redact_url(response.url)
    body = response.read_at_most(TOKEN_ANSWER_BYTES_MAX)
    try:
        answer = json.loads(body) if len(body) <= TOKEN_ANSWER_BYTES_MAX else {}
        value = answer.get("token") or answer.get("access_token")
        lifetime = answer.get("expires_in") or LIFETIME_DEFAULT_S
        seconds = float(lifetime) if isinstance(lifetime, int | float) else float(LIFETIME_DEFAULT_S)
    except (ValueError, AttributeError, OverflowError, RecursionError):
        value, seconds = None, 0.0
    # What is no plain text would smuggle header lines into every later request.
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise RegistryError(response.method, url, response.status, (), "the token server's answer holds no token")
    return Token(value, asked_at + max(0.0, min(seconds, LIFETIME_MAX_S)) * LIFETIME_USED)
