from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.trees import read_tree

from apparate.errors import Unavailable
from apparate.node.treecopy import copy_tree


def _fill(root: Path) -> None:
    (root / "d").mkdir(mode=0o750)
    (root / "d/file").write_bytes(b"content")
    (root / "d/file").chmod(0o4755)
    os.link(root / "d/file", root / "link")
    (root / "symlink").symlink_to("/nowhere")
    os.mkfifo(root / "fifo")
    os.setxattr(root / "d", "user.a", b"b")
    with (root / "sparse").open("wb") as out:
        out.seek(1 << 20)
        out.write(b"x")
        out.truncate(3 << 20)
    for path in (root / "d/file", root / "symlink", root / "d"):
        os.utime(path, ns=(1, 1_600_000_000_123_456_789), follow_symlinks=False)


def test_copy_equals_its_source(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for directory in (source, target):
        directory.mkdir(mode=0o711)
    _fill(source)
    copy_tree(source, target)
    assert read_tree(target) == read_tree(source)
    assert (target / "sparse").stat().st_blocks * 512 < 1 << 20


@pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts are devices")
def test_whiteouts_are_kept_and_notes_of_other_inodes_are_not(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for directory in (source, target):
        directory.mkdir()
    os.mknod(source / "gone", 0o20000, 0)
    (source / "d").mkdir()
    os.setxattr(source / "d", "trusted.overlay.opaque", b"y")
    os.setxattr(source / "d", "trusted.overlay.origin", b"of another file system")
    os.chown(source / "d", 3, 4)
    copy_tree(source, target)
    status = (target / "gone").lstat()
    assert (status.st_rdev, oct(status.st_mode)) == (0, "0o20000")
    assert os.listxattr(target / "d") == ["trusted.overlay.opaque"]
    assert ((target / "d").stat().st_uid, (target / "d").stat().st_gid) == (3, 4)


def test_what_cannot_be_copied_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a").write_text("1")
    (tmp_path / "target").mkdir()
    (tmp_path / "target/a").write_text("in the way")
    with pytest.raises(Unavailable, match="layer cannot be copied"):
        copy_tree(tmp_path / "source", tmp_path / "target")
