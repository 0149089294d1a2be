from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apparate.errors import Unavailable
from apparate.snapshot.directories import SnapshotDirectories
from apparate.snapshot.model import Kind, Mount, SnapshotId
from apparate.snapshot.mounts import mounts_of
from apparate.snapshot.overlay import Overlay

ONE, TWO = SnapshotId(1), SnapshotId(2)


@pytest.fixture
def directories(tmp_path: Path) -> SnapshotDirectories:
    return SnapshotDirectories(tmp_path)


def test_a_new_directory_is_0755_whatever_the_umask(directories: SnapshotDirectories) -> None:
    mask = os.umask(0o077)
    try:
        directories.create(ONE, None, with_work=True)
    finally:
        os.umask(mask)
    assert directories.content(ONE).stat().st_mode & 0o7777 == 0o755
    assert directories.work(ONE).is_dir()


def test_an_id_that_exists_already_is_refused_and_stays(directories: SnapshotDirectories, tmp_path: Path) -> None:
    directories.create(ONE, None, with_work=False)
    with pytest.raises(Unavailable):
        directories.create(TWO, SnapshotId(99), with_work=False)
    assert not (tmp_path / "snapshots" / "2").exists()


def test_usage_counts_allocated_blocks_and_hard_links_once(directories: SnapshotDirectories) -> None:
    directories.create(ONE, None, with_work=True)
    content = directories.content(ONE)
    (content / "dir").mkdir()
    (content / "file").write_bytes(b"x" * 10_000)
    (content / "dir" / "link").hardlink_to(content / "file")
    with (content / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 30)
    (content / "dangling").symlink_to("nowhere")
    usage = directories.measure(ONE)
    assert usage.inodes == 5
    assert 10_000 <= usage.size < 1 << 20


def test_usage_of_nothing_is_nothing(directories: SnapshotDirectories) -> None:
    assert directories.measure(ONE).inodes == 0


def test_removed_directories_are_out_of_the_way_before_they_are_deleted(
    directories: SnapshotDirectories, tmp_path: Path
) -> None:
    directories.create(ONE, None, with_work=True)
    (directories.content(ONE) / "x").touch()
    directories.discard(ONE)
    directories.discard(ONE)
    assert not directories.content(ONE).exists()
    directories.create(ONE, None, with_work=True)
    assert directories.purge() == []
    assert list((tmp_path / "removed").iterdir()) == []
    assert directories.content(ONE).exists()


def test_unknown_directories_and_files_are_discarded(directories: SnapshotDirectories, tmp_path: Path) -> None:
    directories.create(ONE, None, with_work=False)
    directories.create(TWO, None, with_work=False)
    (tmp_path / "snapshots" / "new-xyz").mkdir()
    (tmp_path / "snapshots" / "file").touch()
    assert directories.discard_unknown({ONE}) == 3
    assert directories.purge() == []
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["1"]


def test_a_link_follows_its_mount(directories: SnapshotDirectories, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        directories.link(ONE, str(tmp_path / name))
        directories.link(ONE, str(tmp_path / name))
        assert os.readlink(directories.content(ONE)) == str(tmp_path / name)
    directories.discard(ONE)
    assert directories.purge() == []
    assert (tmp_path / "b").is_dir()


def test_many_may_link_one_layer_at_once(directories: SnapshotDirectories, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            list(pool.map(lambda _: directories.link(ONE, str(tmp_path / "a")), range(8)))
            directories.content(ONE).unlink()
    assert list(directories.content(ONE).parent.iterdir()) == []


def test_mounts_are_those_of_overlayfs() -> None:
    own, work, a, b = Path("/r/1/fs"), Path("/r/1/work"), Path("/r/2/fs"), Path("/r/3/fs")
    overlay = Overlay(("index=off",))
    assert mounts_of(Kind.ACTIVE, own, work, [], overlay) == (Mount("bind", "/r/1/fs", ("rw", "rbind")),)
    assert mounts_of(Kind.VIEW, own, work, [], overlay) == (Mount("bind", "/r/1/fs", ("ro", "rbind")),)
    assert mounts_of(Kind.VIEW, own, work, [a], overlay) == (Mount("bind", "/r/2/fs", ("ro", "rbind")),)
    assert mounts_of(Kind.ACTIVE, own, work, [a], overlay) == (
        Mount("overlay", "overlay", ("index=off", "workdir=/r/1/work", "upperdir=/r/1/fs", "lowerdir=/r/2/fs")),
    )
    assert mounts_of(Kind.VIEW, own, work, [a, b], overlay) == (
        Mount("overlay", "overlay", ("index=off", "lowerdir=/r/2/fs:/r/3/fs")),
    )
