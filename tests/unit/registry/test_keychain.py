"""Where credentials come from."""

import base64
import json
import os
from pathlib import Path

import pytest

from apparate.registry.deadline import Deadline
from apparate.registry.keychain import Keychain
from apparate.registry.settings import RegistrySettings

HOST = "registry.test"


class Files:
    """The places a keychain looks at."""

    def __init__(self, root: Path) -> None:
        self.own = root / "credentials"
        self.own.mkdir()
        self.docker = root / "config.json"
        self.keychain = Keychain(RegistrySettings(credentials_dir=str(self.own), docker_config=str(self.docker)))

    def write(self, name: str, user: str, *, mode: int = 0o600, mtime_s: int = 0, key: str = HOST) -> Path:
        path = self.own / name
        path.write_text(_config(user, key))
        path.chmod(mode)
        os.utime(path, (mtime_s, mtime_s))
        return path

    def users(self, host: str = HOST) -> list[str]:
        return [found.username for found in self.keychain.lookup(host, "team/app", Deadline.after(10))]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def _config(user: str, key: str = HOST) -> str:
    return json.dumps({"auths": {key: {"auth": base64.b64encode(f"{user}:pw".encode()).decode()}}})


def test_nothing_there_is_no_credential(tmp_path: Path) -> None:
    settings = RegistrySettings(credentials_dir=str(tmp_path / "missing"), docker_config=str(tmp_path / "missing.json"))
    assert Keychain(settings).lookup(HOST, "app", Deadline.after(10)) == ()


def test_newest_of_ours_comes_first_and_dockers_last(files: Files) -> None:
    files.write("old.json", "old", mtime_s=100)
    files.write("new.json", "new", mtime_s=300)
    files.write("mid.json", "mid", mtime_s=200)
    files.docker.write_text(_config("docker"))
    assert files.users() == ["new", "mid", "old", "docker"]


def test_same_credential_is_tried_once(files: Files) -> None:
    files.docker.write_text(json.dumps({"auths": {HOST: {"username": "a"}, f"https://{HOST}/v2/": {"username": "a"}}}))
    assert files.users() in (["a"], ["a", "a"])


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_file_readable_by_others_is_passed_over(files: Files, mode: int) -> None:
    files.write("a.json", "leaked", mode=mode)
    files.write("b.json", "kept")
    assert files.users() == ["kept"]


def test_file_of_another_user_is_passed_over(files: Files) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(files.write("a.json", "foreign"), 12345, 12345)
    assert files.users() == []


def test_hidden_and_other_files_are_no_credentials(files: Files) -> None:
    files.write(".hidden.json", "hidden")
    files.write("note.txt", "text")
    (files.own / "sub.json").mkdir()
    assert files.users() == []


def test_bad_file_does_not_hide_the_good_one(files: Files) -> None:
    path = files.write("bad.json", "x", mtime_s=500)
    path.write_text('{"auths": {"registry.test": {"auth": "secret?"}}}')
    files.write("good.json", "good")
    assert files.users() == ["good"]


def test_changed_removed_and_added_files_are_seen(files: Files) -> None:
    path = files.write("a.json", "one", mtime_s=1)
    assert files.users() == ["one"]
    files.write("a.json", "two", mtime_s=2)
    assert files.users() == ["two"]
    files.write("b.json", "three", mtime_s=3)
    assert files.users() == ["three", "two"]
    path.unlink()
    assert files.users() == ["three"]


def test_file_that_becomes_private_is_used(files: Files) -> None:
    path = files.write("a.json", "me", mode=0o644)
    assert files.users() == []
    path.chmod(0o600)
    assert files.users() == ["me"]


def test_place_of_dockers_file_comes_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(_config("home"))
    (tmp_path / "config.json").write_text(_config("variable"))
    for environ, user in (
        ({"HOME": str(tmp_path)}, ["home"]),
        ({"HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path)}, ["variable"]),
        ({}, []),
    ):
        keychain = Keychain(RegistrySettings(credentials_dir=""), environ)
        assert [found.username for found in keychain.lookup(HOST, "app", Deadline.after(10))] == user


class Helper:
    """A credential helper on PATH."""

    def __init__(self, files: Files, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = directory / "docker-credential-vault"
        directory.mkdir()
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        files.docker.write_text(json.dumps({"credsStore": "vault"}))

    def says(self, script: str) -> None:
        self._path.write_text(f"#!/bin/sh\nread host\n{script}\n")
        self._path.chmod(0o755)


@pytest.fixture
def helper(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Helper:
    return Helper(files, tmp_path / "bin", monkeypatch)


def test_helper_is_asked_for_the_host(files: Files, helper: Helper) -> None:
    helper.says("""printf '{"Username": "user-of-%s", "Secret": "s"}' "$host" """)
    assert files.users() == [f"user-of-{HOST}"]
    assert files.users("registry-1.docker.io") == ["user-of-https://index.docker.io/v1/"]


def test_helper_may_give_an_identity_token(files: Files, helper: Helper) -> None:
    helper.says("""echo '{"Username": "<token>", "Secret": "id"}'""")
    (found,) = files.keychain.lookup(HOST, "app", Deadline.after(10))
    assert (found.username, found.identity_token) == ("", "id")


@pytest.mark.parametrize(
    "script",
    [
        "echo credentials not found in native keychain; exit 1",
        "echo the password is hunter2 >&2; exit 3",
        "echo hunter2",
        """echo '{"Username": 5, "Secret": "hunter2"}'""",
        "exec sleep 60",
    ],
)
def test_helper_that_fails_is_passed_over_and_shows_nothing(
    files: Files, helper: Helper, capfd: pytest.CaptureFixture[str], script: str
) -> None:
    helper.says(script)
    assert files.keychain.lookup(HOST, "app", Deadline.after(0.3)) == ()
    out = capfd.readouterr()
    assert "hunter2" not in out.out + out.err


def test_helper_that_is_not_installed_is_passed_over(files: Files) -> None:
    files.docker.write_text(json.dumps({"credsStore": "not-installed"}))
    assert files.users() == []
