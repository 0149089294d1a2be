"""Secrets become files of the host, and nothing else of them does."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from apparate.errors import InvalidArgument
from apparate.kubernetes.watch import Objects
from apparate.node.agent.credentials import (
    DOCKER_CFG_TYPE,
    DOCKER_CONFIG_TYPE,
    FOLLOWED_MAX,
    Credentials,
    Source,
    docker_config,
    file_name,
    remove_all,
)
from apparate.registry.deadline import Deadline
from apparate.registry.keychain import Keychain, cluster_files
from apparate.registry.settings import RegistrySettings

SECRET = "hunter2-very-secret"
ONE = Source("apparate", "pull")


def secret_of(
    content: object, name: str = "pull", namespace: str = "apparate", kind: str = DOCKER_CONFIG_TYPE, created: str = "1"
) -> dict[str, Any]:
    key = {DOCKER_CONFIG_TYPE: ".dockerconfigjson", DOCKER_CFG_TYPE: ".dockercfg"}.get(kind, "x")
    text = content if isinstance(content, str) else json.dumps(content)
    data = {key: base64.b64encode(text.encode()).decode()}
    return {
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
        "type": kind,
        "data": data,
    }


def auths(user: str = "u", host: str = "registry.example") -> dict[str, Any]:
    return {"auths": {host: {"username": user, "password": SECRET}}}


def told(*secrets: dict[str, Any]) -> Objects:
    return {(one["metadata"]["namespace"], one["metadata"]["name"]): one for one in secrets}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "credentials"


def _users(directory: Path, host: str = "registry.example") -> list[str]:
    keychain = Keychain(RegistrySettings(credentials_dir=str(directory)), {})
    return [found.username for found in keychain.lookup(host, "a/b", Deadline(5))]


def test_keychain_finds_what_was_written(directory: Path) -> None:
    Credentials(directory, [ONE]).update(ONE, told(secret_of(auths())))
    assert _users(directory) == ["u"]
    (path,) = cluster_files(directory)
    assert path.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    assert path.name == "chart-apparate_pull.json"


def test_changed_secret_is_tried_first_and_an_unchanged_one_keeps_its_time(directory: Path) -> None:
    other = Source("apparate", "other")
    made = Credentials(directory, [ONE, other])
    made.update(ONE, told(secret_of(auths("old"))))
    made.update(other, told(secret_of(auths("other"), "other")))
    for path in cluster_files(directory):
        os.utime(path, (1000, 1000))
    made.update(ONE, told(secret_of(auths("new"))))
    assert _users(directory) == ["new", "other"]
    assert (directory / file_name("apparate", "other")).stat().st_mtime == 1000


def test_file_goes_with_its_secret(directory: Path) -> None:
    made = Credentials(directory, [ONE])
    made.update(ONE, told(secret_of(auths())))
    made.update(ONE, {})
    assert cluster_files(directory) == []
    assert made.problem() == "Secret apparate/pull does not exist: create it, or do not name it"


def test_secret_that_becomes_unusable_takes_its_file_along(directory: Path) -> None:
    made = Credentials(directory, [ONE])
    made.update(ONE, told(secret_of(auths())))
    made.update(ONE, told(secret_of("{", "pull")))
    assert cluster_files(directory) == []
    assert "cannot be used" in made.problem()
    made.update(ONE, told(secret_of(auths())))
    assert made.problem() == ""


def test_files_of_secrets_that_are_named_no_more_go(directory: Path) -> None:
    Credentials(directory, [ONE]).update(ONE, told(secret_of(auths())))
    new = Source("apparate", "new")
    Credentials(directory, [new]).update(new, told(secret_of(auths("n"), "new")))
    assert [path.name for path in cluster_files(directory)] == ["chart-apparate_new.json"]


def test_file_whose_source_has_not_told_yet_stays(directory: Path) -> None:
    followed = Source("team")
    first = Credentials(directory, [ONE, followed])
    first.update(followed, told(secret_of(auths("t"), "mine", "team")))
    first.update(ONE, told(secret_of(auths())))
    second = Credentials(directory, [ONE, followed])
    second.update(ONE, told(secret_of(auths("x"))))
    assert len(cluster_files(directory)) == 2
    second.update(followed, {})
    assert len(cluster_files(directory)) == 1


def test_files_of_others_are_left_alone(directory: Path) -> None:
    directory.mkdir()
    mine = directory / "mine.json"
    mine.write_text("{}")
    made = Credentials(directory, [ONE])
    made.update(ONE, told(secret_of(auths())))
    made.update(ONE, {})
    assert remove_all(directory) == 0
    assert mine.exists()


def test_file_that_others_may_read_is_closed(directory: Path) -> None:
    made = Credentials(directory, [ONE])
    made.update(ONE, told(secret_of(auths())))
    (path,) = cluster_files(directory)
    path.chmod(0o644)
    made.update(ONE, told(secret_of(auths())))
    assert path.stat().st_mode & 0o777 == 0o600


def test_credential_helper_of_a_secret_never_reaches_the_host(directory: Path) -> None:
    content = {**auths(), "credsStore": "evil", "credHelpers": {"registry.example": "evil"}}
    assert json.loads(docker_config(secret_of(content))) == auths()


def test_old_form_of_a_pull_secret_is_taken(directory: Path) -> None:
    content = auths()["auths"]
    assert json.loads(docker_config(secret_of(content, kind=DOCKER_CFG_TYPE))) == auths()


@pytest.mark.parametrize(
    ("secret", "sentence"),
    [
        (secret_of({}, kind="Opaque"), "is of type Opaque, not kubernetes.io/dockerconfigjson: make it with kubectl"),
        ({**secret_of({}), "data": {}}, "has no .dockerconfigjson"),
        ({**secret_of({}), "data": None}, "has no .dockerconfigjson"),
        ({**secret_of({}), "data": {".dockerconfigjson": "%%%"}}, "is no base64"),
        (secret_of(f'{{"auths": {SECRET}'), ".dockerconfigjson is no JSON object"),
        (secret_of("[]"), ".dockerconfigjson is no JSON object"),
        (secret_of({}), "holds no credentials"),
        (secret_of({"auths": {"registry.example": {}}}), "holds no credentials"),
        (secret_of({"auths": {"registry.example": {"auth": SECRET}}}), "auths.registry.example.auth"),
        (secret_of({"auths": {"registry.example": SECRET}}), "auths.registry.example: is no object"),
        (secret_of({"auths": {f"h{i}": {"auth": "A" * 0, "username": "x" * 99000} for i in range(12)}}), "larger than"),
    ],
)
def test_unusable_secret_is_one_sentence_without_its_content(secret: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        docker_config(secret)
    assert str(caught.value).startswith("Secret apparate/pull ")
    assert sentence in str(caught.value)
    assert SECRET not in str(caught.value)


def test_names_never_collide() -> None:
    assert file_name("a-b", "c") != file_name("a", "b-c")
    long = "x" * 253
    assert file_name("n" * 63, long) != file_name("n" * 63, long[:-1] + "y")
    assert len(file_name("n" * 63, long)) + len("..apparate-new") < 255


def test_followed_namespace_has_a_limit_and_the_newest_win(directory: Path) -> None:
    followed = Source("team")
    made = Credentials(directory, [followed])
    many = [
        secret_of(auths(), f"s{number:03}", "team", created=f"2026-01-01T00:{number // 60:02}:{number % 60:02}Z")
        for number in range(FOLLOWED_MAX + 2)
    ]
    made.update(followed, told(*many))
    names = {path.name for path in cluster_files(directory)}
    assert len(names) == FOLLOWED_MAX
    assert file_name("team", "s000") not in names
    assert made.problem() == ""
    assert f"has {FOLLOWED_MAX + 2} pull Secrets, the {FOLLOWED_MAX} newest are used" in made.followed_problem()


def test_directory_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    made = Credentials(blocker / "credentials", [ONE])
    made.update(ONE, told(secret_of(auths())))
    assert "credentials cannot be written" in made.problem()
