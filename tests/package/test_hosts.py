"""The package on root file systems that have nothing for it, or worse than nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.content import stored
from tests.support.distribution import Registry
from tests.support.host_package import HOSTS, Host, install, mapped_files
from tests.support.images import build_image, pattern, push
from tests.support.leftovers import clean_folder
from tests.support.processes import Process, children_of, run, wait_until
from tests.support.services import apparate

from apparate.grpcapi.loader_client import LoaderClient
from apparate.oci.digest import Digest
from apparate.snapshot.remote import ResolveRequest

pytestmark = [pytest.mark.root, pytest.mark.fuse]

CONTENT = pattern(3_000_000)
IMPORT_EVERYTHING = """
import importlib, pkgutil, apparate
for module in pkgutil.walk_packages(apparate.__path__, "apparate."):
    if not module.name.endswith(("__main__", ".generate")):
        importlib.import_module(module.name)
import asyncio, bz2, ctypes, hashlib, lzma, multiprocessing, sqlite3, ssl, socket, uuid, zlib
files = {line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if len(line.split(None, 5)) == 6}
print(sorted(name for name in files if name.startswith("/") and not name.startswith("/opt/apparate/")))
"""
LOOK_UP = """
import pwd, socket
try:
    socket.getaddrinfo("nowhere.invalid", 80)
except socket.gaierror:
    print("an unknown name is an unknown name")
files = {line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if len(line.split(None, 5)) == 6}
print(sorted(name for name in files if name.startswith("/") and not name.startswith("/opt/apparate/")))
"""


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, tree: Path) -> Iterator[Host]:
    with clean_folder("host") as folder:
        yield install(tree, folder / "root", str(request.param))


def test_everything_imports_and_no_file_of_the_host_is_mapped(host: Host) -> None:
    assert host.run(host.python, "-c", IMPORT_EVERYTHING).strip() == "[]"


def test_what_a_caller_preloads_by_path_or_folder_does_not_matter(host: Host) -> None:
    foreign = {
        "LD_LIBRARY_PATH": "/lib/x86_64-linux-gnu:/usr/lib64:/lib64",
        "PYTHONPATH": "/tmp",
        "PYTHONHOME": "/tmp",
        "LANG": "x",
    }

    assert host.run(host.program, "--version", env=foreign).strip() == f"apparate, version {host.version}"


def test_names_are_looked_up_without_modules_of_the_host(host: Host) -> None:
    assert host.run(host.python, "-c", LOOK_UP).splitlines() == ["an unknown name is an unknown name", "[]"]


@pytest.fixture
def loader(host: Host) -> Iterator[Process]:
    process = Process(
        "loader", host.command(host.program, "loader"), host.root.parent / "log", env={"DOCKER_CONFIG": "/none"}
    )
    with LoaderClient(str(host.root / "run/apparate/loader.sock")) as client:
        process.start(lambda: client.is_reachable(1.0))
    yield process
    process.stop()


def test_the_loader_mounts_and_serves_and_survives_its_death(host: Host, loader: Process, registry: Registry) -> None:
    source = push(registry, f"package/{_repository_name(host)}", build_image([{"dir/file": CONTENT}]))
    apparate("convert", source, f"{source}-converted")
    (described,) = stored(f"{source}-converted").layers
    layer = Digest.parse(described["digest"])

    with LoaderClient(str(host.root / "run/apparate/loader.sock")) as client:
        client.resolve(ResolveRequest(f"{source}-converted", layer, described["annotations"]))
        mounted = client.mount(layer)
        inside = Path(f"/proc/{loader.pid}/root{mounted.path}/dir/file")
        assert inside.read_bytes() == CONTENT

        victim = _loader(loader)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: _loader(loader) != victim, "the keeper has started the next loader")
        wait_until(lambda: client.is_reachable(1.0), "the next loader serves")
        with inside.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read() == CONTENT

        family = [loader.pid, *children_of(loader.pid), *children_of(_loader(loader))]
        assert len(family) == 3, "keeper, loader and courier"
        foreign = {path for path in mapped_files(family) if f"/opt/apparate/{host.version}/" not in path}
        assert {path for path in foreign if "/snapshotter.v1.apparate/layers/" not in path} == set()
        client.unmount(layer)


def test_a_planned_restart_without_a_service_manager_executes_what_is_current(host: Host, loader: Process) -> None:
    home = host.root / "opt/apparate"
    run(["cp", "-al", home / host.version, home / "next"])
    (home / "new").symlink_to("next")
    (home / "new").rename(home / "current")
    victim = _loader(loader)

    loader.signal(signal.SIGHUP)

    wait_until(lambda: Path(f"/proc/{loader.pid}/exe").readlink().parts[-3] == "next", "the keeper is the new version")
    wait_until(lambda: _loader(loader) != victim, "its loader runs")
    with LoaderClient(str(host.root / "run/apparate/loader.sock")) as client:
        wait_until(lambda: client.is_reachable(1.0), "it serves")


def _repository_name(host: Host) -> str:
    """Return one that a registry takes, whatever a temporary folder is called."""
    return "".join(filter(str.isalnum, host.root.parent.name.lower()))


def _loader(keeper: Process) -> int:
    return wait_until(lambda: children_of(keeper.pid), "the keeper has a loader")[-1]
