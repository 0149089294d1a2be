"""Who we are: credentials from files and helpers, basic authentication before a real registry."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from tests.support.distribution import Registry
from tests.support.registry_user import BLOB, PASSWORD, USER, Node, store

from apparate.errors import RegistryError


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
