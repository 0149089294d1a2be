"""The loader's session, mounts and keeper before the real kernel, over one image instead of a layer store."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.support import erofs
from tests.support.leftovers import is_mounted_elsewhere, mounts_below
from tests.support.processes import Process, children_of, run, wait_until
from tests.support.services import REPOSITORY
from tests.support.stand_in_loader import NO_RESEND

from apparate.format.erofs import writer
from apparate.format.toc import Entry, EntryType
from apparate.format.tree import Tree, build_tree
from apparate.loader import keeper, kernel
from apparate.loader.handover import SESSION_HANDED_OVER
from apparate.loader.process import LOADER_READY
from apparate.loader.session import REQUESTS_LOST, SESSION_NEW, SESSION_TAKEN_OVER
from apparate.loader.settings import FUSE_READ_AHEAD_KB, LAZY_READ_AHEAD_KB

pytestmark = [pytest.mark.root, pytest.mark.fuse]

DRIVERS = ("erofs-file", "erofs-loop", "tree")
KILLS = 6
LATENCY_MS = 4.0
SMALL_FILES, LARGE_FILES, LARGE_BYTES = 400, 6, 5_000_000
READ_TIMEOUT_S = 240.0


def large() -> erofs.Sample:
    chance = random.Random(7)
    contents = {b"small/%04d" % number: chance.randbytes(chance.randrange(1, 20_000)) for number in range(SMALL_FILES)}
    contents |= {b"large/%d" % number: chance.randbytes(LARGE_BYTES + number) for number in range(LARGE_FILES)}
    return erofs.sample([Entry(name, EntryType.REG, 0o644) for name in contents], contents)


class StandIn:
    """A keeper with a stand-in loader below it, over one image."""

    def __init__(self, folder: Path, made: erofs.Sample, driver: str, latency_ms: float = 0.0) -> None:
        self.made = made
        self.tree: Tree = build_tree(made.toc)
        self.run_dir = folder / "run"
        image = folder / "image"
        erofs.write_image(image, made, self.tree, writer.build(self.tree))
        loader: list[object] = [
            sys.executable,
            "-m",
            "tests.support.stand_in_loader",
            self.run_dir,
            driver,
            image,
            latency_ms,
        ]
        self.loader_command = [str(word) for word in loader]
        command: list[str | Path] = [
            sys.executable,
            "-m",
            keeper.__name__,
            self.run_dir / "keeper.sock",
            *self.loader_command,
        ]
        paths = os.pathsep.join((str(REPOSITORY / "snapshotter"), str(REPOSITORY)))
        self.environment = {**os.environ, "PYTHONPATH": paths}
        self.keeper = Process("keeper", command, folder / "log", env=self.environment)

    def start(self) -> None:
        self.keeper.start(lambda: self.count(LOADER_READY) > 0)

    @property
    def point(self) -> Path:
        return Path((self.run_dir / "mounted").read_text())

    @property
    def loader(self) -> int:
        return wait_until(lambda: children_of(self.keeper.pid), "the keeper has a loader")[-1]

    def count(self, event: str) -> int:
        records = [json.loads(line) for line in self.keeper.log.read_text().splitlines() if line.startswith("{")]
        return sum(record.get("msg") == event for record in records)

    def digest_of_everything(self) -> str:
        """Read every file, by other processes, so that the one under test can die meanwhile."""
        program = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum"
        return subprocess.run(
            ["sh", "-c", program], cwd=self.point, check=True, capture_output=True, text=True, timeout=READ_TIMEOUT_S
        ).stdout

    def expected(self) -> str:
        names = sorted(self.made.contents)
        lines = (f"{hashlib.sha256(self.made.contents[name]).hexdigest()}  ./{name.decode()}\n" for name in names)
        return "".join(lines)

    def __enter__(self) -> StandIn:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.keeper.stop()
        for point in reversed(mounts_below(self.run_dir)):
            wait_until(partial(self._unmounted, point), f"{point} is unmounted")

    def _unmounted(self, point: str) -> bool:
        """Unmount; False if the kernel is still letting go of a file of the mount above it.

        What a stranger's mount namespace keeps is detached: that is nothing of ours.
        """
        try:
            kernel.unmount(point)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if not is_mounted_elsewhere(self.run_dir):
                return False
            kernel.unmount(point, kernel.MNT_DETACH)
        return True


@pytest.fixture(scope="module")
def torture() -> erofs.Sample:
    return erofs.torture()


@pytest.fixture(scope="module")
def bulk() -> erofs.Sample:
    return large()


@pytest.fixture
def disturbed(folder: Path, bulk: erofs.Sample, request: pytest.FixtureRequest) -> Iterator[StandIn]:
    with StandIn(folder, bulk, request.param, LATENCY_MS) as stand_in:
        yield stand_in


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_mounted_layer_is_the_tree_that_was_asked_for(folder: Path, torture: erofs.Sample, driver: str) -> None:
    with StandIn(folder, torture, driver) as stand_in:
        assert erofs.problems(stand_in.point, torture, stand_in.tree) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_overlayfs_reads_through_the_mounted_layer(folder: Path, torture: erofs.Sample, driver: str) -> None:
    with StandIn(folder, torture, driver) as stand_in:
        lower, merged = folder / "lower", folder / "merged"
        for name in ("gone", "opaque"):
            (lower / name).mkdir(parents=True)
            (lower / name / "file").write_text("lower\n")
        merged.mkdir()
        run(["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={stand_in.point}:{lower}", merged])
        try:
            assert not (merged / "gone" / "file").exists()
            assert [path.name for path in (merged / "opaque").iterdir()] == ["new"]
        finally:
            kernel.unmount(str(merged))


@pytest.mark.parametrize("disturbed", DRIVERS, indirect=True)
def test_no_reader_notices_that_the_loader_is_killed(disturbed: StandIn) -> None:
    killed = _while_reading(disturbed, _kill)
    assert killed == KILLS
    assert disturbed.count(SESSION_NEW) == 1
    assert disturbed.count(SESSION_TAKEN_OVER) == KILLS


@pytest.mark.parametrize("disturbed", ["erofs-file", "tree"], indirect=True)
def test_no_reader_notices_a_planned_restart(disturbed: StandIn) -> None:
    keeper_pid = disturbed.keeper.pid
    _while_reading(disturbed, _restart)
    assert disturbed.keeper.pid == keeper_pid
    assert disturbed.count(SESSION_NEW) == 1
    assert disturbed.count(SESSION_TAKEN_OVER) >= KILLS


def _while_reading(stand_in: StandIn, disturb: object) -> int:
    """Read everything once while *disturb* is called again and again; return how often it was."""
    assert callable(disturb)
    answer: list[str] = []
    reader = threading.Thread(target=lambda: answer.append(stand_in.digest_of_everything()))
    reader.start()
    done = 0
    while done < KILLS:
        disturb(stand_in)
        done += 1
    reader.join(READ_TIMEOUT_S)
    assert answer == [stand_in.expected()]
    return done


def _kill(stand_in: StandIn) -> None:
    """Kill the loader soon after it has begun to serve."""
    before = stand_in.count(SESSION_TAKEN_OVER)
    os.kill(stand_in.loader, signal.SIGKILL)
    wait_until(lambda: stand_in.count(SESSION_TAKEN_OVER) > before, "the session is taken over")


def _restart(stand_in: StandIn) -> None:
    before = stand_in.count(SESSION_TAKEN_OVER)
    stand_in.keeper.signal(signal.SIGHUP)
    wait_until(lambda: stand_in.count(SESSION_TAKEN_OVER) > before, "the session is taken over")


def test_a_kernel_that_cannot_repeat_requests_sees_them_all_answered_at_a_planned_stop(
    folder: Path, bulk: erofs.Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NO_RESEND, "1")
    with StandIn(folder, bulk, "erofs-file", LATENCY_MS) as stand_in:
        _while_reading(stand_in, _restart)
        assert json.loads((stand_in.run_dir / "session.json").read_text())["resend"] is False
        assert stand_in.count(SESSION_TAKEN_OVER) >= KILLS
        assert stand_in.count(REQUESTS_LOST) == 0


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_read_that_failed_succeeds_when_the_registry_is_back(folder: Path, bulk: erofs.Sample, driver: str) -> None:
    name = list(bulk.contents)[-1]  # far from what mounting has read
    with StandIn(folder, bulk, driver) as stand_in:
        outage = folder / "outage"
        outage.touch()
        with pytest.raises(OSError) as raised:
            (stand_in.point / name.decode()).read_bytes()
        assert raised.value.errno == errno.EIO
        outage.unlink()
        assert (stand_in.point / name.decode()).read_bytes() == bulk.contents[name]


@pytest.mark.parametrize("driver", ["erofs-file", "erofs-loop"])
def test_read_ahead_of_a_lazy_layer_is_small(folder: Path, torture: erofs.Sample, driver: str) -> None:
    with StandIn(folder, torture, driver) as stand_in:
        record = json.loads(stand_in.point.with_suffix(".json").read_text())
        fuse = kernel.mount_at(str(stand_in.run_dir / "fs"))
        assert fuse is not None
        assert _read_ahead_kb(record["bdi"]) == LAZY_READ_AHEAD_KB
        assert _read_ahead_kb(fuse.device) == FUSE_READ_AHEAD_KB


def test_walking_over_the_session_lists_layers_but_not_what_is_in_them(folder: Path, torture: erofs.Sample) -> None:
    with StandIn(folder, torture, "erofs-file") as stand_in:
        session = stand_in.run_dir / "fs"
        assert sorted(path.name for path in session.iterdir()) == sorted([".probe", "trees", stand_in.point.name])
        assert (session / stand_in.point.name).stat().st_size == (folder / "image").stat().st_size
        assert list((session / "trees").iterdir()) == []
        assert erofs.problems(session / "trees" / stand_in.point.name, torture, stand_in.tree) == []


def _read_ahead_kb(bdi: str) -> int:
    return int(Path(f"/sys/class/bdi/{bdi}/read_ahead_kb").read_text())


@pytest.mark.parametrize("disturbed", ["erofs-file"], indirect=True)
def test_a_new_keeper_takes_the_session_from_the_loader_that_the_old_one_left(disturbed: StandIn) -> None:
    _while_reading(disturbed, _replace_keeper)
    assert disturbed.count(SESSION_NEW) == 1
    assert disturbed.count(SESSION_HANDED_OVER) == disturbed.count(SESSION_TAKEN_OVER) == KILLS


def _replace_keeper(stand_in: StandIn) -> None:
    before = stand_in.count(LOADER_READY)
    stand_in.keeper.kill()
    stand_in.keeper.start(lambda: stand_in.count(LOADER_READY) > before)


@pytest.mark.parametrize("end", ["killed", "restarted", "orphaned"])
@pytest.mark.parametrize("disturbed", ["erofs-file"], indirect=True)
def test_a_loader_with_another_catalogue_is_refused_and_readers_wait_for_the_right_one(
    disturbed: StandIn, end: str
) -> None:
    answer: list[str] = []
    reader = threading.Thread(target=lambda: answer.append(disturbed.digest_of_everything()))
    reader.start()
    catalogue = disturbed.run_dir.parent / "catalogue"
    catalogue.write_text("another")
    if end == "killed":
        os.kill(disturbed.loader, signal.SIGKILL)
    elif end == "restarted":
        disturbed.keeper.signal(signal.SIGHUP)
    else:
        disturbed.keeper.kill()
        disturbed.keeper.start()
    wait_until(
        lambda: disturbed.keeper.log_tail().count("they wait. To give them up") > 1, "it is refused and tried again"
    )
    catalogue.unlink()
    reader.join(READ_TIMEOUT_S)
    assert answer == [disturbed.expected()]
    assert disturbed.count(SESSION_NEW) == 1


def test_a_second_loader_is_refused_with_one_line(folder: Path, torture: erofs.Sample) -> None:
    with StandIn(folder, torture, "erofs-file") as stand_in:
        second = subprocess.run(stand_in.loader_command, env=stand_in.environment, capture_output=True, text=True)
        assert second.returncode != 0
        assert f"another loader runs on {stand_in.run_dir}" in second.stderr
        assert erofs.problems(stand_in.point, torture, stand_in.tree) == []


def test_a_loader_killed_while_it_starts_is_followed_by_one_that_serves(folder: Path, torture: erofs.Sample) -> None:
    with StandIn(folder, torture, "erofs-file") as stand_in:
        for pause_s in (0.0, 0.05, 0.1, 0.2, 0.4):
            os.kill(stand_in.loader, signal.SIGKILL)
            time.sleep(pause_s)  # the moment of the next kill is the test's input
        assert erofs.problems(stand_in.point, torture, stand_in.tree) == []


def test_a_loader_told_to_stop_while_it_starts_does_so(folder: Path, torture: erofs.Sample) -> None:
    with StandIn(folder, torture, "erofs-file") as stand_in:
        _kill(stand_in)
        stand_in.keeper.signal(signal.SIGHUP)
        ready = stand_in.count(LOADER_READY)
        wait_until(lambda: stand_in.count(LOADER_READY) > ready, "the next loader serves", keeper.STOP_TIMEOUT_S / 2)
        assert erofs.problems(stand_in.point, torture, stand_in.tree) == []


def test_a_mount_that_was_taken_away_is_made_again(folder: Path, torture: erofs.Sample) -> None:
    with StandIn(folder, torture, "erofs-file") as stand_in:
        (stand_in.run_dir / "mounted").unlink()
        for point in reversed(mounts_below(stand_in.run_dir)):
            kernel.unmount(point, kernel.MNT_DETACH)
        wait_until(lambda: (stand_in.run_dir / "mounted").exists(), "the layer is mounted again")
        assert erofs.problems(stand_in.point, torture, stand_in.tree) == []
