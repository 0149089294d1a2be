from __future__ import annotations

import os
import socket
import time
from contextlib import closing
from pathlib import Path

import pytest

from apparate.errors import NotFound, Unavailable
from apparate.node.restart import Command, Systemd, command_line_of, serves, wait_until


def test_command_is_split_and_run_without_a_shell(tmp_path: Path) -> None:
    Command(f"touch '{tmp_path}/a b;c'").restart()
    assert (tmp_path / "a b;c").exists()


def test_failed_command_says_what_it_printed() -> None:
    with pytest.raises(Unavailable, match="exited 3: no such unit"):
        Command("sh -c 'echo no such unit >&2; exit 3'").restart()


def test_missing_command_is_an_error() -> None:
    with pytest.raises(Unavailable, match="containerd was not restarted"):
        Command("/nonexistent/systemctl restart").restart()


def test_condition_is_asked_until_it_holds() -> None:
    answers = iter([NotFound("not yet"), NotFound("not yet"), None])

    def condition() -> None:
        error = next(answers)
        if error is not None:
            raise error

    wait_until(condition, time.monotonic() + 60.0)
    assert next(answers, "asked three times") == "asked three times"


def test_condition_that_never_holds_ends_with_its_last_error() -> None:
    def condition() -> None:
        raise NotFound("no plugin")

    with pytest.raises(Unavailable, match="containerd does not work: no plugin"):
        wait_until(condition, time.monotonic())


def test_socket_tells_the_command_line_of_its_server(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    assert not serves(path)
    assert command_line_of(path) == []
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(path))
        server.listen()
        assert serves(path)
        line = Path(f"/proc/{os.getpid()}/cmdline").read_bytes().split(b"\0")
        assert command_line_of(path)[0] == line[0].decode()


def test_systemd_is_asked_to_forget_failures_and_to_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n[ "$1" = restart ]\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    Systemd("other.service").restart()
    assert (tmp_path / "calls").read_text() == "reset-failed other.service\nrestart other.service\n"


def test_node_without_systemd_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="systemctl"):
        Systemd().restart()
