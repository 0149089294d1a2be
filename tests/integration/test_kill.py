"""Our processes are killed at random moments while containers read; no container sees it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from tests.support.busybox import busybox_entries
from tests.support.content import stored
from tests.support.cri import Container, CriClient, CriError, Pod
from tests.support.distribution import Registry
from tests.support.images import build_image, pattern, plain_layer, push
from tests.support.node import Node, node
from tests.support.processes import wait_until
from tests.support.scope import times
from tests.support.services import apparate
from tests.support.tarball import Node as Entry
from tests.support.trees import drop_caches

KILLS = times(8, 50)
SEED = 20260901
PAUSE_S = (0.02, 0.6)
# Reads every file with cold caches, over and over, until it is told to stop; prints one hash a round.
READER = (
    "echo up; while [ ! -e /stop/now ]; do find /bin /data -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum;"
    " echo round $?; done; echo done"
)

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture(scope="module")
def image(registry: Registry) -> str:
    layers: list[dict[str, Entry | bytes | None]] = [
        busybox_entries(),
        {"data/": None, **{f"data/large-{number}": pattern(3_000_000, seed=number) for number in range(8)}},
        {"data/": None, **{f"data/small/{path}": entry for path, entry in plain_layer(2000, 900).items()}},
    ]
    source = push(registry, "kill/app", build_image(layers))
    apparate("convert", source, f"{source}-apparate")
    return f"{source}-apparate"


@pytest.fixture
def running(folder: Path) -> Iterator[Node]:
    with node(folder, "2.4.2") as made:
        yield made


@pytest.mark.parametrize("victims", ["loader", "snapshotter", "both", "upgrade", "containerd"])
def test_no_container_notices(running: Node, folder: Path, image: str, victims: str) -> None:
    chance = random.Random(SEED)
    cri = running.containerd.cri
    cri.pull(image)
    pod = cri.run_pod()
    stop = folder / "stop"
    stop.mkdir()
    reader = cri.start(pod, image, ["sh", "-c", READER], mounts={"/stop": stop})
    reader.wait_output("up")
    pause = threading.Event()
    for number in range(KILLS):
        drop_caches()
        pause.wait(chance.uniform(*PAUSE_S))
        strike(running, victims)
        if number % 4 == 0:
            other = start_as_kubelet(cri, pod, image, ["sh", "-c", "sha256sum /data/large-0 && echo done"])
            other.wait_output("done")
    (stop / "now").touch()
    reader.wait_output("done", timeout_s=300)
    assert_all_rounds_equal(reader)
    assert set(stored(image).digests) == set(running.remote_layers())
    running.containerd.remove_all()
    running.assert_empty()


def strike(running: Node, victims: str) -> None:
    """Kill what *victims* names; what has no keeper of its own is started again, as the service manager would."""
    services = running.ours
    actions: dict[str, Callable[[], object]] = {
        "loader": services.kill_loader,
        "snapshotter": services.kill_snapshotter,
        "upgrade": services.restart_loader,
        "containerd": lambda: running.containerd.restart(kill=True),
    }
    if victims == "both":
        actions["loader"]()
        actions["snapshotter"]()
    else:
        actions[victims]()


def start_as_kubelet(cri: CriClient, pod: Pod, image: str, line: list[str]) -> Container:
    """Start a container; what containerd calls unavailable for the moment is tried again, as kubelet does.

    containerd's own connection to a restarted snapshotter waits up to three seconds before it dials again.
    """

    def attempt() -> Container | None:
        try:
            return cri.start(pod, image, line)
        except CriError as error:
            if error.code is not grpc.StatusCode.UNAVAILABLE:
                raise
            return None

    started = wait_until(attempt, "the container is started")
    assert started is not None
    return started


def assert_all_rounds_equal(reader: Container) -> None:
    lines = [line for line in reader.output().splitlines() if line not in {"up", "done"}]
    assert lines
    hashes = [line for line in lines if not line.startswith("round")]
    assert len(set(hashes)) == 1, lines
    assert {line for line in lines if line.startswith("round")} == {"round 0"}
