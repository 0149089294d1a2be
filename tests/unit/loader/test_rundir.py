"""One loader for each run directory, and how an orphan lets go of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from apparate.errors import FailedPrecondition
from apparate.loader import handover
from apparate.loader.handover import HandoverServer
from apparate.loader.rundir import take_run_dir
from apparate.loader.session import FD_NAME
from apparate.loader.settings import LoaderSettings


def test_a_second_loader_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    settings = LoaderSettings(run_dir=tmp_path)
    first = take_run_dir(settings, {})
    with pytest.raises(FailedPrecondition, match="another loader runs on"):
        take_run_dir(settings, {})
    first.close()
    take_run_dir(settings, {}).close()


def test_inherited_descriptors_come_along(tmp_path: Path) -> None:
    held = take_run_dir(LoaderSettings(run_dir=tmp_path), {"x": [7]})
    assert held.fds == {"x": [7]}
    held.close()


def test_a_loader_with_its_keeper_gives_nothing(tmp_path: Path) -> None:
    server = HandoverServer(tmp_path, 0, lambda: pytest.fail("it was given"))
    assert handover.request_session(tmp_path) is None
    server.close()


def test_an_orphan_gives_its_session_and_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = LoaderSettings(run_dir=tmp_path)
    held = take_run_dir(settings, {})
    reading, writing = os.pipe()
    os.write(writing, b"session")
    parents = iter((1, *[99] * 9))
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    server = HandoverServer(tmp_path, reading, lambda: threading.Thread(target=held.close).start())
    successor = take_run_dir(settings, {})
    (given,) = successor.fds[FD_NAME]
    assert not os.get_inheritable(given)
    assert os.read(given, 100) == b"session"
    server.close()
    successor.close()
    for fd in (reading, writing, given):
        os.close(fd)


def test_a_directory_without_a_loader_gives_nothing(tmp_path: Path) -> None:
    assert handover.request_session(tmp_path) is None
