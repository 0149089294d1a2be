"""The whole product under a real containerd: pull through CRI, run, exec, remove, and nothing left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.busybox import busybox_entries
from tests.support.content import served_bytes, stored, with_layer_of
from tests.support.distribution import Registry
from tests.support.images import build_image, pattern, push
from tests.support.node import Node, node
from tests.support.processes import wait_until
from tests.support.services import apparate
from tests.support.tarball import Node as Entry

RELEASES = ("debian", "2.4.2")
BIG_BYTES = 8 << 20
SLEEP = ["sh", "-c", "echo up; sleep 100000"]

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture(params=RELEASES)
def running(request: pytest.FixtureRequest, folder: Path) -> Iterator[Node]:
    with node(folder, str(request.param)) as made:
        yield made


@pytest.fixture(scope="module")
def source(registry: Registry) -> str:
    """An ordinary image of three layers: programs, a big file that nobody reads, a small one."""
    layers: list[dict[str, Entry | bytes | None]] = [
        busybox_entries(),
        {"data/": None, "data/big": pattern(BIG_BYTES), "data/note": b"from the second layer\n"},
        {"data/note": b"from the third layer\n", "data/empty": b""},
    ]
    return push(registry, "containerd/app", build_image(layers))


@pytest.fixture(scope="module")
def converted(source: str) -> str:
    target = f"{source}-apparate"
    apparate("convert", source, target)
    return target


def test_converted_image_runs_from_remote_layers_and_leaves_nothing(
    running: Node, registry: Registry, converted: str
) -> None:
    image = stored(converted)
    before = served_bytes(registry, image.digests)
    running.containerd.cri.pull(converted)
    assert running.remote_layers() == image.digests
    pod = running.containerd.cri.run_pod()
    container = running.containerd.cri.start(pod, converted, SLEEP)
    container.wait_output("up")
    seen = container.exec(["cat", "/data/note"])
    assert (seen.stdout, seen.exit_code) == ("from the third layer\n", 0)
    assert container.exec(["sh", "-c", "echo x >/data/new && cat /data/new"]).stdout == "x\n"
    assert served_bytes(registry, image.digests) - before < image.size / 2
    summed = container.exec(["md5sum", "/data/big"])
    assert summed.exit_code == 0
    running.containerd.remove_all()
    running.assert_empty()


def test_ordinary_image_behaves_as_with_overlayfs(running: Node, source: str) -> None:
    running.containerd.cri.pull(source)
    assert running.remote_layers() == []
    pod = running.containerd.cri.run_pod()
    container = running.containerd.cri.start(pod, source, SLEEP)
    container.wait_output("up")
    assert container.exec(["cat", "/data/note"]).stdout == "from the third layer\n"
    assert container.exec(["sh", "-c", "rm -r /data && ls /"]).exit_code == 0
    running.containerd.remove_all()
    running.assert_empty()


def test_images_of_both_kinds_run_side_by_side(running: Node, source: str, converted: str) -> None:
    cri = running.containerd.cri
    for reference in (source, converted):
        cri.pull(reference)
    pod = cri.run_pod()
    for reference in (source, converted):
        container = cri.start(pod, reference, SLEEP)
        container.wait_output("up")
        assert container.exec(["cat", "/data/note"]).stdout == "from the third layer\n"
    running.containerd.remove_all()
    running.assert_empty()


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_one_ordinary_layer_does_not_make_the_others_download(
    running: Node, registry: Registry, source: str, converted: str, odd: int
) -> None:
    mixed = with_layer_of(registry, converted, source, odd, f"containerd/mixed-{odd}")
    image = stored(mixed)
    lazy = [digest for number, digest in enumerate(image.digests) if number != odd]
    before = served_bytes(registry, lazy)
    running.containerd.cri.pull(mixed)
    assert served_bytes(registry, lazy) - before < image.size / 2
    assert [digest for digest in running.remote_layers() if digest in lazy] == lazy
    pod = running.containerd.cri.run_pod()
    container = running.containerd.cri.start(pod, mixed, SLEEP)
    container.wait_output("up")
    assert container.exec(["cat", "/data/note"]).stdout == "from the third layer\n"
    running.containerd.remove_all()
    running.assert_empty()


def test_concurrent_pulls_of_images_that_share_layers(running: Node, registry: Registry, converted: str) -> None:
    image = stored(converted)
    other = push(registry, "containerd/other", build_image([busybox_entries(), {"other": b"1\n"}]))
    apparate("convert", other, f"{other}-apparate")
    failures: list[BaseException] = []

    def pull(reference: str) -> None:
        try:
            running.containerd.cri.pull(reference)
        except BaseException as error:  # noqa: BLE001  # reported by the main thread
            failures.append(error)

    threads = [threading.Thread(target=pull, args=(name,)) for name in (converted, f"{other}-apparate") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(image.digests) <= set(running.remote_layers())
    running.containerd.remove_all()
    running.assert_empty()


def test_image_in_use_outlives_its_removal(running: Node, converted: str) -> None:
    cri = running.containerd.cri
    cri.pull(converted)
    pod = cri.run_pod()
    container = cri.start(pod, converted, SLEEP)
    container.wait_output("up")
    cri.remove_image(converted)
    assert container.exec(["md5sum", "/data/big"]).exit_code == 0
    running.containerd.remove_all()
    running.assert_empty()


def test_containerd_restart_keeps_images_and_containers(running: Node, converted: str) -> None:
    cri = running.containerd.cri
    cri.pull(converted)
    pod = cri.run_pod()
    container = cri.start(pod, converted, SLEEP)
    container.wait_output("up")
    running.containerd.restart(kill=True)
    wait_until(lambda: any(converted in image.repo_tags for image in cri.images()), "the image is known again")
    assert container.exec(["md5sum", "/data/big"]).exit_code == 0
    second = cri.start(pod, converted, SLEEP)
    second.wait_output("up")
    running.containerd.remove_all()
    running.assert_empty()
