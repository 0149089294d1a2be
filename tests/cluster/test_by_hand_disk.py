"""What kubelet makes of lazy images: how much disk they take, whose it is, and which of them go when it is scarce."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support.cluster.api import ApiError, Document
from tests.support.cluster.cluster import Cluster, condition_of
from tests.support.cluster.disk import Disk, images_on
from tests.support.cluster.images import APPS, TOOL
from tests.support.cluster.layout import NEW_NODE, OLD_NODE
from tests.support.cluster.pods import Namespace
from tests.support.cluster.proofs import APPARATE, READ_ALL, assert_lazy, start

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.usefixtures("by_hand")]

NODES = (OLD_NODE.name, NEW_NODE.name)
COUNTED, USED, UNUSED, PLAIN = APPS[2], APPS[3], APPS[4], APPS[5]
MIB = 1 << 20
WRITTEN = 8 * MIB
SLACK = 2 * MIB
ACCOUNT_TIMEOUT_S = 60.0
EVICTION_TIMEOUT_S = 120.0
WRITE = ("sh", "-c", f"dd if=/dev/zero of=/written bs=1048576 count={WRITTEN // MIB}; echo started; sleep 2000000000")
READ = ("sh", "-c", "cat /data/* >/dev/null; echo started; sleep 2000000000")


@pytest.mark.parametrize("node", NODES)
def test_kubelet_accounts_for_what_lazy_images_occupy(namespace: Namespace, mixed: Cluster, node: str) -> None:
    """Free space falls by what is downloaded, by nothing before; what a pod writes is the pod's, what it reads is not.

    containerd asks once for the size of a finished layer. So image storage shows what has come since only after its restart; kubelet decides by free space.
    """
    machine = mixed.machines[node]
    namespace.start_pod("writes", COUNTED.lazy, WRITE, node=node)
    mixed.wait(lambda: _rootfs(mixed, node, namespace, "writes") >= WRITTEN, "the pod is charged", ACCOUNT_TIMEOUT_S)
    images, free = _image_bytes(mixed, node), _free(mixed, node)
    machine.run(APPARATE, "complete", COUNTED.lazy)
    come = COUNTED.data_bytes * 3 // 4  # a start has read some of it
    mixed.wait(lambda: _free(mixed, node) <= free - come, "free space has fallen", ACCOUNT_TIMEOUT_S)
    assert _free(mixed, node) >= free - COUNTED.data_bytes - SLACK
    machine.run("systemctl", "restart", "containerd.service")
    mixed.wait(lambda: _image_bytes(mixed, node) >= images + come, "image storage has grown", ACCOUNT_TIMEOUT_S)
    assert _image_bytes(mixed, node) <= images + COUNTED.data_bytes + SLACK
    assert WRITTEN <= _rootfs(mixed, node, namespace, "writes") <= WRITTEN + SLACK


@pytest.mark.parametrize("node", NODES)
def test_a_limit_on_ephemeral_storage_counts_writing_and_not_reading(namespace: Namespace, node: str) -> None:
    limit = {"resources": {"limits": {"ephemeral-storage": str(WRITTEN // 2)}}}
    namespace.start_pod("reads", USED.lazy, READ, node=node, container=limit)
    namespace.create_pod("writes", USED.lazy, WRITE, node=node, container=limit)
    assert namespace.wait_ended("writes") == "Failed"
    assert namespace.pod("writes")["status"]["reason"] == "Evicted"
    assert condition_of(namespace.pod("reads"), "Ready") == "True"


def test_when_the_disk_fills_unused_images_go_and_used_ones_stay(namespace: Namespace, mixed: Cluster) -> None:
    with ThreadPoolExecutor(len(NODES)) as pool:
        list(pool.map(lambda node: _fill_and_watch(namespace, mixed, node), NODES))


def _fill_and_watch(namespace: Namespace, mixed: Cluster, node: str) -> None:
    """On *node*: a lazy image in use, a lazy one that was used, and an ordinary one that was used; then the disk is short of room."""
    machine, disk = mixed.machines[node], Disk(mixed.machines[node])
    used = f"used-{node}"
    namespace.start_pod(used, USED.lazy, node=node)
    for name, image in ((f"lazy-{node}", UNUSED.lazy), (f"plain-{node}", PLAIN.plain), (f"tool-{node}", TOOL)):
        namespace.start_pod(name, image, node=node)
    machine.run(APPARATE, "complete", UNUSED.lazy)
    for name in ("lazy", "plain"):
        namespace.delete_pod(f"{name}-{node}")
    machine.run(
        "systemctl", "restart", "kubelet.service"
    )  # it takes note of images at its start and every five minutes
    mixed.wait(lambda: _account(mixed, node), f"kubelet of {node} answers", ACCOUNT_TIMEOUT_S)
    before = images_on(mixed, node)
    assert {USED.lazy, UNUSED.lazy, PLAIN.plain, TOOL} <= before
    with disk.short_of_room():
        gone = {UNUSED.lazy, PLAIN.plain}
        mixed.wait(lambda: not gone & images_on(mixed, node), f"{node} removes unused images", EVICTION_TIMEOUT_S)
        assert {USED.lazy, TOOL} <= images_on(mixed, node)
        mixed.wait(lambda: _is_pressed(mixed.api.node(node)), f"{node} is short of room", EVICTION_TIMEOUT_S)
        mixed.wait(lambda: not _is_pressed(mixed.api.node(node)), f"{node} has room again", EVICTION_TIMEOUT_S)
        assert namespace.exec(used, *READ_ALL).split()[0] == USED.all_digest
    assert condition_of(namespace.pod(used), "Ready") == "True"
    assert_lazy(start(namespace, f"again-{node}", UNUSED, node=node), UNUSED)


def _is_pressed(node: Document) -> bool:
    return condition_of(node, "DiskPressure") == "True"


def _account(mixed: Cluster, node: str) -> Document | None:
    """kubelet's account of its node, if it has one now."""
    with contextlib.suppress(ApiError):
        return mixed.api.stats(node)
    return None


def _image_bytes(mixed: Cluster, node: str) -> int:
    account = _account(mixed, node)
    return int(account["node"]["runtime"]["imageFs"].get("usedBytes", 0)) if account else 0


def _free(mixed: Cluster, node: str) -> int:
    return int(mixed.api.stats(node)["node"]["fs"]["availableBytes"])


def _rootfs(mixed: Cluster, node: str, namespace: Namespace, name: str) -> int:
    """Bytes of a pod's writable layer, as kubelet has them."""
    account = _account(mixed, node)
    for pod in account["pods"] if account else ():
        if pod["podRef"] == {**pod["podRef"], "name": name, "namespace": namespace.name}:
            return sum(int(one.get("rootfs", {}).get("usedBytes", 0)) for one in pod.get("containers", ()))
    return 0
