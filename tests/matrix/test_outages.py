"""What containers notice of a registry that is gone or errs, and of a disk that is full: a pause at most, never a wrong byte."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from tests.support import faulty
from tests.support.cri import Container
from tests.support.distribution import Registry
from tests.support.faulty import Answer, Front
from tests.support.images import pattern
from tests.support.kills import READ_ONCE, Readable, assert_read, large_layers, push_readable
from tests.support.node import Node, node
from tests.support.processes import run, wait_until
from tests.support.services import NAME
from tests.support.trees import drop_caches

from apparate.loader.filesystem import REQUEST_FAILED
from apparate.registry.breakers import EVENT_OPENED

OUTAGE_S = 20.0
DEADLINE_S = 3.0
DISK_BYTES = 64 << 20
NAME_OF_IMAGE = "outages/app"
# Reads one layer, then waits to be told to read the others.
READ_IN_TWO = f"echo up; cat /data/small/*/* >/dev/null; echo half; while [ ! -e /go/on ]; do sleep 0.1; done; {READ_ONCE}; sleep 100000"
READ_ONE = "sha256sum </data/large-7; echo status $?"
LARGE = f"{sha256(pattern(3_000_000, seed=7)).hexdigest()}  -\nstatus 0\n"

# Said of data that were fetched ahead, and of a request that failed within its deadline.
EXPECTED = (EVENT_OPENED, "layer data could not be fetched")

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture
def away(folder: Path) -> Iterator[Registry]:
    """A registry that a test may stop and start."""
    with Registry(folder / "registry") as server:
        yield server


@pytest.fixture
def image(away: Registry) -> Readable:
    return push_readable(away, NAME_OF_IMAGE, large_layers())


class Reader:
    """A container that has read a part of *image*, and goes on when it is told to."""

    def __init__(self, running: Node, image: Readable, folder: Path) -> None:
        self._image = image
        self._place = folder / "go"
        self._place.mkdir()
        cri = running.containerd.cri
        cri.pull(image.reference)
        pod = cri.run_pod()
        self.container: Container = cri.start(
            pod, image.reference, ["sh", "-c", READ_IN_TWO], mounts={"/go": self._place}
        )
        self.container.wait_output("half")
        drop_caches()

    def go_on(self) -> None:
        (self._place / "on").touch()

    def wait_read(self) -> None:
        """Wait until everything is read, without an error and with the right content."""
        self.container.wait_output("done")
        assert_read(self.container, self._image, besides={"half"})


def test_a_registry_that_is_gone_for_20_seconds_is_a_pause(folder: Path, away: Registry, image: Readable) -> None:
    with node(folder, "2.4.2") as running:
        running.ours.allow(*EXPECTED)
        reader = Reader(running, image, folder)
        away.stop()
        reader.go_on()
        threading.Event().wait(OUTAGE_S)  # the outage is the test's input
        assert "round" not in reader.container.output(), "what was to be read later was here before"
        away.start()
        reader.wait_read()
        running.containerd.remove_all()
        running.assert_empty()


def test_a_registry_that_is_gone_for_good_is_an_error_in_time_and_forgotten_when_it_returns(
    folder: Path, away: Registry, image: Readable
) -> None:
    with node(folder, "2.4.2", sections={"layers": {"read_deadline_s": DEADLINE_S}}) as running:
        reader = Reader(running, image, folder)
        cached = reader.container.exec(["sh", "-c", "cat /data/small/*/* | sha256sum"]).stdout
        away.stop()
        running.ours.allow(*EXPECTED, REQUEST_FAILED)
        failed = reader.container.exec(["sh", "-c", READ_ONE], timeout_s=int(DEADLINE_S * 10))
        assert "Input/output error" in failed.stderr
        assert "status 1" in failed.stdout
        assert reader.container.exec(["sh", "-c", "cat /data/small/*/* | sha256sum"]).stdout == cached
        away.start()
        assert reader.container.exec(["sh", "-c", READ_ONE]).stdout == LARGE
        reader.go_on()
        reader.wait_read()
        running.containerd.remove_all()
        running.assert_empty()


def test_answers_that_are_wrong_two_times_of_three_are_not_noticed(
    folder: Path, away: Registry, image: Readable
) -> None:
    sections: dict[str, dict[str, object]] = {
        "registry": {"idle_timeout_s": 1.0},
        "layers": {"fetch_window_bytes": 1 << 16, "ahead_bytes": 1 << 16},
    }
    with Front(away.host) as front, node(folder, "2.4.2", sections=sections, plain_http=(front.host,)) as running:
        running.ours.allow(*EXPECTED)
        through = Readable(f"{front.host}/{image.reference.partition('/')[2]}", image.content)
        reader = Reader(running, through, folder)
        faults: Sequence[faulty.Action] = (
            faulty.flip_bit(1234), faulty.truncate(5000), faulty.cut(5000), faulty.shift_range(1),
            faulty.lie_in_content_range("bytes 0-0/1"), faulty.html(), faulty.html(502), faulty.reset(),
            faulty.slow(front, 100, 0.3), faulty.stall(front, 5000), faulty.trickle_headers(front, 0.3),
            faulty.ignore_range(),  # the last, for who gets the whole asks no more
        )  # fmt: skip
        left, turns = iter(faults), itertools.count()

        def spoil(seen: faulty.Seen, forward: faulty.Forward) -> Answer:
            fault = next(left, None) if next(turns) % 3 else None
            return fault(seen, forward) if fault else forward()

        front.on("GET", "/blobs/", spoil)
        reader.go_on()
        reader.wait_read()
        assert next(left, None) is None, "not every fault had its turn"
        front.clear()
        running.containerd.remove_all()
        running.assert_empty()


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A small file system where the node keeps snapshots and layers."""
    place = folder / "node" / "root" / f"io.containerd.snapshotter.v1.{NAME}"
    place.mkdir(parents=True)
    backing = folder / "disk"
    with backing.open("wb") as file:
        file.truncate(DISK_BYTES)
    run(["mkfs.ext4", "-q", backing])
    run(["mount", "-o", "loop", backing, place])
    yield place
    run(["umount", place])


def test_a_disk_that_is_full_is_not_noticed(folder: Path, small_disk: Path, image: Readable) -> None:
    with node(folder, "2.4.2", sections={"layers": {"disk_reserve_bytes": 0}}) as running:
        reader = Reader(running, image, folder)
        filler = small_disk / "filler"
        fill(filler)
        running.ours.allow(*EXPECTED, "upkeep of layers failed")
        reader.go_on()
        reader.wait_read()
        assert reader.container.exec(["sh", "-c", READ_ONE]).stdout == LARGE
        filler.unlink()
        assert reader.container.exec(["sh", "-c", READ_ONE]).stdout == LARGE
        running.containerd.remove_all()
        wait_until(lambda: running.snapshot_rows() == running.layer_rows() == 0, "nothing is left of the image")


def fill(path: Path) -> None:
    """Leave no free block."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 512):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
