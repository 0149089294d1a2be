"""What a loader does whose sockets cannot be had, while containers read through it."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.leftovers import mounts_below
from tests.support.processes import children_of, wait_until
from tests.support.services import Services, answers

from apparate.loader import kernel
from apparate.loader.process import LOADER_READY
from apparate.loader.session import SESSION_NEW, SESSION_TAKEN_OVER
from apparate.telemetry.client import get_page
from apparate.telemetry.parts import PART_FAILED, PART_OPENED

pytestmark = [pytest.mark.root, pytest.mark.fuse]


def unmount_all(folder: Path) -> None:
    for point in reversed(mounts_below(folder)):
        kernel.unmount(point, kernel.MNT_DETACH)


def takes(sock: socket.socket, address: str) -> bool:
    """Whether *sock* could be bound to *address*."""
    host, _, port = address.partition(":")
    try:
        sock.bind((host, int(port)))
    except OSError:
        return False
    sock.listen()
    return True


def test_a_loader_that_has_taken_over_serves_on_without_its_sockets(folder: Path) -> None:
    with ExitStack() as stack:
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = f"127.0.0.1:{port.getsockname()[1]}"
        port.close()
        services = Services(folder, folder / "root", sections={"loader": {"telemetry_address": address}})
        services.allow(PART_FAILED)
        services.start_loader()
        stack.callback(lambda: print(services.loader.log_tail()))  # pytest shows it with a failure
        stack.callback(unmount_all, folder)
        stack.callback(services.loader.stop)
        control = services.run_dir / "loader.sock"
        wait_until(lambda: services.events(LOADER_READY), "it serves")
        with socket.socket() as taken:
            victim = services.loader_worker()
            services.loader.signal(signal.SIGSTOP)  # so that everything is in the way before the successor starts
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: takes(taken, address), "the port of the dead loader is free")
            control.unlink()
            control.mkdir()
            services.loader.signal(signal.SIGCONT)
            wait_until(lambda: len(services.events(LOADER_READY)) == 2, "the successor serves")
            wait_until(lambda: len(services.events(PART_FAILED)) > 3, "it tries again")
            (worker,) = children_of(services.loader.pid)
            control.rmdir()
        wait_until(lambda: answers(control), "the control socket is open")
        wait_until(
            lambda: {record["part"] for record in services.events(PART_OPENED)} == {"control", "telemetry_address"},
            "all is open",
        )
        assert get_page(services.run_dir / "loader.metrics.sock", "/readyz") == b"{}\n"
        assert children_of(services.loader.pid) == [worker]
        assert (len(services.events(SESSION_NEW)), len(services.events(SESSION_TAKEN_OVER))) == (1, 1)
