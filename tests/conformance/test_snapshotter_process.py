"""The snapshotter as a process: what it refuses, what survives its death, what it needs to start."""

from __future__ import annotations

import itertools
import os
import random
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.support.fake_loader import FakeLayer, FakeLoader
from tests.support.leftovers import mounts_below
from tests.support.processes import Process, run, wait_until
from tests.support.scope import matrix_only
from tests.support.services import Services, answers, apparate, as_nobody, command, environment
from tests.support.snapshots_client import SnapshotsClient, mount_all

from apparate.errors import FailedPrecondition
from apparate.grpcapi.loader import loader_handler
from apparate.grpcapi.server import serving
from apparate.oci import names
from apparate.snapshot.remote import ManifestLayer

pytestmark = pytest.mark.root

KILLS = (8, pytest.param(50, marks=matrix_only))
SEED = 20260902
TOO_BIG_FOR_OLD_SERVERS = 6 << 20  # above the 4 MiB that gRPC takes by default


@pytest.fixture
def services(folder: Path) -> Iterator[Services]:
    made = Services(folder / "s", folder / "root")
    made.start_snapshotter()
    yield made
    made.snapshotter.stop()
    assert made.unexpected() == []


def test_socket_and_root_belong_to_root_alone(services: Services) -> None:
    assert stat.S_IMODE(services.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE((services.root / "snapshots").stat().st_mode) == 0o700


def test_stopping_removes_the_socket_and_starting_replaces_a_stale_one(services: Services) -> None:
    assert services.snapshotter.stop() == 0
    assert not services.socket.exists()
    services.start_snapshotter()
    services.snapshotter.kill()
    assert services.socket.exists()
    services.start_snapshotter()


def test_a_second_instance_on_the_root_is_refused_in_one_line(services: Services, folder: Path) -> None:
    other = Services(folder / "other", services.root)
    done = apparate("snapshotter", "--config", other.config, check=False)
    assert done.returncode == FailedPrecondition.exit_code
    assert "in use by another snapshotter" in done.stderr
    assert done.stderr.count("\n") == 1
    with SnapshotsClient(services.socket) as client:
        client.prepare("still serving")


def test_a_second_instance_on_the_socket_is_refused(services: Services, folder: Path) -> None:
    other = Services(folder / "other", folder / "other-root", sections={"snapshotter": {"socket": services.socket}})
    done = apparate("snapshotter", "--config", other.config, check=False)
    assert done.returncode == FailedPrecondition.exit_code
    assert "another process serves" in done.stderr
    assert answers(services.socket)


def test_a_root_on_overlayfs_is_refused_in_one_line(folder: Path) -> None:
    lower, upper, work, merged = (folder / name for name in ("lower", "upper", "work", "merged"))
    for path in (lower, upper, work, merged):
        path.mkdir()
    run(["mount", "-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "overlay", merged])
    try:
        made = Services(folder / "s", merged / "root")
        done = apparate("snapshotter", "--config", made.config, check=False)
    finally:
        run(["umount", merged])
    assert done.returncode == FailedPrecondition.exit_code
    assert "is on overlay" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_permission_it_says_so_in_one_line(folder: Path) -> None:
    made = Services(folder / "s", folder / "root")
    folder.chmod(0o755)
    line = as_nobody(command("snapshotter", "--config", made.config))
    made.base.chmod(0o755)
    made.config.chmod(0o644)
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == FailedPrecondition.exit_code, done.stderr
    assert "run as root" in done.stderr
    assert done.stderr.count("\n") == 1


def test_it_starts_and_serves_without_any_network(folder: Path) -> None:
    made = Services(folder / "s", folder / "root")
    line = ["unshare", "--net", *command("snapshotter", "--config", made.config)]
    with Process("snapshotter", line, folder / "log", env=environment()) as process:
        process.start(lambda: answers(made.socket))
        with SnapshotsClient(made.socket) as client:
            client.prepare("a")
            client.commit("b", "a")
            assert client.list().keys() == {"b"}


def test_messages_of_containerds_size_are_taken(services: Services) -> None:
    labels = {f"label-{number}": "x" * 4000 for number in range(TOO_BIG_FOR_OLD_SERVERS // 4000)}
    with SnapshotsClient(services.socket) as client:
        client.prepare("key", "", labels)
        assert dict(client.stat("key").labels) == labels


def test_list_of_many_comes_in_batches(services: Services) -> None:
    with SnapshotsClient(services.socket) as client:
        for number in range(250):
            client.prepare(f"key {number}")
        assert len(client.list()) == 250
        assert set(client.list('name=="key 7"')) == {"key 7"}
        with pytest.raises(grpc.RpcError) as caught:
            client.list("name=")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("kills", KILLS)
def test_what_was_answered_survives_sigkill(services: Services, folder: Path, kills: int) -> None:
    """Kill it again and again under load; what it has confirmed is there, and nothing else has a directory."""
    chance = random.Random(SEED)
    confirmed: set[str] = set()
    removed: set[str] = set()
    failures: set[grpc.StatusCode] = set()
    lock, stop = threading.Lock(), threading.Event()

    def load(worker: int) -> None:
        number = 0
        with SnapshotsClient(services.socket) as client:
            while not stop.is_set():
                number += 1
                key, name = f"w{worker} key {number}", f"w{worker} name {number}"
                try:
                    client.prepare(key)
                    with lock:
                        confirmed.add(key)
                    client.commit(name, key)
                    with lock:
                        confirmed.discard(key)
                        confirmed.add(name)
                    if number % 2:
                        with lock:
                            confirmed.discard(name)
                        client.remove(name)
                        removed.add(name)
                except grpc.RpcError as error:
                    with lock:  # the call under way may have happened or not
                        confirmed.difference_update({key, name})
                        failures.add(error.code())

    workers = [threading.Thread(target=load, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for _ in range(kills):
        before = len(removed)
        wait_until(lambda seen=before: len(removed) > seen, "work is going on")  # type: ignore[misc]  # bound per round
        threading.Event().wait(chance.uniform(0.0, 0.1))
        services.kill_snapshotter()
    stop.set()
    for worker in workers:
        worker.join()
    assert failures == {grpc.StatusCode.UNAVAILABLE}
    with SnapshotsClient(services.socket) as client:
        listed = client.list()
        assert confirmed <= listed.keys()
        assert not removed & listed.keys()
        client.cleanup()
        assert len(list((services.root / "snapshots").iterdir())) == len(listed)
        assert list((services.root / "removed").iterdir()) == []


def test_a_lazy_chain_of_128_layers_is_mounted_and_read(folder: Path) -> None:
    fake = FakeLoader(folder / "layers")
    made = Services(folder / "s", folder / "root")
    layers = [FakeLayer(str(n).encode(), {f"f{n}": str(n).encode(), "top": str(n).encode()}) for n in range(128)]
    for layer in layers:
        fake.add(layer)
    manifest = layers[0].digest
    toc = {names.TOC_DIGEST: "sha256:toc"}
    fake.manifests[manifest] = [ManifestLayer(layer.digest, names.OCI_LAYER_GZIP, 1, toc) for layer in layers]
    target = folder / "merged"
    target.mkdir()
    with serving(made.run_dir / "loader.sock", [loader_handler(fake)], 16):
        made.start_snapshotter()
        with SnapshotsClient(made.socket) as client:
            parent = ""
            for number, layer in enumerate(layers):
                labels = {
                    names.TARGET_SNAPSHOT: f"sha256:chain{number}",
                    names.CRI_IMAGE_REF: "r/app:1",
                    names.CRI_MANIFEST_DIGEST: str(manifest),
                    names.CRI_LAYER_DIGEST: str(layer.digest),
                    **toc,
                }
                with pytest.raises(grpc.RpcError) as caught:
                    client.prepare(f"ns/{number}/extract-{number} x", parent, labels)
                assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
                found = client.list(f'labels."containerd.io/snapshot.ref"==sha256:chain{number},parent=="{parent}"')
                (parent,) = found
            mounts = client.prepare("ns/500/container", parent)
            _mount_short(mounts[0], target)
            try:
                assert (target / "top").read_text() == "127"
                assert sorted(path.name for path in target.iterdir()) == sorted([*(f"f{n}" for n in range(128)), "top"])
            finally:
                run(["umount", target])
        made.snapshotter.stop()
    assert made.unexpected() == []
    assert mounts_below(folder) == []


def _mount_short(mount: object, target: Path) -> None:
    """Mount an overlay of many layers as containerd does: from their common parent, by relative names."""
    options = list(mount.options)  # type: ignore[attr-defined]  # a protobuf message
    (lowers,) = [option.removeprefix("lowerdir=") for option in options if option.startswith("lowerdir=")]
    paths = lowers.split(":")
    common = os.path.commonpath(paths)
    short = ":".join(os.path.relpath(path, common) for path in paths)
    others = [option for option in options if not option.startswith("lowerdir=")]
    joined = ",".join([*others, f"lowerdir={short}"])
    assert len(joined) < os.sysconf("SC_PAGE_SIZE")
    run(["mount", "-i", "-t", "overlay", "-o", joined, "overlay", target], cwd=common)


def test_a_view_of_an_image_is_read_only(services: Services, folder: Path) -> None:
    target = folder / "target"
    target.mkdir()
    with SnapshotsClient(services.socket) as client:
        (mount,) = client.prepare("key")
        Path(mount.source, "file").write_text("x")
        client.commit("name", "key")
        mount_all(client.view("view", "name"), target)
        try:
            assert (target / "file").read_text() == "x"
            with pytest.raises(OSError, match="Read-only"):
                (target / "new").touch()
        finally:
            run(["umount", target])


def test_on_a_full_disk_snapshots_can_still_be_removed(folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk])
    try:
        made = Services(folder / "s", disk / "root")
        made.start_snapshotter()
        with SnapshotsClient(made.socket) as client:
            (mount,) = client.prepare("full")
            names_made = [f"image layer {number}" for number in range(20)]
            for name in names_made:
                client.prepare(f"key of {name}")
                client.commit(name, f"key of {name}")
            with pytest.raises(OSError, match="No space"):
                _fill(Path(mount.source, "big"))
            with pytest.raises(grpc.RpcError) as caught:
                _prepare_without_end(client)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            for name in names_made:
                client.remove(name)
            client.remove("full")
            client.cleanup()
            client.prepare("there is space again")
        made.snapshotter.stop()
    finally:
        run(["umount", disk])


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))


def _prepare_without_end(client: SnapshotsClient) -> None:
    for number in itertools.count():
        client.prepare(f"more {number}", "", {"label": "x" * 4000})


def test_sigterm_ends_it_with_zero(services: Services) -> None:
    services.snapshotter.signal(signal.SIGTERM)
    assert services.snapshotter.wait() == 0
