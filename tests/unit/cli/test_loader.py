"""What the keeper is told to start, now and after an upgrade."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from apparate.cli.loader import _installed


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A host package of two files; returns its folder."""
    bin_ = tmp_path / "1.0.0" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "python3.11").touch()
    (bin_ / "apparate").touch()
    (tmp_path / "current").symlink_to("1.0.0")
    return tmp_path


def test_a_program_of_the_host_package_is_started_through_the_link_that_an_upgrade_switches(package: Path) -> None:
    called = package / "current/bin/apparate"

    python, program = _installed(called, str(package / "1.0.0/bin/python3.11"))

    assert (python, program) == (str(package / "current/bin/python3.11"), [str(called)])


def test_a_link_on_the_search_path_leads_there_too(package: Path) -> None:
    called = package / "apparate"
    called.symlink_to(package / "current/bin/apparate")

    python, _ = _installed(called, str(package / "1.0.0/bin/python3.11"))

    assert python == str(package / "current/bin/python3.11")


def test_any_other_interpreter_is_started_as_it_is(package: Path) -> None:
    assert _installed(package / "current/bin/apparate", sys.executable) == (
        sys.executable,
        [sys.executable, "-m", "apparate"],
    )
