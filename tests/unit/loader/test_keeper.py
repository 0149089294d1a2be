"""The keeper starts what dies, hands over what it keeps, and gives up only where there is no point."""

from __future__ import annotations

import os
import signal
import socket
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.processes import Process, children_of, cpu_used_s, wait_until
from tests.support.services import environment

from apparate.loader import keeper

# Notes how it was started; asks once to have a pipe kept; then does what the file "orders" in its directory says.
CHILD = textwrap.dedent("""
    import os, pathlib, signal, sys
    from apparate.telemetry import systemd
    folder = pathlib.Path(sys.argv[1])
    kept = systemd.inherited_fds()
    orders = (folder / "orders").read_text() if (folder / "orders").exists() else ""
    with (folder / "starts").open("a") as file:
        file.write(f"{os.getpid()} {','.join(kept)}\\n")
    if "refuse" in orders:
        sys.exit(2)
    if "pipe" not in kept:
        reading, writing = os.pipe()
        os.write(writing, b"kept")
        systemd.store_fd("pipe", reading)
        systemd.store_fd("other", writing)
        systemd.remove_fd("other")
        systemd.notify("BARRIER=1", fds=[writing])
    else:
        (folder / "read").write_bytes(os.read(kept["pipe"][0], 2))
    systemd.notify("READY=1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if "drain" in orders:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    (folder / "ready").touch()
    if "drain" in orders:
        signal.sigwait({signal.SIGTERM})
        (folder / "draining").touch()
        (folder / "drained").read_bytes()  # a pipe: waits until the test writes
        sys.exit(0)
    signal.pause()
""")


class Kept:
    """A keeper with the child above."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "child.py").write_text(CHILD)
        os.mkfifo(folder / "drained")
        command: list[str | Path] = [
            sys.executable,
            "-m",
            keeper.__name__,
            folder / "sock",
            sys.executable,
            folder / "child.py",
            folder,
        ]
        self.package = folder / "package"  # where the program lies that is installed now
        self.package.symlink_to(environment()["PYTHONPATH"])
        self.process = Process(
            "keeper", command, folder / "log", env={**environment(), "PYTHONPATH": str(self.package)}
        )

    def starts(self) -> list[list[str]]:
        path = self.folder / "starts"
        return [line.split(" ") for line in path.read_text().splitlines()] if path.exists() else []

    def start(self) -> None:
        self.process.start((self.folder / "ready").exists)

    def wait_for_starts(self, count: int) -> list[list[str]]:
        wait_until(lambda: len(self.starts()) >= count and (self.folder / "ready").exists(), f"{count} starts")
        return self.starts()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path)
    try:
        yield made
    finally:
        made.process.stop()


def test_a_dead_child_is_followed_at_once_by_one_with_its_descriptors(kept: Kept) -> None:
    kept.start()
    (kept.folder / "ready").unlink()
    os.kill(int(kept.starts()[0][0]), signal.SIGKILL)
    starts = kept.wait_for_starts(2)
    assert [names for _, names in starts] == ["", "pipe"]
    assert (kept.folder / "read").read_bytes() == b"ke"


def test_a_planned_restart_executes_the_keeper_anew_with_its_descriptors(kept: Kept) -> None:
    kept.start()
    pid = kept.process.pid
    for count in (2, 3):
        (kept.folder / "ready").unlink()
        kept.process.signal(signal.SIGHUP)
        assert kept.wait_for_starts(count)[-1][1] == "pipe"
    assert kept.process.running
    assert children_of(pid) == [int(kept.starts()[-1][0])]


def test_a_child_that_refuses_to_start_is_not_started_again(kept: Kept) -> None:
    (kept.folder / "orders").write_text("refuse")
    with pytest.raises(AssertionError, match="ended with 2"):
        kept.start()
    assert len(kept.starts()) == 1


def test_a_child_that_once_served_is_started_again_even_if_it_refuses_for_a_while(kept: Kept) -> None:
    kept.start()
    (kept.folder / "orders").write_text("refuse")
    os.kill(int(kept.starts()[0][0]), signal.SIGKILL)
    wait_until(lambda: len(kept.starts()) >= 3, "it is tried again")
    (kept.folder / "ready").unlink()
    (kept.folder / "orders").unlink()
    wait_until((kept.folder / "ready").exists, "it serves again")
    assert kept.starts()[-1][1] == "pipe"


def test_stopping_stops_the_child_and_removes_the_socket(kept: Kept) -> None:
    kept.start()
    child = int(kept.starts()[0][0])
    assert kept.process.stop() == 0
    assert not (kept.folder / "sock").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.parametrize("asked", [signal.SIGHUP, signal.SIGTERM])
def test_the_keeper_is_idle_while_its_child_drains(kept: Kept, asked: signal.Signals) -> None:
    (kept.folder / "orders").write_text("drain")
    kept.start()
    kept.process.signal(asked)
    wait_until((kept.folder / "draining").exists, "the child drains")
    used_s = cpu_used_s([kept.process.pid], during_s=0.5)
    (kept.folder / "drained").write_bytes(b"")
    assert used_s <= 0.05


def test_a_stop_during_a_planned_restart_is_a_stop(kept: Kept) -> None:
    (kept.folder / "orders").write_text("drain")
    kept.start()
    kept.process.signal(signal.SIGHUP)
    wait_until((kept.folder / "draining").exists, "the child drains")
    kept.process.signal(signal.SIGTERM)
    (kept.folder / "drained").write_bytes(b"")
    assert kept.process.wait() == 0
    assert len(kept.starts()) == 1


def test_a_storm_of_planned_restarts_leaves_the_keeper_and_its_descriptors(kept: Kept) -> None:
    kept.start()
    for _ in range(3):
        before = len(kept.starts())
        for _ in range(50):
            kept.process.signal(signal.SIGHUP)
        kept.wait_for_starts(before + 1)
    assert kept.process.running
    assert {names for _, names in kept.starts()[1:]} == {"pipe"}


def test_a_child_that_has_just_been_started_can_be_stopped(kept: Kept) -> None:
    """SIGTERM may meet it between fork and exec; a stop that waits for it would wait in vain."""
    kept.start()
    for _ in range(6):
        child = children_of(kept.process.pid)[0]
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: [pid for pid in children_of(kept.process.pid) if pid != child], "another child")  # noqa: B023
        kept.process.signal(signal.SIGHUP)
    kept.process.signal(signal.SIGTERM)
    assert kept.process.wait() == 0


def test_a_version_that_cannot_be_executed_is_not(kept: Kept) -> None:
    kept.start()
    kept.package.unlink()
    kept.package.symlink_to(kept.folder)
    kept.process.signal(signal.SIGHUP)
    wait_until(lambda: "no planned restart" in kept.process.log_tail(), "it says so")
    assert "No module named" in kept.process.log_tail()
    assert children_of(kept.process.pid) == [int(kept.starts()[0][0])]


def test_a_version_that_does_not_start_is_tried_again_because_it_would_take_the_session_with_it(kept: Kept) -> None:
    kept.start()
    (kept.folder / "orders").write_text("refuse")
    kept.process.signal(signal.SIGHUP)
    wait_until(lambda: len(kept.starts()) >= 3, "it is tried again")
    (kept.folder / "ready").unlink()
    (kept.folder / "orders").unlink()
    wait_until((kept.folder / "ready").exists, "it serves again")
    assert kept.starts()[-1][1] == "pipe"


def test_a_program_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, "-m", keeper.__name__, tmp_path / "sock", tmp_path / "nothing"]
    process = Process("keeper", command, tmp_path / "log", env=environment())
    with pytest.raises(AssertionError, match="ended with 127"):
        process.start(lambda: False)
    assert process.log_tail().strip() == f"{tmp_path / 'nothing'}: No such file or directory"


def test_second_keeper_leaves_the_socket_to_the_first(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
        first.bind(str(path))
        assert keeper.run(["true"], path) == keeper.EXIT_IN_USE
        assert path.exists()
    assert str(tmp_path) in capfd.readouterr().err
