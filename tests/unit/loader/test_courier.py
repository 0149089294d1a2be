"""The courier works in a process of its own, and its death is not the loader's."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.processes import wait_until
from tests.support.services import environment

from apparate.errors import Unavailable
from apparate.loader import courier as courier_process
from apparate.loader import kernel
from apparate.loader.courier_client import Courier
from apparate.loader.erofs_mount import Driver

BUFFER_BYTES = 64 * 1024


@pytest.fixture
def device() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Stands for /dev/fuse: what is written to the one comes out of the other."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def courier(
    tmp_path: Path, device: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Courier]:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    made = Courier(device[1].fileno(), tmp_path / "lock", BUFFER_BYTES)
    made.unmount(str(tmp_path), detach=False)  # the first call starts it
    yield made
    made.close()


def test_notifications_reach_the_device_as_they_are(
    courier: Courier, device: tuple[socket.socket, socket.socket]
) -> None:
    assert courier.push([b"head", memoryview(b"body")])
    device[0].settimeout(30)
    assert device[0].recv(100) == b"headbody"


def test_a_full_queue_drops_instead_of_waiting(courier: Courier) -> None:
    # Nobody reads from the device, so courier and queue fill up.
    for _ in range(10_000):
        if not courier.push([bytes(8192)]):
            return
    pytest.fail("the queue never filled")


def test_a_refused_mount_is_an_error_with_its_errno(courier: Courier, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8192))
    with pytest.raises(OSError) as raised:  # root gets another errno than others
        courier.mount(Driver.EROFS_FILE, str(image), str(tmp_path / "mount"), 4)
    assert raised.value.errno in {errno.EINVAL, errno.EPERM, errno.ENOTBLK, errno.ENODEV}


def test_unmounting_what_is_not_mounted_is_no_error(courier: Courier, tmp_path: Path) -> None:
    assert courier.unmount(str(tmp_path), detach=False) is False


def test_a_killed_courier_is_replaced_on_the_next_call(courier: Courier, tmp_path: Path) -> None:
    process = courier._process  # there is no other way to its number
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert courier.push([b"lost"]) is False
    assert courier.unmount(str(tmp_path), detach=False) is False


def test_a_loader_that_ends_with_a_reply_unread_is_no_error(tmp_path: Path) -> None:
    ours, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notifications, push = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fuse = os.open(os.devnull, os.O_WRONLY)
    line = [sys.executable, "-m", "apparate.loader.courier", str(control.fileno()), str(push.fileno()), str(fuse)]
    descriptors = (control.fileno(), push.fileno(), fuse)
    process = subprocess.Popen(
        [*line, str(tmp_path / "lock")], env=environment(), pass_fds=descriptors, stderr=subprocess.PIPE, text=True
    )
    with ours, notifications:
        control.close()
        push.close()
        os.close(fuse)
        ours.send(json.dumps({"op": "unmount", "target": str(tmp_path), "detach": False}).encode())
        assert select.select([ours], [], [], 30)[0]  # the reply is here; it stays unread
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")


def test_a_closed_courier_ends_by_itself_and_takes_no_more(courier: Courier, tmp_path: Path) -> None:
    process = courier._process  # there is no other way to its number
    assert process is not None
    courier.close()
    wait_until(lambda: process.poll() is not None, "the courier has ended")
    assert process.returncode == 0
    assert courier.push([b"late"]) is False
    with pytest.raises(Unavailable, match="stopping"):
        courier.unmount(str(tmp_path), detach=False)


def test_closing_ends_a_call_that_would_wait_for_ever(courier: Courier, tmp_path: Path) -> None:
    with (tmp_path / "lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as the courier of a dead loader does while it waits for an answer
        errors: list[Exception] = []

        def call() -> None:
            try:
                courier.unmount(str(tmp_path), detach=False)
            except Unavailable as error:
                errors.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        courier.close()
        caller.join(30)
        assert len(errors) == 1


def test_a_courier_closed_while_it_starts_takes_no_call(
    courier: Courier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, closers = subprocess.Popen, []

    def close_meanwhile(*args: object, **kwargs: object) -> object:
        closer = threading.Thread(target=courier.close)
        closer.start()
        closers.append(closer)
        wait_until(lambda: courier._closed, "it is being closed")  # the moment that matters
        return start(*args, **kwargs)  # type: ignore[call-overload]  # passed on

    process = courier._process  # there is no other way to its number
    assert process is not None
    process.kill()
    process.wait()
    monkeypatch.setattr(subprocess, "Popen", close_meanwhile)
    with pytest.raises(Unavailable, match="stopping"):
        courier.unmount(str(tmp_path), detach=False)
    closers[0].join(30)
    assert not closers[0].is_alive()


def test_signals_to_the_group_do_not_end_it(courier: Courier, tmp_path: Path) -> None:
    process = courier._process  # there is no other way to its number
    assert process is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    assert courier.unmount(str(tmp_path), detach=False) is False
    assert process.poll() is None


@dataclass
class NotingKernel:
    """Mounts at one target, as a stack, and what was asked for."""

    stack: list[str] = field(default_factory=list)
    asked: list[tuple[str, int]] = field(default_factory=list)

    def mount_at(self, target: str) -> kernel.Mount | None:
        return kernel.Mount(1, "0:50", target, "erofs", self.stack[-1]) if self.stack else None

    def mount(self, source: str, *_: object) -> None:
        self.asked.append((source, 0))
        self.stack.append(source)

    def unmount(self, _target: str, flags: int) -> None:
        self.asked.append(("unmount", flags))
        self.stack.pop()


@pytest.fixture
def mount_table(monkeypatch: pytest.MonkeyPatch) -> NotingKernel:
    made = NotingKernel()
    for name in ("mount_at", "mount", "unmount"):
        monkeypatch.setattr(kernel, name, getattr(made, name))
    return made


def test_a_mount_is_replaced_without_a_moment_with_none(mount_table: NotingKernel, tmp_path: Path) -> None:
    for source in ("old", "new"):
        request: dict[str, object] = {
            "op": "mount",
            "driver": "erofs-file",
            "source": source,
            "target": str(tmp_path),
            "read_ahead_kb": 4,
        }
        assert "bdi" in courier_process._answer(request)
    assert mount_table.asked == [("old", 0), ("new", 0)]
    assert mount_table.stack == ["old", "new"]


def test_only_the_topmost_mount_can_be_busy(mount_table: NotingKernel, tmp_path: Path) -> None:
    mount_table.stack = ["replaced", "used"]
    assert courier_process._answer({"op": "unmount", "target": str(tmp_path), "detach": False}) == {"gone": True}
    flags = kernel.UMOUNT_NOFOLLOW
    assert mount_table.asked == [("unmount", flags), ("unmount", flags | kernel.MNT_DETACH)]
