"""Ways to a registry: mirrors of hosts.toml and proxies."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import faulty
from tests.support.distribution import Authority, Registry
from tests.support.faulty import Answer, Front, Seen
from tests.support.registry_user import BLOB, DIGEST, PASSWORD, PATIENCE_S, USER, Node, basic_pair, fetch, store

from apparate.errors import NotFound, Unavailable
from apparate.oci.reference import Reference
from apparate.registry.deadline import Deadline


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
            assert seen.headers["proxy-authorization"] == f"Basic {basic_pair('me', 'pw')}"
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
        assert tunnel.headers["proxy-authorization"] == f"Basic {basic_pair('me', 'pw')}"
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
