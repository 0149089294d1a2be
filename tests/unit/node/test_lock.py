from __future__ import annotations

import threading
from pathlib import Path

import pytest

from apparate.errors import Unavailable
from apparate.node.lock import exclusive


def test_second_run_waits_and_gives_up_at_its_deadline(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "state"),
        pytest.raises(Unavailable, match="another run"),
        exclusive(tmp_path / "state", 0.0),
    ):
        pass


def test_second_run_goes_on_when_the_first_is_done(tmp_path: Path) -> None:
    directory, order = tmp_path / "state", []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with exclusive(directory, 60.0):
            order.append("second")

    thread = threading.Thread(target=second)
    with exclusive(directory):
        thread.start()
        waiting.wait()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_empty_directory_goes_and_a_filled_one_stays(tmp_path: Path) -> None:
    with exclusive(tmp_path / "state"):
        pass
    assert not (tmp_path / "state").exists()
    with exclusive(tmp_path / "state"):
        (tmp_path / "state/node.json").write_text("{}")
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"node.json", "lock"}


def test_place_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot be made"), exclusive(tmp_path / "file/state"):
        pass
