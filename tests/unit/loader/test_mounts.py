"""Which mount is made, which is kept, which is made again. The courier and the mount table are stand-ins."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.unit.loader.fakes import MemoryImage

from apparate.errors import FailedPrecondition, FormatError, Unavailable
from apparate.loader import kernel
from apparate.loader.erofs_mount import Driver
from apparate.loader.mounts import LayerMounts, Mounted
from apparate.loader.settings import LoaderSettings

DATA = bytes(8192)
SESSION = "0:39"


@dataclass
class NotingCourier:
    """Keeps a mount table, and fails on request."""

    table: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)  # by the beginning of the source, or "unmount"

    def mount(self, driver: Driver, source: str, target: str, read_ahead_kb: int) -> str:
        for prefix, number in self.refusals.items():
            if source.startswith(prefix):
                raise OSError(number, "refused", target)
        Path(target).mkdir(exist_ok=True)
        self.asked.append((driver.value, source, read_ahead_kb))
        self.table[target] = source
        return f"erofs-{len(self.asked)}"

    def unmount(self, target: str, *, detach: bool) -> bool:
        if not detach and "unmount" in self.refusals and target in self.table:
            raise OSError(self.refusals["unmount"], "refused", target)
        return self.table.pop(target, None) is not None


@pytest.fixture
def courier(monkeypatch: pytest.MonkeyPatch) -> NotingCourier:
    made = NotingCourier()

    def mounts() -> list[kernel.Mount]:
        return [kernel.Mount(1, "0:50", target, "erofs", source) for target, source in made.table.items()]

    monkeypatch.setattr(kernel, "mounts", mounts)
    return made


@pytest.fixture
def read_ahead(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    values: dict[str, int] = {}
    monkeypatch.setattr(kernel, "set_read_ahead", values.__setitem__)
    return values


@pytest.fixture
def settings(tmp_path: Path) -> LoaderSettings:
    return LoaderSettings(run_dir=tmp_path)


def over(
    courier: NotingCourier, settings: LoaderSettings, driver: Driver = Driver.EROFS_FILE, session: str = SESSION
) -> LayerMounts:
    return LayerMounts(settings, driver, courier, session)  # type: ignore[arg-type]  # only what is used of a courier


def complete(path: Path) -> MemoryImage:
    image = MemoryImage(DATA)
    image.is_complete, image.path = True, path
    return image


def mount(mounts: LayerMounts, image: MemoryImage) -> Mounted:
    return mounts.mount(image, local=image.is_complete)


def test_a_lazy_layer_is_mounted_from_its_fuse_file_once(courier: NotingCourier, settings: LoaderSettings) -> None:
    image, mounts = MemoryImage(DATA), over(courier, settings)
    target = settings.layers_dir / image.digest.hex
    assert mount(mounts, image) == Mounted(str(target), is_local=False, is_new=True)
    assert mount(mounts, image) == Mounted(str(target), is_local=False, is_new=False)
    assert courier.asked == [("erofs-file", str(settings.fuse_dir / image.digest.hex), settings.lazy_read_ahead_kb)]
    assert mounts.mounted() == {image.digest: "erofs-file"}


def test_a_layer_with_a_profile_reads_hardly_ahead(courier: NotingCourier, settings: LoaderSettings) -> None:
    image = MemoryImage(DATA)
    image.index.prefetch = ((0, 4096),)
    mount(over(courier, settings), image)
    assert courier.asked[0][2] == settings.profiled_read_ahead_kb


@pytest.mark.parametrize("prefetch", [(), ((0, 4096),)])
def test_recorded_layers_stay_on_fuse_and_nothing_is_read_ahead(
    courier: NotingCourier, tmp_path: Path, read_ahead: dict[str, int], prefetch: tuple[tuple[int, int], ...]
) -> None:
    settings = LoaderSettings(run_dir=tmp_path, record_profiles=True)
    mounts, image = over(courier, settings), complete(Path("/disk/layer"))
    image.is_complete, image.index.prefetch = False, prefetch
    mount(mounts, image)
    image.is_complete = True
    mounts.completed(image)
    assert not mount(mounts, image).is_local
    assert not mounts.local_works
    assert courier.asked == [("erofs-file", str(settings.fuse_dir / image.digest.hex), 0)]
    assert read_ahead == {}


def test_a_complete_layer_is_mounted_from_its_own_file(courier: NotingCourier, settings: LoaderSettings) -> None:
    mounts = over(courier, settings)
    assert mount(mounts, complete(Path("/disk/layer"))).is_local
    assert courier.asked == [("erofs-file", "/disk/layer", settings.complete_read_ahead_kb)]


def test_a_layer_that_became_complete_is_mounted_anew_from_its_own_file(
    courier: NotingCourier, settings: LoaderSettings, read_ahead: dict[str, int]
) -> None:
    mounts, image = over(courier, settings), complete(Path("/disk/layer"))
    image.is_complete = False
    mount(mounts, image)
    image.is_complete = True
    mounts.completed(image)
    assert read_ahead == {"erofs-1": settings.complete_read_ahead_kb}
    assert mount(mounts, image).is_local
    assert [source for _, source, _ in courier.asked] == [str(settings.fuse_dir / image.digest.hex), "/disk/layer"]


def test_where_local_files_cannot_be_mounted_complete_layers_stay_on_fuse(
    courier: NotingCourier, settings: LoaderSettings
) -> None:
    courier.refusals["/overlay/"] = errno.ENOTBLK
    mounts, image = over(courier, settings), complete(Path("/overlay/layer"))
    assert not mount(mounts, image).is_local
    assert not mount(mounts, image).is_local
    assert courier.asked == [("erofs-file", str(settings.fuse_dir / image.digest.hex), settings.complete_read_ahead_kb)]


def test_another_failure_of_a_local_file_is_no_reason_to_go_on(
    courier: NotingCourier, settings: LoaderSettings
) -> None:
    courier.refusals["/disk/"] = errno.EIO
    with pytest.raises(Unavailable, match="refused"):
        mount(over(courier, settings), complete(Path("/disk/layer")))


def test_an_image_that_the_kernel_refuses_is_a_format_error(courier: NotingCourier, settings: LoaderSettings) -> None:
    courier.refusals[str(settings.fuse_dir)] = errno.EBADMSG
    with pytest.raises(FormatError, match="refused"):
        mount(over(courier, settings), MemoryImage(DATA))


def test_a_restarted_loader_keeps_the_mounts_of_its_session(courier: NotingCourier, settings: LoaderSettings) -> None:
    image = MemoryImage(DATA)
    mount(over(courier, settings), image)
    mount(over(courier, settings), image)
    assert len(courier.asked) == 1


def test_mounts_of_a_dead_session_are_taken_away_and_made_again(
    courier: NotingCourier, settings: LoaderSettings
) -> None:
    image, local = MemoryImage(DATA), complete(Path("/disk/layer"))
    local.digest = MemoryImage(b"other").digest
    before = over(courier, settings)
    mount(before, image)
    mount(before, local)
    after = over(courier, settings, session="0:77")
    after.drop_dead()
    assert list(after.mounted()) == [local.digest]
    mount(after, image)
    mount(after, local)
    assert len(courier.asked) == 3


def test_a_mount_that_vanished_is_made_again(courier: NotingCourier, settings: LoaderSettings) -> None:
    image, mounts = MemoryImage(DATA), over(courier, settings)
    mount(mounts, image)
    courier.table.clear()
    assert mounts.mounted() == {}
    mount(mounts, image)
    assert len(courier.asked) == 2


def test_a_damaged_record_only_costs_a_mount(courier: NotingCourier, settings: LoaderSettings) -> None:
    image, mounts = MemoryImage(DATA), over(courier, settings)
    mount(mounts, image)
    next(settings.layers_dir.glob("*.json")).write_text('{"driver": "erofs-fi')
    mount(mounts, image)
    assert len(courier.asked) == 2


def test_a_tree_needs_no_mount(courier: NotingCourier, settings: LoaderSettings) -> None:
    image, mounts = MemoryImage(DATA), over(courier, settings, Driver.TREE)
    assert mount(mounts, image).path == str(settings.fuse_dir / "trees" / image.digest.hex)
    assert mounts.mounted() == {image.digest: "tree"}
    mounts.unmount(image.digest)
    assert mounts.mounted() == {}
    assert courier.asked == []


def test_unmounting_removes_every_trace_and_is_repeatable(courier: NotingCourier, settings: LoaderSettings) -> None:
    image, mounts = MemoryImage(DATA), over(courier, settings)
    mount(mounts, image)
    mounts.unmount(image.digest)
    mounts.unmount(image.digest)
    assert list(settings.layers_dir.iterdir()) == []


def test_a_busy_layer_stays_mounted(courier: NotingCourier, settings: LoaderSettings) -> None:
    image, mounts = MemoryImage(DATA), over(courier, settings)
    mount(mounts, image)
    courier.refusals["unmount"] = errno.EBUSY
    with pytest.raises(FailedPrecondition, match="in use"):
        mounts.unmount(image.digest)
    assert mounts.mounted() == {image.digest: "erofs-file"}


def test_only_layers_read_through_this_session_are_on_fuse(courier: NotingCourier, settings: LoaderSettings) -> None:
    image, local = MemoryImage(DATA), complete(Path("/disk/layer"))
    local.digest = MemoryImage(b"other").digest
    mounts = over(courier, settings)
    mount(mounts, image)
    mount(mounts, local)
    for after in (mounts, over(courier, settings)):
        assert after.is_on_fuse(image.digest)
        assert not after.is_on_fuse(local.digest)
    assert not over(courier, settings, session="0:77").is_on_fuse(image.digest)
    mounts.unmount(image.digest)
    assert not mounts.is_on_fuse(image.digest)


def test_who_mounts_decides_what_from(courier: NotingCourier, settings: LoaderSettings) -> None:
    mounts, image = over(courier, settings), complete(Path("/disk/layer"))  # it became complete after the decision
    assert not mounts.mount(image, local=False).is_local
    assert [source for _, source, _ in courier.asked] == [str(settings.fuse_dir / image.digest.hex)]


def test_only_a_dead_mount_is_detached_before_another_takes_its_place(
    courier: NotingCourier, settings: LoaderSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, detached = complete(Path("/disk/layer")), []
    monkeypatch.setattr(courier, "unmount", lambda target, *, detach: detached.append((target, detach)))
    over(courier, settings).mount(image, local=False)
    over(courier, settings).mount(image, local=True)
    assert detached == []
    over(courier, settings).mount(image, local=False)
    over(courier, settings, session="0:77").mount(image, local=False)
    assert detached == [(str(settings.layers_dir / image.digest.hex), True)]
