"""Proofs about a running node, from outside: pods through its CRI socket, bytes by its registry's own log."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.cri import Container, CriClient, Pod
from tests.support.nodes.fixtures import Fixtures
from tests.support.processes import run, wait_until

CRI_SOCKET = "run/containerd/containerd.sock"
APPARATE = "/opt/apparate/current/bin/apparate"
ANSWER_TIMEOUT_S = 60.0
LAZY_SHARE_MAX = 0.6
"""Of the data that a start which reads one file of sixteen may fetch; all of it would be 1."""
_BLOB = re.compile(r'"GET /v2/\S+/blobs/sha256:[0-9a-f]{64} HTTP/1\.1" (?:200|206) (\d+)')


class NodeUnderTest:
    """The node that runs in the podman container *name*; *work* is a folder that both see under the same path."""

    def __init__(self, name: str, work: Path) -> None:
        self.name = name
        self.work = work
        self.fixtures = Fixtures.load(work)

    def run(self, *command: str, given: str = "") -> str:
        """Run *command* on the node with *given* as its standard input, and return what it printed."""
        return run(["podman", "exec", "--interactive", self.name, *command], input=given)

    def root(self) -> Path:
        """The node's root file system, seen from outside."""
        return Path("/proc") / (self.work / "pids" / self.name).read_text().strip() / "root"

    @contextlib.contextmanager
    def cri(self) -> Iterator[CriClient]:
        """A client of the node's containerd, which answers."""
        old = re.search(r"\bv?1\.[0-5]\.", self.run("containerd", "--version"))
        client = CriClient(
            self.root() / CRI_SOCKET, "v1alpha2" if old else "v1", self.work / "pods" / self.name, "/pods"
        )
        try:
            wait_until(lambda: _answers(client), f"CRI of {self.name} answers", ANSWER_TIMEOUT_S)
            yield client
        finally:
            client.close()

    def served_bytes(self) -> int:
        """Bytes of blobs that the node's registry has served since it was booted first."""
        log = self.run("journalctl", "--unit", "test-registry.service", "--output", "cat", "--no-pager")
        return sum(int(size) for size in _BLOB.findall(log))

    def modes(self, reference: str) -> list[str]:
        """How each layer of *reference* is on the node, by its own account."""
        for image in json.loads(self.run(APPARATE, "images", "--json"))["images"]:
            if reference in json.dumps(image):
                return [str(layer["mode"]) for layer in image["layers"]]
        raise AssertionError(f"{self.name} does not know {reference}")


def _answers(client: CriClient) -> bool:
    with contextlib.suppress(Exception):
        return bool(client.version())
    return False


def start_lazy(node: NodeUnderTest, cri: CriClient) -> tuple[Pod, Container]:
    """Start a pod from the accelerated image and prove by bytes that it was loaded on demand."""
    before = node.served_bytes()
    cri.pull(node.fixtures.lazy)
    pod = cri.run_pod("lazy")
    container = cri.start(pod, node.fixtures.lazy, ["sh", "-c", "echo started; sleep 2000000000"])
    container.wait_output("started")
    digest = container.exec(["sha256sum", node.fixtures.last_file]).stdout.split()[0]
    served = node.served_bytes() - before
    modes = node.modes(node.fixtures.lazy)
    if digest != node.fixtures.last_file_sha256:
        raise AssertionError(f"{node.name}: {node.fixtures.last_file} has digest {digest}")
    if served > LAZY_SHARE_MAX * node.fixtures.data_bytes:
        raise AssertionError(f"{node.name}: not lazy: {served} bytes served to start on {node.fixtures.data_bytes}")
    if not modes or set(modes) - {"lazy", "complete"}:
        raise AssertionError(f"{node.name}: not lazy: layers are {modes}")
    print(f"{node.name}: lazy pod started, {served} of {node.fixtures.data_bytes} bytes served, layers {modes}")
    return pod, container


def start_ordinary(node: NodeUnderTest, cri: CriClient) -> tuple[Pod, Container]:
    """Start a pod from an ordinary image."""
    cri.pull(node.fixtures.tool)
    pod = cri.run_pod("ordinary")
    container = cri.start(pod, node.fixtures.tool, ["sh", "-c", "cat /etc/tool; sleep 2000000000"])
    container.wait_output("ordinary")
    print(f"{node.name}: ordinary pod started")
    return pod, container
