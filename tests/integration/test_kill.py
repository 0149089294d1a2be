"""Our processes are killed at random moments while containers read; no container sees it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.distribution import Registry
from tests.support.kills import Readable, large_layers, push_readable, survive
from tests.support.node import Node, node

KILLS = 8  # make test-matrix does it longer
SEED = 20260901

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture(scope="module")
def image(registry: Registry) -> Readable:
    return push_readable(registry, "kill/app", large_layers())


@pytest.fixture
def running(folder: Path) -> Iterator[Node]:
    with node(folder, "2.4.2") as made:
        yield made


@pytest.mark.parametrize("victims", ["loader", "snapshotter", "both", "upgrade", "containerd"])
def test_no_container_notices(running: Node, folder: Path, image: Readable, victims: str) -> None:
    survive(running, folder, image, [image], strike(running, victims), KILLS, random.Random(SEED))


def strike(running: Node, victims: str) -> Callable[[], object]:
    """What kills *victims*; those that have no keeper of their own are started again, as the service manager would."""
    services = running.ours

    def both() -> None:
        services.kill_loader()
        services.kill_snapshotter()

    actions: dict[str, Callable[[], object]] = {
        "loader": services.kill_loader,
        "snapshotter": services.kill_snapshotter,
        "both": both,
        "upgrade": services.restart_loader,
        "containerd": lambda: running.containerd.restart(kill=True),
    }
    return actions[victims]
