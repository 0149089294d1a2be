"""Who we are and whom we trust: basic and token authentication, TLS, hosts.toml, mirrors, proxies."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from tests.support import faulty
from tests.support.distribution import Authority, Registry
from tests.support.faulty import Answer, Front, Seen

from apparate.errors import FailedPrecondition, NotFound, RegistryError, Unavailable
from apparate.oci.digest import Digest
from apparate.oci.reference import Reference
from apparate.registry.client import RegistryClient
from apparate.registry.deadline import Deadline
from apparate.registry.settings import RegistrySettings

PATIENCE_S = 20.0
BLOB = b"some layer" * 1000
DIGEST = Digest.of(BLOB)
USER, PASSWORD = "robot$ci", "p:ss w\u00f6rd"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("open")) as server:
        store_openly(f"{server.host}/team/app")
        yield server


@pytest.fixture(scope="module")
def basic_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("basic"), users={USER: PASSWORD}) as server:
        yield server


class Node:
    """A node's files and a client that uses them."""

    def __init__(self, root: Path) -> None:
        self.hosts = root / "certs.d"
        self.credentials = root / "credentials"
        self.docker = root / "docker.json"
        self.credentials.mkdir()
        self.hosts.mkdir()
        self.client = RegistryClient(
            RegistrySettings(
                hosts_dirs=(str(self.hosts),),
                credentials_dir=str(self.credentials),
                docker_config=str(self.docker),
                idle_timeout_s=2.0,
            )
        )

    def log_in(self, name: str, host: str, user: str, password: str) -> None:
        path = self.credentials / f"{name}.json"
        path.touch(0o600)
        path.write_text(json.dumps({"auths": {host: {"auth": _pair(user, password)}}}))

    def hosts_toml(self, registry: str, text: str) -> Path:
        directory = self.hosts / registry
        directory.mkdir(exist_ok=True)
        (directory / "hosts.toml").write_text(text)
        return directory

    def read(self, name: str) -> bytes:
        return fetch(self.client, name)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.client.close()


def _pair(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def fetch(client: RegistryClient, name: str, deadline: Deadline | None = None) -> bytes:
    with client.blob(Reference.parse(name), DIGEST, deadline=deadline or Deadline.after(PATIENCE_S)) as stream:
        return stream.read()


def store(client: RegistryClient, name: str) -> None:
    client.upload_blob(Reference.parse(name), DIGEST, len(BLOB), lambda: [BLOB])


def store_openly(name: str) -> None:
    client = RegistryClient(RegistrySettings(hosts_dirs=()))
    store(client, name)
    client.close()


# --- basic authentication, real registry ---


def test_basic_authentication_reads_and_writes(node: Node, basic_registry: Registry) -> None:
    node.log_in("secret", basic_registry.host, USER, PASSWORD)
    store(node.client, f"{basic_registry.host}/team/app")
    assert node.read(f"{basic_registry.host}/team/app") == BLOB


def test_without_credentials_the_error_says_what_to_do(node: Node, basic_registry: Registry) -> None:
    with pytest.raises(RegistryError, match=r"no credential for 127\.0\.0\.1") as caught:
        node.read(f"{basic_registry.host}/team/app")
    assert caught.value.status == 401
    assert caught.value.codes == ("UNAUTHORIZED",)
    assert not caught.value.temporary


def test_every_credential_is_tried_the_newest_first(node: Node, basic_registry: Registry) -> None:
    node.log_in("right", basic_registry.host, USER, PASSWORD)
    node.log_in("stale", basic_registry.host, USER, "of yesterday")
    os.utime(node.credentials / "right.json", ns=(1, 1))
    store(node.client, f"{basic_registry.host}/team/app")
    assert node.read(f"{basic_registry.host}/team/app") == BLOB


def test_changed_credentials_are_used_without_a_restart(node: Node, basic_registry: Registry) -> None:
    node.log_in("secret", basic_registry.host, USER, "wrong")
    with pytest.raises(RegistryError):
        node.read(f"{basic_registry.host}/team/app")
    node.log_in("secret", basic_registry.host, USER, PASSWORD)
    store(node.client, f"{basic_registry.host}/team/app")
    assert node.read(f"{basic_registry.host}/team/app") == BLOB


def test_file_that_others_can_read_is_not_used(node: Node, basic_registry: Registry) -> None:
    node.log_in("secret", basic_registry.host, USER, PASSWORD)
    (node.credentials / "secret.json").chmod(0o644)
    with pytest.raises(RegistryError):
        node.read(f"{basic_registry.host}/team/app")


def test_credential_helper_is_asked(
    node: Node, basic_registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    answer = json.dumps({"ServerURL": basic_registry.host, "Username": USER, "Secret": PASSWORD})
    helper = programs / "docker-credential-vault"
    helper.write_text(f'#!/bin/sh\nread host\n[ "$1 $host" = "get {basic_registry.host}" ] && echo \'{answer}\'\n')
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    node.docker.write_text(json.dumps({"credHelpers": {basic_registry.host: "vault"}}))
    store(node.client, f"{basic_registry.host}/team/app")
    assert node.read(f"{basic_registry.host}/team/app") == BLOB


# --- tokens ---


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


# --- TLS and hosts.toml ---


def test_unknown_authority_is_refused_and_named(node: Node, open_registry: Registry, authority: Authority) -> None:
    with Front(open_registry.host, authority=authority) as server:
        node.hosts_toml(server.host, f'server = "{server.url}"\nskip_verify = false\n')
        with pytest.raises(FailedPrecondition, match=r"certificate of 127\.0\.0\.1 is not trusted"):
            node.read(f"{server.host}/team/app")


def test_authority_of_hosts_toml_is_trusted(node: Node, tmp_path: Path, authority: Authority) -> None:
    with Registry(tmp_path / "tls", authority=authority) as server:
        directory = node.hosts_toml(server.host, f'server = "{server.url}"\nca = "own.pem"\n')
        (directory / "own.pem").write_bytes(authority.ca.read_bytes())
        store(node.client, f"{server.host}/team/app")
        assert node.read(f"{server.host}/team/app") == BLOB


def test_authority_in_dockers_layout_is_trusted(node: Node, open_registry: Registry, authority: Authority) -> None:
    with Front(open_registry.host, authority=authority) as server:
        name = f"localhost:{server.port}"
        directory = node.hosts / f"localhost_{server.port}_"
        directory.mkdir()
        (directory / "any.crt").write_bytes(authority.ca.read_bytes())
        assert node.read(f"{name}/team/app") == BLOB


def test_skip_verify_trusts_anyone_and_warns_nobody(node: Node, open_registry: Registry, authority: Authority) -> None:
    with Front(open_registry.host, authority=authority) as server:
        node.hosts_toml(server.host, f'server = "{server.url}"\nskip_verify = true\n')
        assert node.read(f"{server.host}/team/app") == BLOB


@pytest.mark.parametrize("form", ["pair", "joined"])
def test_client_certificate_is_shown(node: Node, tmp_path: Path, authority: Authority, form: str) -> None:
    certificate, key = authority.issue("node-1", usage="clientAuth")
    with Registry(tmp_path / "mutual", authority=authority, client_authority=authority) as server:
        common = f'server = "{server.url}"\nca = "{authority.ca}"\n'
        (tmp_path / "stranger").mkdir()
        stranger = Node(tmp_path / "stranger")
        stranger.hosts_toml(server.host, common)
        with pytest.raises(Unavailable):
            fetch(stranger.client, f"{server.host}/team/app", Deadline.after(1))
        stranger.client.close()
        if form == "pair":
            client = f'client = [["{certificate}", "{key}"]]\n'
        else:
            (tmp_path / "both.pem").write_bytes(certificate.read_bytes() + key.read_bytes())
            client = f'client = "{tmp_path}/both.pem"\n'
        node.hosts_toml(server.host, common + client)
        store(node.client, f"{server.host}/team/app")
        assert node.read(f"{server.host}/team/app") == BLOB


def test_certificate_that_cannot_be_read_is_named(node: Node, authority: Authority) -> None:
    node.hosts_toml("registry.test", 'ca = "missing.pem"\n')
    with pytest.raises(FailedPrecondition, match=r"missing\.pem"):
        node.read("registry.test/app")


def test_mirror_is_asked_first_with_the_namespace(node: Node, open_registry: Registry) -> None:
    with Front(open_registry.host) as mirror:
        text = f'server = "http://{open_registry.host}"\n[host."{mirror.url}"]\ncapabilities = ["pull"]\n'
        node.hosts_toml("registry.test_5000_", text)
        assert node.read("registry.test:5000/team/app") == BLOB
        (seen,) = mirror.requests()
        assert seen.query["ns"] == ["registry.test:5000"]


def test_mirror_that_is_gone_is_passed_over(node: Node, open_registry: Registry) -> None:
    with Front() as gone:
        dead = gone.url
    text = f'server = "http://{open_registry.host}"\n[host."{dead}"]\n'
    node.hosts_toml("registry.test", text)
    for _ in range(5):
        assert node.read("registry.test/team/app") == BLOB
    with pytest.raises(NotFound):
        node.read("registry.test/team/nothing")


@pytest.mark.parametrize("fault", [faulty.html(), faulty.status(404), faulty.status(500), faulty.status(401),
                                   faulty.reset(), faulty.truncate(10)], ids=str)  # fmt: skip
def test_mirror_that_fails_is_followed_by_the_registry(
    node: Node, open_registry: Registry, fault: faulty.Action
) -> None:
    with Front(open_registry.host) as mirror:
        mirror.on("", "", fault)
        node.hosts_toml("registry.test", f'server = "http://{open_registry.host}"\n[host."{mirror.url}"]\n')
        assert node.read("registry.test/team/app") == BLOB


def test_distrusted_mirror_is_asked_last(node: Node, open_registry: Registry) -> None:
    with Front(open_registry.host) as mirror:
        node.hosts_toml("registry.test", f'server = "http://{open_registry.host}"\n[host."{mirror.url}"]\n')
        ref = Reference.parse("registry.test/team/app")
        with node.client.blob_range(ref, DIGEST, 0, 10, deadline=Deadline.after(PATIENCE_S)) as stream:
            stream.read()
            stream.distrust("wrong bytes")
        assert node.read("registry.test/team/app") == BLOB
        assert mirror.count() == 1


def test_origins_credentials_are_not_shown_to_a_mirror(node: Node, basic_registry: Registry) -> None:
    node.log_in("secret", basic_registry.host, USER, PASSWORD)
    store(node.client, f"{basic_registry.host}/team/app")
    with Front() as mirror:
        mirror.on("", "", faulty.status(401, {"WWW-Authenticate": 'Basic realm="give me your password"'}))
        node.hosts_toml(basic_registry.host, f'server = "http://{basic_registry.host}"\n[host."{mirror.url}"]\n')
        assert node.read(f"{basic_registry.host}/team/app") == BLOB
        assert mirror.requests()
        assert not any("authorization" in seen.headers for seen in mirror.requests())


# --- proxies ---


def test_proxy_of_hosts_toml_carries_the_request(node: Node, open_registry: Registry) -> None:
    with Front(open_registry.host) as proxy:

        def relay(seen: Seen, forward: faulty.Forward) -> Answer:
            assert seen.headers["proxy-authorization"] == f"Basic {_pair('me', 'pw')}"
            return Answer(200, {"Content-Type": "application/octet-stream"}, BLOB)

        proxy.on("GET", "http://registry.test", relay)
        with_user = proxy.url.replace("http://", "http://me:pw@")
        node.hosts_toml("registry.test", f'server = "http://registry.test"\nproxy = "{with_user}"\n')
        assert node.read("registry.test/team/app") == BLOB
        assert proxy.count("GET", "http://registry.test/v2/team/app/blobs/") == 1


def test_tls_goes_through_a_tunnel_of_the_proxy(node: Node, open_registry: Registry, authority: Authority) -> None:
    with Front(open_registry.host, authority=authority) as server, Front() as proxy:
        proxy_url = proxy.url.replace("http://", "http://me:pw@")
        text = f'server = "{server.url}"\nca = "{authority.ca}"\nproxy = "{proxy_url}"\n'
        node.hosts_toml(server.host, text)
        assert node.read(f"{server.host}/team/app") == BLOB
        (tunnel,) = proxy.requests("CONNECT", server.host)
        assert tunnel.headers["proxy-authorization"] == f"Basic {_pair('me', 'pw')}"
        assert not any("proxy-authorization" in seen.headers for seen in server.requests())


def test_proxy_that_refuses_is_named_without_its_password(
    node: Node, open_registry: Registry, authority: Authority
) -> None:
    with Front(open_registry.host, authority=authority) as server, Front() as proxy:
        proxy.on("CONNECT", "", Answer(407, {"Content-Length": "0"}))
        proxy_url = proxy.url.replace("http://", "http://me:hunter2@")
        node.hosts_toml(server.host, f'server = "{server.url}"\nca = "{authority.ca}"\nproxy = "{proxy_url}"\n')
        with pytest.raises(Unavailable, match="proxy") as caught:
            fetch(node.client, f"{server.host}/team/app", Deadline.after(0.5))
        assert "hunter2" not in str(caught.value)


def test_proxies_of_the_environment_are_used(
    tmp_path: Path, open_registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Front() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "direct.test")
        proxy.on("GET", "http://registry.test/", Answer(200, {}, BLOB))
        node = Node(tmp_path)
        node.hosts_toml("registry.test", 'server = "http://registry.test"\n')
        assert node.read("registry.test/team/app") == BLOB
        node.hosts_toml("direct.test", 'server = "http://direct.test"\n')
        with pytest.raises(Unavailable):
            fetch(node.client, "direct.test/team/app", Deadline.after(0.3))
        assert proxy.count() == 1
        node.client.close()
