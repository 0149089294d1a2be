"""The mount table, as the kernel writes it."""

from pathlib import Path

import pytest

from apparate.loader import kernel

MOUNTINFO = rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
36 22 0:39 / /run/a\040b/fs ro,noatime - fuse apparate ro,user_id=0
37 22 0:40 / /run/layers/x ro,noatime shared:7 master:3 - erofs /run/fs/x ro
38 22 0:41 / /run/layers/x ro,noatime - erofs /disk/x ro
"""


@pytest.fixture(autouse=True)
def _table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mountinfo"
    path.write_bytes(MOUNTINFO)
    monkeypatch.setattr(kernel, "_MOUNTINFO", path)


def test_names_are_unescaped_and_optional_fields_skipped() -> None:
    assert kernel.mount_at("/run/a b/fs") == kernel.Mount(36, "0:39", "/run/a b/fs", "fuse", "apparate")


def test_the_topmost_of_several_mounts_counts() -> None:
    mount = kernel.mount_at("/run/layers/x")
    assert mount is not None
    assert mount.source == "/disk/x"


def test_a_directory_below_a_mount_is_no_mount() -> None:
    assert kernel.mount_at("/run/layers") is None


def test_read_ahead_of_a_device_that_is_gone_is_no_error() -> None:
    kernel.set_read_ahead("erofs-4294967295", 4)
