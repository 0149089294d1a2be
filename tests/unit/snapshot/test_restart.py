"""A snapshotter that starts again: after its end, a power failure, the loss of its metadata, or of the loader's layers."""

from __future__ import annotations

from pathlib import Path

from tests.support.fake_loader import FakeLayer, FakeLoader
from tests.support.processes import wait_until
from tests.unit.snapshot.conftest import MakeSnapshotter
from tests.unit.snapshot.helpers import REF, Image, lowers, pull

from apparate.errors import Unavailable
from apparate.snapshot.metastore import METADATA_NAME
from apparate.snapshot.reconcile import LOST_NAME
from apparate.snapshot.remote import ResolveRequest
from apparate.snapshot.snapshotter import Snapshotter


def test_a_restart_finds_everything_and_asks_nobody(make: MakeSnapshotter, fake: FakeLoader, tmp_path: Path) -> None:
    first = make()
    top, _how = pull(first, Image(fake, "lazy odd lazy"))
    mounts = first.prepare("container", top, {})
    infos = list(first.walk())
    first.close()
    for orphan in ("99", "new-123"):
        (tmp_path / "root" / "snapshots" / orphan).mkdir()
    fake.fail["status"] = fake.fail["mount"] = Unavailable("no loader after the reboot")
    second = make()
    assert list(second.walk()) == infos
    wait_until(lambda: fake.count("status") > 1, "the loader is asked in the background")
    del fake.fail["status"], fake.fail["mount"]
    assert second.mounts("container") == mounts
    assert not (tmp_path / "root" / "snapshots" / "99").exists()
    assert len(fake.mounted) == 2


def test_a_restart_after_a_power_failure_makes_empty_directories_again(make: MakeSnapshotter, tmp_path: Path) -> None:
    first = make()
    (mount,) = first.prepare("key", "", {})
    first.close()
    Path(mount.source).rmdir()
    second = make()
    (again,) = second.mounts("key")
    assert Path(again.source).is_dir()


def test_when_the_metadata_are_lost_nothing_is_removed_until_they_are_repaired(
    make: MakeSnapshotter, fake: FakeLoader, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    image = Image(fake, "lazy odd lazy")
    first = make()
    top, _how = pull(first, image)
    first.prepare("container", top, {})
    first.close()
    for file in root.glob(f"{METADATA_NAME}*"):
        file.unlink()
    before = sorted(path.name for path in (root / "snapshots").iterdir())
    mounted, known = dict(fake.mounted), dict(fake.known)
    for _start in range(2):  # the second finds a store like any other
        again = make()
        again.cleanup()
        (mount,) = again.prepare("new", "", {})
        assert Path(mount.source).parent.name not in before
        again.remove("new")
        again.cleanup()
        assert sorted(path.name for path in (root / "snapshots").iterdir()) == before
        assert (fake.mounted, fake.known) == (mounted, known)
        again.close()
    (root / LOST_NAME).unlink()
    repaired = make()
    repaired.cleanup()
    assert list((root / "snapshots").iterdir()) == []
    assert (fake.mounted, fake.known) == ({}, {})


def test_a_new_root_has_lost_nothing(make: MakeSnapshotter, tmp_path: Path) -> None:
    make().close()
    make()
    assert not (tmp_path / "root" / LOST_NAME).exists()


def test_layers_that_nobody_refers_to_are_dropped_at_start(make: MakeSnapshotter, fake: FakeLoader) -> None:
    stray = fake.add(FakeLayer(b"stray"))
    fake.resolve(ResolveRequest(REF, stray))
    fake.mount(stray)
    make()
    wait_until(lambda: not fake.known, "the stray layer is dropped")


def test_a_loader_that_lost_its_layers_gets_them_again(snapshotter: Snapshotter, fake: FakeLoader) -> None:
    image = Image(fake, "lazy lazy")
    top, _how = pull(snapshotter, image)
    fake.known.clear()
    assert len(lowers(snapshotter.prepare("c", top, {}))) == 2
    assert set(fake.known) == {layer.digest for layer in image.layers}
