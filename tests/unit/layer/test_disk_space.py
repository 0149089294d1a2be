"""A disk that is small, and a disk that is full."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support.layers import FakeRegistry
from tests.support.lossy_disk import LossyDisk
from tests.support.processes import wait_until
from tests.unit.layer.conftest import ManagerFactory, replaced
from tests.unit.layer.helpers import MEMBER, address_of, files_in, resolve, sample_layer, whole_image

from apparate.errors import FailedPrecondition, Unavailable
from apparate.format.prefetch import PrefetchRange
from apparate.layer.image import LayerImage
from apparate.layer.settings import LayerSettings
from apparate.registry.deadline import Deadline


def data_bytes(image: LayerImage) -> int:
    """What the image file occupies."""
    return image.path.stat().st_blocks * 512


def test_on_a_full_disk_data_pass_through_unstored(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    layer = sample_layer()
    disk = LossyDisk()
    manager = open_manager(settings, disk=disk)
    image = resolve(manager, registry, layer)
    stored = image.read(image.metadata_size, MEMBER)
    disk.full = True
    assert files_in(whole_image(image)) == layer.files
    assert files_in(whole_image(image)) == layer.files
    requests = len(registry.requests)
    assert image.read_cached(image.metadata_size, MEMBER) == stored
    assert len(registry.requests) == requests
    assert image.store.present_members < image.index.member_count


def test_space_that_returns_is_used_again(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apparate.layer.budget._FULL_PAUSE_S", 0.01)
    disk = LossyDisk()
    image = resolve(open_manager(settings, disk=disk), registry, sample_layer())
    disk.full = True
    whole_image(image)
    disk.full = False
    wait_until(lambda: bool(whole_image(image)) and image.store.is_full, "members to be stored")


def test_a_disk_that_others_have_filled_is_not_looked_at_again_and_again(
    open_manager: ManagerFactory,
    registry: FakeRegistry,
    settings: LayerSettings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("apparate.layer.upkeep._NO_ROOM_PAUSE_FIRST_S", 3600.0)
    manager = open_manager(replaced(settings, disk_reserve_bytes=1 << 60, sync_interval_s=3600.0))
    upkeep = manager._upkeep
    image = resolve(manager, registry, sample_layer())
    whole_image(image)
    manager.sync()  # finds nothing to give back
    upkeep._urgent.clear()
    whole_image(image)
    assert not upkeep._urgent.is_set(), "nobody is hurried while there is nothing to give back"
    assert "disk space given back" not in capsys.readouterr().err


def test_room_that_can_be_made_is_made_at_once(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    manager = open_manager(replaced(settings, disk_budget_bytes=600_000, sync_interval_s=3600.0))
    image = resolve(manager, registry, sample_layer())
    whole_image(image)
    budget = manager._upkeep._budget
    wait_until(lambda: budget.to_free() == 0, "room to be made")


def test_completion_of_a_layer_that_does_not_fit_fails(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    disk = LossyDisk()
    image = resolve(open_manager(settings, disk=disk), registry, sample_layer())
    disk.full = True
    with pytest.raises(Unavailable, match="no room"):
        image.complete(Deadline.after(1.0))


def test_the_budget_is_kept_and_nobody_notices(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    budget = 1024 * 1024
    manager = open_manager(replaced(settings, disk_budget_bytes=budget))
    layers = [sample_layer(seed, large=12) for seed in range(4)]
    images = [resolve(manager, registry, layer) for layer in layers]
    for image in images:
        manager.pin(image.digest, "test")
    for _ in range(2):
        for image, layer in zip(images, layers, strict=True):
            assert files_in(whole_image(image)) == layer.files
            manager.sync()
            assert sum(manager.usage(one.digest).bytes for one in images) <= budget * 1.1


def test_layers_that_nobody_has_mounted_go_first(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    manager = open_manager(replaced(settings, disk_budget_bytes=1_600_000))
    idle = resolve(manager, registry, sample_layer(1))
    mounted = resolve(manager, registry, sample_layer(2))
    third = resolve(manager, registry, sample_layer(3))
    for image in (mounted, third):
        manager.pin(image.digest, "test")
    for image in (mounted, idle):
        whole_image(image)
    manager.sync()
    whole_image(third)
    manager.sync()
    assert idle.store.present_members == 0
    assert mounted.store.is_full
    assert manager.status(idle.digest).percent < 100
    assert idle.store.read(0, idle.metadata_size, ()) is not None, "it can still be mounted without a registry"


def test_a_layer_whose_file_the_kernel_reads_is_never_touched(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    layer = sample_layer(1)
    manager = open_manager(settings)
    image = resolve(manager, registry, layer)
    with pytest.raises(FailedPrecondition, match="not complete"):
        manager.pin(image.digest, "mount", direct=True)
    whole_image(image)
    manager.sync()
    manager.pin(image.digest, "mount", direct=True)
    manager.close()
    manager = open_manager(replaced(settings, disk_budget_bytes=100_000))
    manager.sync()
    assert files_in(image.path.read_bytes()) == layer.files
    manager.unpin(image.digest, "mount")
    manager.sync()
    assert data_bytes(image) < 100_000


def test_cold_members_go_before_warm_ones_and_the_profile(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    manager = open_manager(replaced(settings, disk_budget_bytes=600_000))
    image = resolve(manager, registry, sample_layer(large=10, profile=(PrefetchRange(b"a-large", 0, 2 * MEMBER),)))
    manager.pin(image.digest, "test")
    profile = image.index.members_in(address_of(image, b"a-large"), 2 * MEMBER)
    warm = image.index.members_in(address_of(image, b"z-large") + 5 * MEMBER, MEMBER)
    whole_image(image)
    image.hot[:] = bytes(len(image.hot))
    image.read(address_of(image, b"z-large") + 5 * MEMBER, MEMBER)
    manager.sync()
    assert not image.store.is_full
    assert image.store.missing(profile) == []
    assert image.store.missing(warm) == []


def test_readers_are_right_while_data_are_dropped_under_them(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    manager = open_manager(settings)
    layer = sample_layer()
    image = resolve(manager, registry, layer)
    content = whole_image(image)
    stop = threading.Event()

    def drop() -> None:
        while not stop.is_set():
            image.store.punch(range(image.index.member_count))

    def read(seed: int) -> bool:
        for number in range(60):
            address = (seed * 7919 + number * 104729) % (image.image_size - 50_000)
            assert image.read(address, 50_000) == content[address : address + 50_000]
        return True

    with ThreadPoolExecutor(5) as pool:
        dropping = pool.submit(drop)
        assert all(pool.map(read, range(4)))
        stop.set()
        dropping.result()


def test_nothing_is_stored_below_the_reserve(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    layer = sample_layer()
    image = resolve(open_manager(replaced(settings, disk_reserve_bytes=1 << 60)), registry, layer)
    assert files_in(whole_image(image)) == layer.files
    assert image.store.present_members == 0
