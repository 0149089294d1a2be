"""Bearer tokens: fetched once, renewed when they expire or are revoked, never sent where they do not belong."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs

import pytest
from tests.support import faulty
from tests.support.distribution import Registry
from tests.support.faulty import Answer, Front, Seen
from tests.support.registry_user import BLOB, PASSWORD, PATIENCE_S, USER, Node, store_openly

from apparate.errors import RegistryError


class TokenFront:
    """A registry that wants bearer tokens, and its token server, in one front."""

    def __init__(self, front: Front, *, users: dict[str, str], lifetime_s: int = 300, refusal: int = 401) -> None:
        self.front = front
        self.users = users
        self.lifetime_s = lifetime_s
        self.refusal = refusal
        self.valid: dict[str, str] = {}
        self._lock = threading.Lock()
        front.on("", "/token", self._give)
        front.on("", "/v2/", self._check)

    @property
    def given(self) -> list[Seen]:
        return self.front.requests("", "/token")

    def revoke(self) -> None:
        with self._lock:
            self.valid.clear()

    def _give(self, seen: Seen, _forward: faulty.Forward) -> Answer:
        user = ""
        if seen.method == "POST":
            form = parse_qs(seen.body.decode())
            if form["refresh_token"] != ["identity"] or form["grant_type"] != ["refresh_token"]:
                return Answer(401)
            user = "by-identity"
        elif "authorization" in seen.headers:
            pair = base64.b64decode(seen.headers["authorization"].removeprefix("Basic ")).decode()
            user, _, password = pair.partition(":")
            if self.users.get(user) != password:
                return Answer(401, {"Content-Type": "application/json"}, b'{"errors":[{"code":"UNAUTHORIZED"}]}')
        with self._lock:
            token = f"token-{len(self.valid)}-{len(self.given)}"
            self.valid[token] = user
        body = json.dumps({"token": token, "expires_in": self.lifetime_s}).encode()
        return Answer(200, {"Content-Type": "application/json"}, body)

    def _check(self, seen: Seen, forward: faulty.Forward) -> Answer:
        token = seen.headers.get("authorization", "").removeprefix("Bearer ")
        with self._lock:
            allowed = bool(self.valid.get(token)) or (token in self.valid and "/public/" in seen.path)
        if allowed:
            return forward(authorization=None)
        repository = seen.path.removeprefix("/v2/").split("/blobs")[0].split("/manifests")[0]
        challenge = f'Bearer realm="{self.front.url}/token",service="the, service",scope="repository:{repository}:pull"'
        status = self.refusal if token else 401
        return Answer(status, {"WWW-Authenticate": challenge} if status == 401 else {}, b"")


@pytest.fixture
def front(open_registry: Registry) -> Iterator[Front]:
    with Front(open_registry.host) as server:
        yield server


def test_token_is_fetched_once_and_used_again(node: Node, front: Front) -> None:
    tokens = TokenFront(front, users={USER: PASSWORD})
    node.log_in("secret", front.host, USER, PASSWORD)
    for _ in range(3):
        assert node.read(f"{front.host}/team/app") == BLOB
    assert len(tokens.given) == 1
    assert tokens.given[0].query["service"] == ["the, service"]
    assert tokens.given[0].query["scope"] == ["repository:team/app:pull"]
    assert front.count("GET", "/blobs/") == 4


def test_anonymous_token_is_enough_for_what_is_public(node: Node, front: Front, open_registry: Registry) -> None:
    TokenFront(front, users={})
    store_openly(f"{open_registry.host}/public/app")
    assert node.read(f"{front.host}/public/app") == BLOB
    with pytest.raises(RegistryError):
        node.read(f"{front.host}/team/app")


def test_wrong_credentials_do_not_hide_what_is_public(node: Node, front: Front, open_registry: Registry) -> None:
    TokenFront(front, users={USER: PASSWORD})
    node.log_in("secret", front.host, USER, "wrong")
    store_openly(f"{open_registry.host}/public/app")
    assert node.read(f"{front.host}/public/app") == BLOB


@pytest.mark.parametrize("refusal", [401, 403])
def test_revoked_token_is_renewed_once(node: Node, front: Front, refusal: int) -> None:
    tokens = TokenFront(front, users={USER: PASSWORD}, refusal=refusal)
    node.log_in("secret", front.host, USER, PASSWORD)
    assert node.read(f"{front.host}/team/app") == BLOB
    tokens.revoke()
    assert node.read(f"{front.host}/team/app") == BLOB
    assert len(tokens.given) == 2
    tokens.users.clear()
    tokens.revoke()
    with pytest.raises(RegistryError):
        node.read(f"{front.host}/team/app")


def test_expired_token_is_renewed_before_it_is_sent(node: Node, front: Front) -> None:
    tokens = TokenFront(front, users={USER: PASSWORD}, lifetime_s=-1)
    node.log_in("secret", front.host, USER, PASSWORD)
    assert node.read(f"{front.host}/team/app") == BLOB
    assert node.read(f"{front.host}/team/app") == BLOB
    assert len(tokens.given) == 2
    assert front.count("GET", "/blobs/") == 3, "the second read was not refused first"


def test_many_threads_share_one_renewal(node: Node, front: Front) -> None:
    tokens = TokenFront(front, users={USER: PASSWORD})
    node.log_in("secret", front.host, USER, PASSWORD)
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(node.read(f"{front.host}/team/app"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert results == [BLOB] * 16
    assert len(tokens.given) == 1


def test_identity_token_is_exchanged(node: Node, front: Front) -> None:
    tokens = TokenFront(front, users={})
    node.docker.write_text(json.dumps({"auths": {front.host: {"identitytoken": "identity"}}}))
    assert node.read(f"{front.host}/team/app") == BLOB
    assert [seen.method for seen in tokens.given] == ["POST"]


def test_token_server_that_fails_for_a_while_is_waited_for(node: Node, front: Front) -> None:
    front.on("", "/token", faulty.status(503), times=2)
    TokenFront(front, users={USER: PASSWORD})
    node.log_in("secret", front.host, USER, PASSWORD)
    assert node.read(f"{front.host}/team/app") == BLOB


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"token": 5}', b'{"token": "a\\r\\nEvil: b"}', b"\xff\xfe", b"{" * 10**5]
)
def test_answers_of_a_token_server_that_make_no_sense_are_refused(node: Node, front: Front, body: bytes) -> None:
    front.on("", "/token", Answer(200, {}, body))
    TokenFront(front, users={})
    with pytest.raises(RegistryError):
        node.read(f"{front.host}/team/app")


def test_authorization_does_not_follow_a_redirect(node: Node, front: Front, open_registry: Registry) -> None:
    with Front(open_registry.host) as storage:
        front.on("GET", "/team/app/blobs/", _only_with_token(faulty.redirect(f"{storage.url}/")))
        TokenFront(front, users={USER: PASSWORD})
        node.log_in("secret", front.host, USER, PASSWORD)
        node.log_in("storage", storage.host, "storage", "secret")
        node.hosts_toml(front.host, f'server = "{front.url}"\n[header]\nX-Api-Key = "hosts.toml secret"\n')
        assert node.read(f"{front.host}/team/app") == BLOB
        assert all(seen.headers["x-api-key"] for seen in front.requests("GET", "/blobs/"))
        (seen,) = storage.requests()
        assert not {"authorization", "x-api-key"} & set(seen.headers)


def _only_with_token(action: faulty.Action) -> faulty.Action:
    def checked(seen: Seen, forward: faulty.Forward) -> Answer:
        if "authorization" in seen.headers:
            return action(seen, forward)
        host = seen.headers["host"]
        return Answer(401, {"WWW-Authenticate": f'Bearer realm="http://{host}/token",service="s"'}, b"")

    return checked
