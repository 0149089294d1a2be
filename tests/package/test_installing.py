"""Installing, upgrading and removing: with the scripts of the package on small stand-ins of it, and with dpkg on the real one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.host_package import PACKAGING, Host, install
from tests.support.leftovers import clean_folder
from tests.support.processes import Process

pytestmark = [pytest.mark.root]

ACTIVATE = "/opt/apparate/dist/share/libexec/activate"
DEACTIVATE = "/opt/apparate/dist/share/libexec/deactivate"


@pytest.fixture
def debian(tree: Path) -> Iterator[Host]:
    """A Debian with a real shell, coreutils and dpkg, and no package."""
    with clean_folder("install") as folder:
        host = install(tree, folder / "root", "Debian 11")
        shutil.rmtree(host.root / "opt/apparate")
        (host.root / "etc/apparate").rmdir()
        yield host


def bring(
    host: Host, version: str, *, build: str = "1", says: str = "echo apparate", running_lazy: str = "exit 0"
) -> None:
    """Put a stand-in of the package where dpkg or rpm would put the real one."""
    dist = host.root / "opt/apparate/dist"
    shutil.rmtree(dist, ignore_errors=True)
    shutil.copytree(PACKAGING / "host", dist / "share")
    (dist / "bin").mkdir()
    (dist / "VERSION").write_text(f"{version}\n")
    (dist / "BUILD-ID").write_text(f"{version} {build}\n")
    (dist / "bin/apparate").write_text(f'#!/bin/sh\n[ "$1" = --version ] || {{ {running_lazy}; }}\n{says}\n')
    (dist / "bin/apparate").chmod(0o755)
    shutil.copy(host.root / "bin/sleep", dist / "bin/python3.11")


def versions(host: Host) -> set[str]:
    return {path.name for path in (host.root / "opt/apparate").iterdir()} - {"dist", "current"}


def current(host: Host) -> str:
    return os.readlink(host.root / "opt/apparate/current")


def test_a_version_goes_when_no_process_executes_it(host_with_worker: tuple[Host, Process]) -> None:
    host, worker = host_with_worker

    bring(host, "2")
    host.run(ACTIVATE)
    assert (current(host), versions(host)) == ("2", {"1", "2"})

    worker.kill()
    host.run(ACTIVATE)
    assert (current(host), versions(host)) == ("2", {"2"})


def test_another_build_of_a_running_version_leaves_its_files_alone(host_with_worker: tuple[Host, Process]) -> None:
    host, worker = host_with_worker
    program = Path(f"/proc/{worker.pid}/exe").stat().st_ino

    bring(host, "1", build="2")
    host.run(ACTIVATE)

    assert (host.root / "opt/apparate/1/BUILD-ID").read_text() == "1 2\n"
    (old,) = versions(host) - {"1"}
    assert (host.root / "opt/apparate" / old / "bin/python3.11").stat().st_ino == program


@pytest.fixture
def host_with_worker(debian: Host) -> Iterator[tuple[Host, Process]]:
    """Version 1 is installed and a process executes it."""
    bring(debian, "1")
    debian.run(ACTIVATE)
    command = debian.command("/opt/apparate/current/bin/python3.11", "600")
    worker = Process("worker", command, debian.root.parent / "log")
    worker.start(lambda: os.readlink(f"/proc/{worker.pid}/exe").endswith("/python3.11"))
    yield debian, worker
    worker.kill()


@pytest.mark.parametrize("version", ["2", "1"], ids=["of another version", "of the same version"])
def test_a_build_that_does_not_run_does_not_become_current(debian: Host, version: str) -> None:
    bring(debian, "1")
    debian.run(ACTIVATE)

    bring(debian, version, build="broken", says="exit 1")
    with pytest.raises(AssertionError, match="does not run on this machine"):
        debian.run(ACTIVATE)

    assert current(debian) == "1"
    assert (debian.root / "opt/apparate/1/BUILD-ID").read_text() == "1 1\n"
    bring(debian, "3")
    debian.run(ACTIVATE)
    assert (current(debian), versions(debian)) == ("3", {"3"})


def test_activating_again_changes_nothing(debian: Host) -> None:
    bring(debian, "1")
    debian.run(ACTIVATE)
    before = (debian.root / "opt/apparate/1").stat().st_ino

    debian.run(ACTIVATE)

    assert (debian.root / "opt/apparate/1").stat().st_ino == before


@pytest.mark.parametrize("answer", ["echo k8s.io/7/web; exit 5", "echo cannot tell >&2; exit 1"])
def test_it_is_not_removed_while_lazy_containers_run_or_nobody_can_tell(debian: Host, answer: str) -> None:
    bring(debian, "1", running_lazy=answer)
    debian.run(ACTIVATE)

    with pytest.raises(AssertionError, match="kubectl drain NODE") as refused:
        debian.run(DEACTIVATE)

    assert "k8s.io/7/web" in str(refused.value) or "cannot tell" in str(refused.value)
    # Each command here has a /run of the root file system's own, which stays.
    (debian.root / "run/apparate-remove-anyway").touch()
    debian.run(DEACTIVATE)
    assert not (debian.root / "run/apparate-remove-anyway").exists()


def test_it_is_not_removed_while_containerd_is_configured_for_it(debian: Host) -> None:
    bring(debian, "1")
    debian.run(ACTIVATE)
    record = debian.root / "var/lib/apparate/node.json"
    record.parent.mkdir()
    record.touch()

    with pytest.raises(AssertionError, match="apparate node restore"):
        debian.run(DEACTIVATE)

    record.unlink()
    debian.run(DEACTIVATE)


def test_mounts_of_the_run_directory_go_with_it(debian: Host) -> None:
    bring(debian, "1")
    debian.run(ACTIVATE)
    mounted = (
        "mkdir -p /run/apparate/fs && mount -t tmpfs none /run/apparate/fs && mount -t tmpfs none /run/apparate/fs"
    )

    left = debian.run(
        "/bin/sh", "-c", f"{mounted} && {DEACTIVATE} && grep -c /run/apparate /proc/self/mountinfo || true"
    )

    assert left.strip() == "0"
    assert not (debian.root / "run/apparate").exists()


def test_dpkg_installs_and_removes_without_a_trace(debian: Host, packages: Path) -> None:
    (deb,) = packages.glob("*.deb")
    shutil.copy(deb, debian.root / "tmp/apparate.deb")
    before = _listing(debian.root)

    debian.run("/usr/bin/dpkg", "-i", "/tmp/apparate.deb", env=_ROOT_PATH)
    assert debian.run("/usr/bin/apparate", "--version").strip() == f"apparate, version {debian.version}"
    assert debian.run("/usr/bin/dpkg", "-V", "apparate", env=_ROOT_PATH) == ""
    secret = debian.root / "etc/apparate/credentials/registry.json"
    secret.write_text("{}")
    assert secret.parent.stat().st_mode & 0o777 == 0o700

    debian.run("/usr/bin/dpkg", "-i", "/tmp/apparate.deb", env=_ROOT_PATH)  # over itself
    debian.run("/usr/bin/dpkg", "--purge", "apparate", env=_ROOT_PATH, alone=True)
    assert _listing(debian.root) == before


_ROOT_PATH = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def _listing(root: Path) -> set[str]:
    """Every path but the records of dpkg itself."""
    skipped = ("./var/lib/dpkg", "./var/log", "./proc", "./sys", "./dev")
    printed = subprocess.run(["find", "."], cwd=root, check=True, capture_output=True, text=True, timeout=60).stdout
    return {line for line in printed.splitlines() if not line.startswith(skipped)}
