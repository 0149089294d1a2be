"""Fifty kills, restarts and upgrades at random moments, with cold images pulled and started in between."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.distribution import Registry
from tests.support.kills import START_EVERY, Readable, large_layers, push_readable, small_layers, survive
from tests.support.node import Node, node
from tests.support.services import REPOSITORY

from apparate.cli.loader import LOADER_STARTING
from apparate.cli.snapshotter import SNAPSHOTTER_READY

STRIKES = 50
STRIKES_ALL = 20  # of everything at once, which takes longest
VERSIONS = ("1.0.0", "1.0.1")
NOT_FETCHED = "layer data could not be fetched"
SMALL_DISK_BYTES = 16 << 20  # less than the large image has, so that its data is dropped and fetched again all the time

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture(scope="module")
def image(registry: Registry) -> Readable:
    return push_readable(registry, "kills/large", large_layers())


@pytest.fixture(scope="module")
def others(registry: Registry) -> list[Readable]:
    """An image for each start, so that each is cold."""
    count = -(-STRIKES // START_EVERY)
    return [push_readable(registry, f"kills/small-{number}", small_layers(number)) for number in range(count)]


class Installed:
    """A place where one of two versions is installed at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "installed"
        self._versions: list[Path] = []
        self._count = 0
        source, without = REPOSITORY / "snapshotter/apparate", shutil.ignore_patterns("*.pyc")
        for version in VERSIONS:
            place = folder / version
            shutil.copytree(source, place / "apparate", ignore=without)
            (place / "apparate/__init__.py").write_text(f'"""Another version."""\n\n__version__ = "{version}"\n')
            self._versions.append(place)
        self.install_next()

    def install_next(self) -> None:
        """Replace the version, in one step."""
        new = self.path.with_name("new")
        new.symlink_to(self._versions[self._count % len(VERSIONS)])
        os.replace(new, self.path)
        self._count += 1


def strike(running: Node, installed: Installed, victims: str) -> Callable[[], object]:
    """What is done to *victims*; those that have no keeper of their own are started again, as the service manager would."""
    services = running.ours

    def both() -> None:
        services.kill_loader()
        services.kill_snapshotter()

    def upgrade() -> None:
        installed.install_next()
        services.restart_loader()
        services.restart_snapshotter()

    def everything() -> None:
        both()
        running.containerd.restart(kill=True)

    actions: dict[str, Callable[[], object]] = {
        "loader": services.kill_loader,
        "snapshotter": services.kill_snapshotter,
        "both": both,
        "upgrade": upgrade,
        "containerd": lambda: running.containerd.restart(kill=True),
        "everything": everything,
    }
    return actions[victims]


@pytest.fixture
def installed(folder: Path) -> Installed:
    return Installed(folder)


@pytest.fixture
def running(folder: Path, installed: Installed, request: pytest.FixtureRequest) -> Iterator[Node]:
    budget = getattr(request, "param", 0)
    sections = {"layers": {"disk_budget_bytes": budget}}
    with node(folder, "2.4.2", sections=sections, package=installed.path) as made:
        if budget:  # said when a run takes so long that the image is to be completed, for which there is no room
            made.ours.allow(NOT_FETCHED)
        yield made
        errors = {record["error"] for record in made.ours.events(NOT_FETCHED)}
        assert errors <= {"the disk has no room for the layer"}


@pytest.mark.parametrize(
    ("running", "victims"),
    [
        (0, "loader"),
        (0, "snapshotter"),
        (0, "both"),
        (0, "upgrade"),
        (0, "containerd"),
        (0, "everything"),
        (SMALL_DISK_BYTES, "loader"),
    ],
    ids=["loader", "snapshotter", "both", "upgrade", "containerd", "everything", "loader-small-disk"],
    indirect=["running"],
)
def test_no_container_notices(
    running: Node,
    installed: Installed,
    folder: Path,
    image: Readable,
    others: list[Readable],
    chance: random.Random,
    victims: str,
) -> None:
    count = STRIKES_ALL if victims == "everything" else STRIKES
    survive(running, folder, image, others, strike(running, installed, victims), count, chance)
    if victims == "upgrade":
        for event in (LOADER_STARTING, SNAPSHOTTER_READY):
            assert {record["version"] for record in running.ours.events(event)} == set(VERSIONS)
