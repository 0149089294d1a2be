"""What is left after a kill of the process and after a crash of the machine: never more than was proven."""

from __future__ import annotations

import random

import pytest
from tests.support.layers import FakeRegistry
from tests.support.lossy_disk import LossyDisk
from tests.unit.layer.conftest import ManagerFactory, replaced
from tests.unit.layer.helpers import files_in, resolve, sample_layer, whole_image

from apparate.layer.bitmap import Bitmap
from apparate.layer.image import LayerImage
from apparate.layer.settings import LayerSettings


@pytest.fixture
def quiet(settings: LayerSettings) -> LayerSettings:
    """Nothing is synced unless the test says so."""
    return replaced(settings, sync_interval_s=3600.0)


def durable_members(image: LayerImage) -> int:
    content = image.path.with_name("present").read_bytes()
    return int.from_bytes(content[56:-4], "little").bit_count()


@pytest.mark.parametrize("seed", range(12))
def test_nothing_unproven_is_served_after_a_crash_of_the_machine(
    open_manager: ManagerFactory, registry: FakeRegistry, quiet: LayerSettings, seed: int
) -> None:
    layer = sample_layer()
    dice = random.Random(seed)
    content: bytes | None = None
    for generation in range(4):
        disk = LossyDisk(seed * 10 + generation)
        manager = open_manager(quiet, disk=disk)
        image = resolve(manager, registry, layer)
        held = [member for member in range(image.index.member_count) if member in image.store]
        for member in held:
            raw = image.store.inflated(member)
            assert raw is not None
            image.index.verify(member, raw)
        for _ in range(12):
            address = dice.randrange(image.image_size)
            data = image.read(address, dice.randrange(1, 60_000))
            if content is not None:
                assert data == content[address : address + len(data)]
            action = dice.random()
            if action < 0.2:
                manager.sync()
            elif action < 0.3:
                image.store.punch(dice.sample(range(image.index.member_count), 5))
        if generation == 1:
            content = whole_image(image)
            assert files_in(content) == layer.files
        disk.crash()
        manager.close()
    assert files_in(whole_image(resolve(open_manager(quiet), registry, layer))) == layer.files


def test_what_was_synced_survives_a_crash_of_the_machine(
    open_manager: ManagerFactory, registry: FakeRegistry, quiet: LayerSettings
) -> None:
    layer = sample_layer()
    disk = LossyDisk()
    manager = open_manager(quiet, disk=disk)
    image = resolve(manager, registry, layer)
    whole_image(image)
    manager.sync()
    disk.crash()
    manager.close()
    image = resolve(open_manager(quiet), registry, layer)
    assert image.is_complete
    assert files_in(whole_image(image)) == layer.files
    assert registry.requests == []


def test_a_killed_process_costs_no_request_for_what_lies_in_the_file(
    open_manager: ManagerFactory, registry: FakeRegistry, quiet: LayerSettings
) -> None:
    layer = sample_layer()
    disk = LossyDisk()
    disk.fail_sync = True  # the process dies before it has synced; what it wrote is in the page cache
    manager = open_manager(quiet, disk=disk)
    whole_image(resolve(manager, registry, layer))
    manager.close()
    image = resolve(open_manager(quiet), registry, layer)
    assert image.store.present_members == 0
    assert files_in(whole_image(image)) == layer.files
    assert registry.requests == []


def test_a_bit_is_not_written_before_its_data_are_synced(
    open_manager: ManagerFactory, registry: FakeRegistry, quiet: LayerSettings
) -> None:
    disk = LossyDisk()
    manager = open_manager(quiet, disk=disk)
    image = resolve(manager, registry, sample_layer())
    disk.fail_sync = True
    whole_image(image)
    manager.sync()
    assert not image.path.with_name("present").exists()
    assert image.store.present_members == 0, "after a failed sync the kernel may have dropped the data"
    disk.fail_sync = False
    whole_image(image)
    manager.sync()
    assert durable_members(image) == image.index.member_count


def test_the_bit_is_cleared_on_disk_before_its_data_are_dropped(
    open_manager: ManagerFactory, registry: FakeRegistry, quiet: LayerSettings
) -> None:
    manager = open_manager(quiet)
    image = resolve(manager, registry, sample_layer())
    whole_image(image)
    manager.sync()
    seen: list[int] = []
    disk = image.store._disk
    punch = disk.punch

    def watched(fd: int, offset: int, length: int) -> None:
        seen.append(durable_members(image))
        punch(fd, offset, length)

    disk.punch = watched  # type: ignore[method-assign] # to see the order
    image.store.punch([0, 1, 5])
    assert set(seen) == {image.index.member_count - 3}


def test_another_file_in_place_of_the_image_is_not_believed(
    open_manager: ManagerFactory, registry: FakeRegistry, quiet: LayerSettings
) -> None:
    layer = sample_layer()
    manager = open_manager(quiet)
    image = resolve(manager, registry, layer)
    whole_image(image)
    manager.close()
    image.path.rename(image.path.with_name("aside"))
    image.path.write_bytes(bytes(image.image_size))
    assert files_in(whole_image(resolve(open_manager(quiet), registry, layer))) == layer.files


def test_a_missing_image_file_takes_the_bitmap_with_it(
    open_manager: ManagerFactory, registry: FakeRegistry, quiet: LayerSettings
) -> None:
    layer = sample_layer()
    manager = open_manager(quiet)
    image = resolve(manager, registry, layer)
    whole_image(image)
    manager.close()
    image.path.unlink()
    image = resolve(open_manager(quiet), registry, layer)
    assert image.store.present_members == 0
    assert files_in(whole_image(image)) == layer.files


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_bitmap_says_nothing(
    open_manager: ManagerFactory, registry: FakeRegistry, quiet: LayerSettings, damage: str
) -> None:
    layer = sample_layer()
    manager = open_manager(quiet)
    image = resolve(manager, registry, layer)
    whole_image(image)
    manager.close()
    path = image.path.with_name("present")
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-1], "flip": content[:60] + b"\0" + content[61:], "empty": b""}[damage])
    assert resolve(open_manager(quiet), registry, layer).store.present_members == 0


def test_a_damaged_index_is_obtained_again(
    open_manager: ManagerFactory, registry: FakeRegistry, quiet: LayerSettings
) -> None:
    layer = sample_layer()
    manager = open_manager(quiet)
    image = resolve(manager, registry, layer)
    number = image.layer_id
    whole_image(image)
    manager.close()
    path = image.path.with_name("index")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    image = resolve(open_manager(quiet), registry, layer)
    assert image.layer_id == number
    assert files_in(whole_image(image)) == layer.files


def test_damaged_metadata_in_the_image_file_are_repaired(
    open_manager: ManagerFactory, registry: FakeRegistry, quiet: LayerSettings
) -> None:
    layer = sample_layer()
    manager = open_manager(quiet)
    image = resolve(manager, registry, layer)
    manager.close()
    with image.path.open("r+b") as file:
        file.write(bytes(2000))
    assert files_in(whole_image(resolve(open_manager(quiet), registry, layer))) == layer.files


def test_a_bitmap_counts_its_bits() -> None:
    bits = Bitmap(20)
    assert bits.add(3)
    assert not bits.add(3)
    assert bits.add(19)
    assert bits.discard(3)
    assert not bits.discard(3)
    assert (bits.count, 19 in bits, 3 in bits, bits.missing(range(17, 20))) == (1, True, False, [17, 18])
