"""Whom we trust, and how we prove ourselves: authorities and client certificates of hosts.toml and of Docker's layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.distribution import Authority, Registry
from tests.support.faulty import Front
from tests.support.registry_user import BLOB, Node, fetch, store

from apparate.errors import FailedPrecondition, Unavailable
from apparate.registry.deadline import Deadline


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
