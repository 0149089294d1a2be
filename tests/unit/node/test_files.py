from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from apparate.errors import InvalidArgument, Unavailable
from apparate.node import files


def test_file_keeps_its_mode_and_attributes(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("old")
    path.chmod(0o640)
    os.setxattr(path, "user.label", b"x")
    files.replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.getxattr(path, "user.label") == b"x"
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.toml"]


def test_symbolic_link_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "config.toml"
    real.write_text("old")
    link.symlink_to("real.toml")
    files.replace(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_new_file_gets_its_directories_and_none_takes_it_away(tmp_path: Path) -> None:
    path = tmp_path / "a/b/config.toml"
    files.replace(path, b"x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    files.replace(path, None)
    files.replace(path, None)
    assert files.read(path) is None


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="cannot be written"):
        files.replace(tmp_path / "file" / "config.toml", b"x")
    assert (tmp_path / "file").read_text() == "in the way"


def test_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot be read"):
        files.read(tmp_path)


def test_spare_puts_the_old_file_back_with_what_it_had(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("old")
    path.chmod(0o640)
    with files.spare(path) as put_back:
        files.replace(path, b"new")
        put_back()
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("old", 0o640)
    with files.spare(path):
        files.replace(path, b"new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.toml"]


def test_spare_of_a_missing_file_takes_the_new_one_away(tmp_path: Path) -> None:
    path = tmp_path / "conf.d/apparate.toml"
    with files.spare(path) as put_back:
        files.replace(path, b"new")
        put_back()
    assert list(path.parent.iterdir()) == []


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("old")
    manager = files.spare(path)
    manager.__enter__()
    assert len(list(tmp_path.iterdir())) == 2
    files.remove_leftovers(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.toml"]
