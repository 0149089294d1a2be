"""What a hundred mounted layers with half a million entries cost while nothing happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.busybox import busybox_entries
from tests.support.content import stored
from tests.support.distribution import Registry
from tests.support.images import build_image, push
from tests.support.leftovers import mounts_below
from tests.support.node import Node, node
from tests.support.processes import cpu_used_s, processes_mentioning, resident_of, wait_until
from tests.support.services import apparate
from tests.support.tarball import LayerItems
from tests.support.tarball import Node as Entry

LAYERS = 100
ENTRIES = 5_000  # in each layer
MEMORY_LIMIT_BYTES = 150 * 10**6
IDLE_S = 10.0
IDLE_CPU_S = 0.05  # of all processes in that time: top shows 0.0 % for each; gRPC and HTTP servers look at their clocks
SETTLE_S = 60.0
PROCESSES = 4
WALK = "echo up; ls -lR /tree | wc -l; echo walked; sleep 100000"

pytestmark = [pytest.mark.root, pytest.mark.fuse]


def layer(number: int) -> LayerItems:
    """A layer with *ENTRIES* entries of its own; the first one has programs besides."""
    entries: dict[str, Entry | bytes | None] = {**(busybox_entries() if number == 0 else {}), f"tree/{number}/": None}
    for file in range(ENTRIES - 1):
        if file % 100 == 0:
            directory = f"tree/{number}/{file}/"
            entries[directory] = None
        else:
            entries[f"{directory}file-{file:05}"] = b"%d %d\n" % (number, file)
    return entries


@pytest.fixture(scope="module")
def image(registry: Registry) -> str:
    source = push(registry, "memory/app", build_image([layer(number) for number in range(LAYERS)]))
    apparate("convert", source, f"{source}-apparate")
    return f"{source}-apparate"


@pytest.fixture
def running(folder: Path) -> Iterator[Node]:
    with node(folder, "2.4.2") as made:
        yield made


def our_processes(running: Node) -> dict[int, str]:
    """Everything that our two services consist of: keeper, loader, courier, snapshotter."""
    return {pid: line for pid, line in processes_mentioning(f"{running.ours.base}/").items() if " -m apparate" in line}


def memory(running: Node) -> dict[str, int]:
    """Proportional set size of each of our processes."""
    return {line.split(" -m ")[1]: resident_of(pid) for pid, line in our_processes(running).items()}


def test_a_hundred_layers_are_cheap_and_idle(running: Node, image: str) -> None:
    cri = running.containerd.cri
    cri.pull(image)
    assert len(running.remote_layers()) == len(stored(image).digests) == LAYERS
    container = cri.start(cri.run_pod(), image, ["sh", "-c", WALK])
    container.wait_output("up")
    mounted = [point for point in mounts_below(running.ours.run_dir) if point != str(running.ours.run_dir / "fs")]
    assert len(mounted) == LAYERS
    container.wait_output("walked")
    assert int(container.output().split()[1]) >= LAYERS * ENTRIES
    costs = {"after a walk": memory(running)}
    apparate("complete", "--config", running.ours.config, image)  # or it would begin after a minute, while we look
    costs["complete"] = memory(running)
    running.containerd.process.kill()  # it asks for every snapshot every ten seconds; idle is when nobody asks
    try:
        pids = list(our_processes(running))
        wait_until(lambda: cpu_used_s(pids, IDLE_S) <= IDLE_CPU_S, "our services are idle", SETTLE_S)
        costs["idle"] = memory(running)
    finally:
        running.containerd.start()
    totals = {when: sum(found.values()) for when, found in costs.items()}
    print(totals, costs)
    assert all(len(found) == PROCESSES for found in costs.values())
    assert max(totals.values()) <= MEMORY_LIMIT_BYTES
    assert container.exec(["cat", "/tree/50/100/file-00101"]).stdout == "50 101\n"
    running.containerd.remove_all()
    running.assert_empty()
