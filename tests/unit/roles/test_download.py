"""The shell script that asks for an address, or brings the file behind it, with whatever the host has."""

import hashlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.support.role_tables import ROLES

SCRIPT = ROLES / "host_download" / "files" / "download.sh"
CONTENT = b"a package" * 1000
_EVERYWHERE = ("sh", "mktemp", "rm", "rmdir", "mkdir", "cat", "cut", "cp", "mv", "tail", "sha256sum", "dirname")
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is http.server's
        """Say nothing."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "package").write_bytes(CONTENT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/package"
    server.shutdown()
    server.server_close()
    thread.join()


def _found(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture(params=["curl", "wget", "python3"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A PATH on which one program can download, and what every host has."""
    programs = tmp_path / "bin"
    programs.mkdir()
    if request.param == "python3":
        (programs / "python3").symlink_to(Path(sys.executable).resolve())
    else:
        (programs / request.param).symlink_to(_found(request.param))
    for name in _EVERYWHERE:
        (programs / name).symlink_to(_found(name))
    return str(programs)


def _run(path: str, addresses: list[str], *, place: Path | str = "", checksum: str = "") -> tuple[int, str]:
    arguments = [str(place), checksum.removeprefix("sha256:"), "10", "5", *addresses]
    done = subprocess.run(
        ["/bin/sh", "-s", *arguments],
        input=SCRIPT.read_text(),
        capture_output=True,
        text=True,
        env={"PATH": path},
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.strip()


def test_a_file_is_brought_once(path: str, address: str, tmp_path: Path) -> None:
    place = tmp_path / "new" / "package"

    assert _run(path, [address], place=place, checksum=CHECKSUM) == (0, "fetched")
    assert place.read_bytes() == CONTENT
    assert _run(path, ["http://127.0.0.1:1/"], place=place, checksum=CHECKSUM) == (0, "")


def test_another_file_is_named_and_leaves_nothing(path: str, address: str, tmp_path: Path) -> None:
    code, said = _run(path, [address], place=tmp_path / "new" / "package", checksum=f"sha256:{'a' * 64}")

    assert (code, said) == (1, f"{address} has checksum {CHECKSUM}, not sha256:{'a' * 64}")
    assert not (tmp_path / "new").exists()


def test_an_address_that_does_not_answer_is_named_and_leaves_nothing(path: str, tmp_path: Path) -> None:
    code, said = _run(path, ["http://127.0.0.1:1/x"], place=tmp_path / "new" / "package", checksum=CHECKSUM)

    assert code == 1
    assert said.startswith("http://127.0.0.1:1/x cannot be fetched (")
    assert not (tmp_path / "new").exists()


def test_one_of_several_addresses_suffices(path: str, address: str) -> None:
    assert _run(path, [f"{address}.missing", address]) == (0, "")

    code, said = _run(path, [f"{address}.missing", f"{address}.too"])
    assert code == 1
    assert said.startswith(f"{address}.missing does not answer (")


def test_a_file_of_the_host_has_an_address_too(path: str, tmp_path: Path) -> None:
    (tmp_path / "package").write_bytes(CONTENT)
    assert _run(path, [f"file://{tmp_path}/package"], place=tmp_path / "there", checksum=CHECKSUM) == (0, "fetched")
    assert _run(path, [f"file://{tmp_path}/missing"])[0] == 1
