"""Who we are to a registry: challenges, grants, and the one renewal that a refused one gets."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from apparate.errors import RegistryError, Unavailable
from apparate.registry.challenge import Challenge, parse_challenges
from apparate.registry.tokens import Realm, basic, fetch_token
from apparate.registry.transport import Response, Route
from apparate.telemetry import metrics
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from apparate.registry.deadline import Deadline
    from apparate.registry.docker_config import Credential
    from apparate.registry.endpoint import Endpoint, Origin
    from apparate.registry.keychain import Keychain
    from apparate.registry.transport import Sender

GRANTS_MAX = 4096
"""Grants remembered, one for each endpoint and set of scopes; the least recently used is dropped beyond this."""
CREDENTIALS_TRIED_MAX = 8
EVENT_CREDENTIAL_REFUSED = "credential was refused"

Key = tuple["Origin", tuple[str, ...]]
_log = get_logger("registry.auth")


@dataclass(frozen=True, slots=True)
class Grant:
    """An Authorization header and what it was made from."""

    header: str = field(repr=False)
    use_until: float
    credential: Credential | None


@dataclass(slots=True)
class _Known:
    """What is known for one key. *lock* is held while a grant is renewed: one renewal at a time."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    challenge: Challenge | None = None
    grant: Grant | None = None


class Authorizer:
    """Keeps grants and renews them; thread-safe."""

    def __init__(self, sender: Sender, keychain: Keychain) -> None:
        self._sender = sender
        self._keychain = keychain
        self._lock = threading.Lock()
        self._known: OrderedDict[Key, _Known] = OrderedDict()

    def negotiation(self, endpoint: Endpoint, scopes: tuple[str, ...], deadline: Deadline) -> Negotiation:
        """Return the negotiation of one call to *endpoint* that needs *scopes*."""
        key = (endpoint.origin, scopes)
        with self._lock:
            known = self._known.setdefault(key, _Known())
            self._known.move_to_end(key)
            if len(self._known) > GRANTS_MAX:
                self._known.popitem(last=False)
        return Negotiation(self._sender, self._keychain, known, endpoint, scopes, deadline)


class Negotiation:
    """What to send, and what to do when it is refused. Of one call, for one thread."""

    def __init__(
        self,
        sender: Sender,
        keychain: Keychain,
        known: _Known,
        endpoint: Endpoint,
        scopes: tuple[str, ...],
        deadline: Deadline,
    ) -> None:
        self._sender = sender
        self._keychain = keychain
        self._known = known
        self._endpoint = endpoint
        self._scopes = scopes
        self._deadline = deadline
        self._tried: set[Credential | None] = set()
        self._sent: Grant | None = None
        # The grant that this negotiation made itself: refused, its credential is not worth another try.
        self._fresh: Grant | None = None

    def header(self) -> str:
        """Return the Authorization header to send, empty for none; an expired token is renewed first.

        Raises:
            Unavailable: the token server gave no answer.
        """
        grant = self._known.grant
        if grant is not None and grant is not self._fresh and grant.use_until <= time.monotonic():
            grant = self._renewed(grant)
        self._sent = grant
        return grant.header if grant is not None else ""

    def refused(self, response: Response) -> bool:
        """Learn from a 401 or 403; return whether `header` now has something new to send.

        A remembered grant is made anew, from credentials read anew, once; after that every other credential is tried,
        the anonymous token last.

        Raises:
            Unavailable: the token server gave no answer.
        """
        challenge = _best(parse_challenges(response.header("www-authenticate")))
        if challenge is not None:
            self._known.challenge = challenge
        elif self._known.challenge is None:
            return False
        sent = self._sent
        if sent is not None and sent is self._fresh:
            self._tried.add(sent.credential)
            # A fresh token that is refused says what it may not do, a password who it is not.
            is_wrong = challenge is not None and challenge.scheme == "basic"
            self._log_refusal(sent.credential, response.status, is_wrong=is_wrong)
        return self._renewed(sent) is not None

    def _renewed(self, old: Grant | None) -> Grant | None:
        """Return a grant other than *old*, or None; remembers it."""
        if not self._known.lock.acquire(timeout=max(min(self._deadline.remaining(), threading.TIMEOUT_MAX), 0.001)):
            raise Unavailable(f"token for {self._endpoint.host}: the deadline passed")
        try:
            current = self._known.grant
            if current is not None and current is not old and current.use_until > time.monotonic():
                return current  # another thread was faster
            self._known.grant = None
            self._known.grant = self._fresh = self._made()
            return self._fresh
        finally:
            self._known.lock.release()

    def _made(self) -> Grant | None:
        challenge = self._known.challenge
        if challenge is None:
            return None
        found = self._keychain.lookup(self._endpoint.host, _repository(self._scopes), self._deadline)
        anonymous = (None,) if challenge.scheme == "bearer" else ()
        for credential in (*found[:CREDENTIALS_TRIED_MAX], *anonymous):
            if credential in self._tried:
                continue
            grant = self._grant(challenge, credential)
            if grant is not None:
                return grant
            self._tried.add(credential)
        return None

    def _grant(self, challenge: Challenge, credential: Credential | None) -> Grant | None:
        """Return the grant that *credential* brings, None when it brings none."""
        if challenge.scheme == "basic":
            usable = credential is not None and credential.username
            return Grant(basic(credential), float("inf"), credential) if credential is not None and usable else None
        realm = self._realm(challenge)
        route = Route(self._endpoint.tls, self._endpoint.proxy, self._endpoint.dial_timeout_s)
        try:
            token = fetch_token(self._sender, realm, credential, route, self._deadline)
        except RegistryError as error:
            self._log_refusal(credential, error.status, is_wrong=True)
            return None
        return Grant(f"Bearer {token.value}", token.use_until, credential)

    def _realm(self, challenge: Challenge) -> Realm:
        url = challenge.parameters.get("realm", "")
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise Unavailable(f"{self._endpoint.host}: its challenge names no usable token server")
        if parts.scheme == "http" and self._endpoint.scheme == "https":
            raise Unavailable(f"{self._endpoint.host}: its token server is plain HTTP; no credential is sent there")
        # A mirror that serves below a path asks for a scope of another name than ours; both are asked for.
        asked = tuple(challenge.parameters.get("scope", "").split())
        return Realm(url, challenge.parameters.get("service", ""), tuple(dict.fromkeys((*asked, *self._scopes))))

    def _log_refusal(self, credential: Credential | None, status: int, *, is_wrong: bool) -> None:
        if credential is None:
            return
        _log.warning(EVENT_CREDENTIAL_REFUSED, host=self._endpoint.host, source=credential.source, status=status)
        if is_wrong and status == HTTPStatus.UNAUTHORIZED:
            metrics.REFUSED_WALL.set_to_current_time()


def _best(challenges: tuple[Challenge, ...]) -> Challenge | None:
    """Return the challenge to answer: a bearer token before basic authentication."""
    by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
    return by_scheme.get("bearer") or by_scheme.get("basic")


def _repository(scopes: tuple[str, ...]) -> str:
    """Return the repository that the first of *scopes* is about (`repository:<name>:<actions>`)."""
    first = scopes[0] if scopes else ""
    return first.partition(":")[2].rpartition(":")[0]
