"""Credentials of a cluster that the node has left go when nothing needs them, and not before."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.processes import wait_until

from apparate.loader.farewell import Farewell
from apparate.registry.keychain import LEAVING_NAME


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("chart-team_pull.json", "mine.json", LEAVING_NAME):
        (tmp_path / name).write_text("{}")
    return tmp_path


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_they_go_with_the_note_when_no_layer_needs_them(directory: Path) -> None:
    Farewell(directory, lambda: False).look()
    assert _names(directory) == {"mine.json"}


def test_they_stay_while_a_layer_in_use_is_not_complete(directory: Path) -> None:
    before = _names(directory)
    Farewell(directory, lambda: True).look()
    assert _names(directory) == before


def test_without_a_note_nothing_is_touched(directory: Path) -> None:
    (directory / LEAVING_NAME).unlink()
    Farewell(directory, lambda: False).look()
    assert _names(directory) == {"chart-team_pull.json", "mine.json"}


def test_thread_looks_by_itself_and_not_before_containers_are_back(directory: Path) -> None:
    patient = Farewell(directory, lambda: False)
    patient.start()
    quick = Farewell(directory, lambda: False, settle_s=0.0, look_s=0.01)
    assert "chart-team_pull.json" in _names(directory)
    quick.start()
    wait_until(lambda: _names(directory) == {"mine.json"}, "the removal", 10)
    quick.stop()
    patient.stop()


def test_directory_that_is_not_there_is_no_trouble(tmp_path: Path) -> None:
    Farewell(tmp_path / "none", lambda: False).look()
