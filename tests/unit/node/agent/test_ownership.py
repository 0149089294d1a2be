"""Whose node it is: as long as a release gives signs of life, and not longer."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.support.processes import wait_until

from apparate.errors import FailedPrecondition
from apparate.node.agent import ownership
from apparate.node.agent.ownership import CHART_NAME, SILENT_S, Ownership, Release

MINE = Release("apparate", "apparate")
OTHER = Release("elsewhere", "apparate")


def _date(folder: Path, from_now_s: float) -> None:
    then = time.time() + from_now_s
    os.utime(folder / CHART_NAME, (then, then))


def test_release_at_work_refuses_another_one_and_not_itself(tmp_path: Path) -> None:
    Ownership(MINE, tmp_path).claim()
    Ownership(MINE, tmp_path).claim()
    with pytest.raises(FailedPrecondition, match="DaemonSet apparate in namespace apparate"):
        Ownership(OTHER, tmp_path).claim()


@pytest.mark.parametrize("from_now_s", [-SILENT_S - 60, SILENT_S + 60, 1e9])
def test_sign_of_life_of_another_time_is_none(tmp_path: Path, from_now_s: float) -> None:
    Ownership(MINE, tmp_path).claim()
    _date(tmp_path, from_now_s)
    assert Ownership(MINE, tmp_path).active() is None
    Ownership(OTHER, tmp_path).claim()
    assert Ownership(MINE, tmp_path).active() == OTHER


def test_release_that_works_for_long_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "ALIVE_S", 0.01)
    own = Ownership(MINE, tmp_path)
    with own.at_work():
        _date(tmp_path, -SILENT_S - 60)
        wait_until(lambda: own.active() == MINE, "the next sign of life", 10)
    assert own.active() == MINE


def test_release_that_failed_is_not_at_work_before_its_next_attempt(tmp_path: Path) -> None:
    own = Ownership(MINE, tmp_path)
    with pytest.raises(ZeroDivisionError), own.at_work():
        raise ZeroDivisionError
    assert own.active() is None
    with own.at_work():
        assert own.active() == MINE


def test_sign_of_life_that_cannot_be_given_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    own = Ownership(MINE, tmp_path)
    own.claim()
    monkeypatch.setattr(os, "utime", refuse)
    own.sign_of_life()
    assert "Read-only file system" in capsys.readouterr().err


def test_release_that_has_left_gives_no_sign_of_life(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Ownership(MINE, tmp_path)
    own.claim()
    own.leave()
    own.sign_of_life()
    assert not (tmp_path / CHART_NAME).exists()
    assert capsys.readouterr().err == ""
