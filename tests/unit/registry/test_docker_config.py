"""docker's config.json."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apparate.errors import FormatError
from apparate.registry.docker_config import DockerConfig, parse_docker_config


def config(**content: object) -> DockerConfig:
    return parse_docker_config(json.dumps(content).encode(), "config.json")


def auth(user: str, password: str = "pw") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def users(made: DockerConfig, host: str, repository: str = "team/app") -> list[str]:
    return [credential.username for credential in made.credentials(host, repository)]


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("registry.test", "registry.test"),
        ("https://registry.test", "registry.test"),
        ("https://registry.test/v2/", "registry.test"),
        ("http://registry.test/v1/", "registry.test"),
        ("REGISTRY.test", "registry.test"),
        ("registry.test:5000", "registry.test:5000"),
        ("registry.test:443", "registry.test"),
        ("registry.test", "registry.test:443"),
        ("https://index.docker.io/v1/", "registry-1.docker.io"),
        ("docker.io", "registry-1.docker.io"),
        ("*.azurecr.test", "mine.azurecr.test"),
        ("registry.test/team", "registry.test"),
        ("registry.test/team/app", "registry.test"),
    ],
)
def test_key_names_the_host(key: str, host: str) -> None:
    assert users(config(auths={key: auth("me")}), host) == ["me"]


@pytest.mark.parametrize(
    "key",
    [
        "registry.test:5000",
        "other.test",
        "*.test.registry",
        "*.registry.test",
        "registry.test/te",
        "registry.test/other",
    ],
)
def test_key_of_another_host_or_repository_does_not(key: str) -> None:
    assert users(config(auths={key: auth("me")}), "registry.test") == []


def test_closest_key_comes_first() -> None:
    made = config(
        auths={
            "*.test": auth("pattern"),
            "registry.test": auth("host"),
            "registry.test/team/app": auth("repository"),
            "registry.test/team": auth("team"),
        }
    )
    assert users(made, "registry.test") == ["repository", "team", "host", "pattern"]


def test_all_forms_of_secrets() -> None:
    made = config(
        auths={
            "a.test": {"username": "me", "password": "pw"},
            "b.test": {"identitytoken": "id"},
            "c.test": auth("<token>", "id"),
            "d.test": {"registrytoken": "bearer"},
            "e.test": auth("me", "with:colon"),
            "f.test": auth("me", "padded\0\0"),
            "g.test": {},
        }
    )
    (a,), (b,), (c,), (d,), (e,), (f,) = (made.credentials(f"{name}.test", "x") for name in "abcdef")
    assert (a.username, a.password) == ("me", "pw")
    assert b.identity_token == "id"
    assert (c.username, c.identity_token) == ("", "id")
    assert d.registry_token == "bearer"
    assert e.password == "with:colon"
    assert f.password == "padded"
    assert made.credentials("g.test", "x") == ()


def test_no_secret_is_shown() -> None:
    made = config(auths={"a.test": auth("me", "hidden1") | {"identitytoken": "hidden2", "registrytoken": "hidden3"}})
    assert "hidden" not in repr(made)


def test_helpers_are_chosen_per_host() -> None:
    made = config(credHelpers={"https://a.test": "ecr-login"}, credsStore="desktop")
    assert made.helper("a.test") == "ecr-login"
    assert made.helper("b.test") == "desktop"
    assert config().helper("a.test") == ""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe\0",
        b"[]",
        b"[" * 100_000,
        b'{"auths": []}',
        b'{"auths": {"a": []}}',
        b'{"auths": {"a": {"auth": 5}}}',
        b'{"auths": {"a": {"auth": "hunter2!"}}}',
        b'{"auths": {"a": {"auth": "bm9jb2xvbg=="}}}',
        b'{"credHelpers": {"a": "../../bin/sh"}}',
        b'{"credsStore": "a b"}',
    ],
)
def test_bad_file_is_refused_without_showing_its_secrets(body: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parse_docker_config(body, "config.json")
    assert "hunter2" not in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["auths", "auth", "credHelpers", "credsStore", "a.test", "username"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(_JSON)
def test_any_json_is_read_or_refused(content: object) -> None:
    try:
        made = parse_docker_config(json.dumps(content).encode(), "config.json")
    except FormatError:
        return
    made.credentials("a.test", "app")
    made.helper("a.test")
