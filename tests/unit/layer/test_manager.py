"""Making layers known, opening, pinning, forgetting them; restarts."""

from __future__ import annotations

import weakref

import pytest
from tests.support.layers import BuiltLayer, FakeBody, FakeRegistry, build_layer, incompressible
from tests.support.processes import wait_until
from tests.support.tarball import tar_bytes
from tests.support.written import write_layer
from tests.unit.layer.conftest import ManagerFactory, replaced
from tests.unit.layer.helpers import MEMBER, REFERENCE, address_of, files_in, resolve, sample_layer, whole_image

from apparate.errors import (
    FailedPrecondition,
    FormatError,
    IntegrityError,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unsupported,
)
from apparate.format.toc import Compression
from apparate.layer.bitmap import Bitmap
from apparate.layer.manager import LayerManager
from apparate.layer.model import LayerId, LayerRequest, LayerState, Touch
from apparate.layer.settings import LayerSettings
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.registry.deadline import Deadline


def test_a_layer_with_an_index_costs_one_request(manager: LayerManager, registry: FakeRegistry) -> None:
    layer = sample_layer()
    manager.resolve(LayerRequest(REFERENCE, registry.add(layer), layer.annotations))
    assert len(registry.requests) == 1


def test_a_known_layer_costs_none(manager: LayerManager, registry: FakeRegistry) -> None:
    layer = sample_layer()
    first = manager.resolve(LayerRequest(REFERENCE, registry.add(layer), layer.annotations))
    registry.requests.clear()
    again = manager.resolve(LayerRequest("registry.test/other:v2", layer.digest, layer.annotations))
    assert registry.requests == []
    assert (again.layer_id, again.image_size) == (first.layer_id, first.image_size)
    assert manager.status(layer.digest).reference == "registry.test/other:v2"


def test_a_known_layer_is_not_given_to_an_image_that_promises_something_else(
    open_manager: ManagerFactory, settings: LayerSettings, registry: FakeRegistry
) -> None:
    layer = sample_layer()
    digest = registry.add(layer)
    other = Digest.of(b"what the other image says the layer holds").hex
    manager = open_manager(settings)
    manager.resolve(LayerRequest("first.test/app:v1", digest, layer.annotations))
    for promised in ({names.INDEX: f"v1:0:10:{other}"}, {names.TOC_DIGEST: f"sha256:{other}"}, {}):
        with pytest.raises(Unsupported, match="another image brought"):
            manager.resolve(LayerRequest(REFERENCE, digest, promised))
    manager.close()
    reopened = open_manager(settings)
    with pytest.raises(Unsupported, match="another image brought"):
        reopened.resolve(LayerRequest(REFERENCE, digest, {names.INDEX: f"v1:0:10:{other}"}))
    assert reopened.resolve(LayerRequest(REFERENCE, digest, layer.annotations)).digest == digest


@pytest.mark.parametrize("damage", ["index", "everything"])
def test_an_image_that_promises_something_else_does_not_mend_a_damaged_layer(
    open_manager: ManagerFactory, settings: LayerSettings, registry: FakeRegistry, damage: str
) -> None:
    layer, evil = sample_layer(1), build_layer({b"a-large": incompressible(50_000, 9)}, member_bytes=MEMBER)
    digest = registry.add(layer)
    manager = open_manager(settings)
    manager.resolve(LayerRequest("first.test/app:v1", digest, layer.annotations))
    manager.close()
    for path in manager.image_path(digest).parent.iterdir():
        if damage == "everything" or path.name == "index":
            path.unlink()
    manager = open_manager(settings)
    registry.blobs[digest] = evil.blob
    with pytest.raises(Unsupported, match="another image brought"):
        manager.resolve(LayerRequest(REFERENCE, digest, evil.annotations))
    registry.blobs[digest] = layer.blob
    assert manager.resolve(LayerRequest(REFERENCE, digest, layer.annotations)).digest == digest
    assert files_in(whole_image(manager.attach(digest))) == layer.files


def test_a_damaged_layer_is_mended_by_what_it_was_verified_against_alone(
    open_manager: ManagerFactory, settings: LayerSettings, registry: FakeRegistry
) -> None:
    layer = write_layer(tar_bytes({"data/large": incompressible(300_000, 1)}), Compression.GZIP)
    digest = registry.add(BuiltLayer(layer.blob, {}, {}, sample_layer(small=0, large=1).toc))
    toc = {names.TOC_DIGEST: f"sha256:{layer.document.digest.hex()}"}
    manager = open_manager(settings)
    manager.resolve(LayerRequest("first.test/app:v1", digest, toc))
    manager.close()
    manager.image_path(digest).with_name("index").unlink()
    manager = open_manager(settings)
    evil = build_layer({b"etc": incompressible(50_000, 9)}, member_bytes=MEMBER)
    registry.fault = lambda offset, length, _: FakeBody(
        (evil.blob if offset < len(evil.blob) else layer.blob)[offset : offset + length], offset, len(layer.blob)
    )
    manager.resolve(LayerRequest(REFERENCE, digest, toc | evil.annotations))
    assert manager._catalogue.promise(digest) == f"toc {toc[names.TOC_DIGEST]}"


def remade(
    settings: LayerSettings, open_manager: ManagerFactory, registry: FakeRegistry, *, pinned: bool
) -> LayerManager:
    """Return a manager that knows a layer, complete, whose index is damaged and whose bitmap speaks of another one."""
    layer = sample_layer()
    manager = open_manager(settings)
    resolve(manager, registry, layer).complete(Deadline.after(10))
    if pinned:
        manager.pin(layer.digest, "mount a")
    manager.close()
    directory = manager.image_path(layer.digest).parent
    (directory / "index").unlink()
    present = (directory / "present").read_bytes()
    other = Bitmap(int.from_bytes(present[8:16], "little")).dump(int.from_bytes(present[16:24], "little"), bytes(32))
    (directory / "present").write_bytes(other)
    return open_manager(settings)


def test_nothing_that_another_index_laid_out_is_kept_or_cached(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    manager = remade(settings, open_manager, registry, pinned=False)
    layer = sample_layer()
    (before,) = manager.layers()
    inode = manager.image_path(layer.digest).stat().st_ino
    with manager.image_path(layer.digest).open("r+b") as old:
        old.truncate(before.image_size)
        image = resolve(manager, registry, layer)
        assert image.path.stat().st_ino != inode
    assert (image.store.present_members, image.is_complete) == (0, False)
    assert image.layer_id > before.layer_id, "the kernel may have pages of the old number cached"
    assert manager.status(layer.digest).reference == REFERENCE
    assert files_in(whole_image(image)) == layer.files
    assert registry.requests


def test_what_is_mounted_with_another_index_stays_as_it_is(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    manager = remade(settings, open_manager, registry, pinned=True)
    layer = sample_layer()
    (before,) = manager.layers()
    with pytest.raises(FailedPrecondition, match="another index"):
        manager.resolve(LayerRequest(REFERENCE, layer.digest, layer.annotations))
    assert manager.image_path(layer.digest).exists()
    assert [info.layer_id for info in manager.layers()] == [before.layer_id]
    manager.unpin(layer.digest, "mount a")
    assert files_in(whole_image(resolve(manager, registry, layer))) == layer.files


def test_a_layer_without_annotations_is_not_loaded_lazily(manager: LayerManager, registry: FakeRegistry) -> None:
    with pytest.raises(Unsupported, match="not lazily loadable"):
        manager.resolve(LayerRequest(REFERENCE, registry.add(sample_layer()), {}))
    assert manager.layers() == []


def test_an_index_with_another_digest_is_refused_after_some_attempts(
    manager: LayerManager, registry: FakeRegistry
) -> None:
    layer = sample_layer()
    digest = registry.add(layer)
    registry.fault = lambda offset, length, _: FakeBody(bytes(length), offset, len(layer.blob))
    with pytest.raises(IntegrityError):
        manager.resolve(LayerRequest(REFERENCE, digest, layer.annotations))
    assert 1 < len(registry.requests) < 10
    registry.fault = None
    assert manager.resolve(LayerRequest(REFERENCE, digest, layer.annotations)).image_size


def test_an_index_of_an_unknown_version_needs_a_table_of_contents(
    manager: LayerManager, registry: FakeRegistry
) -> None:
    layer = sample_layer()
    with pytest.raises(Unsupported, match="unknown version"):
        manager.resolve(LayerRequest(REFERENCE, registry.add(layer), {names.INDEX: "v9:whatever"}))


def test_a_malformed_annotation_is_refused(manager: LayerManager, registry: FakeRegistry) -> None:
    layer = sample_layer()
    with pytest.raises(FormatError, match="annotation"):
        manager.resolve(LayerRequest(REFERENCE, registry.add(layer), {names.INDEX: "v1:-1:2:3"}))


def test_numbers_survive_a_restart_and_are_never_used_again(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    layers = [sample_layer(seed) for seed in range(3)]
    manager = open_manager(settings)
    numbers = [resolve(manager, registry, layer).layer_id for layer in layers]
    manager.remove(layers[2].digest)
    manager.close()
    manager = open_manager(settings)
    assert [manager.attach(layer.digest).layer_id for layer in layers[:2]] == numbers[:2]
    assert manager.by_id(numbers[0]).digest == layers[0].digest
    fourth = resolve(manager, registry, sample_layer(4)).layer_id
    assert fourth not in numbers
    with pytest.raises(NotFound):
        manager.by_id(LayerId(99))


def test_a_restart_needs_no_registry(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    layer = sample_layer()
    manager = open_manager(settings)
    whole_image(resolve(manager, registry, layer))
    manager.close()
    registry.blobs.clear()
    registry.requests.clear()
    manager = open_manager(settings)
    assert files_in(whole_image(manager.attach(layer.digest))) == layer.files
    assert manager.status(layer.digest).state is LayerState.COMPLETE
    assert manager.status(layer.digest).fetched_bytes > 0


def test_the_reference_that_gave_something_is_tried_first_after_a_restart(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    layer = sample_layer()
    manager = open_manager(settings)
    image = resolve(manager, registry, layer)
    newer = "registry.test/gone:v2"
    manager.resolve(LayerRequest(newer, layer.digest, layer.annotations))
    registry.gone = {newer}
    image.read(image.metadata_size, 4096)
    assert registry.asked_by == [newer, REFERENCE]
    manager.sync()
    manager.close()
    manager = open_manager(settings)
    image = manager.attach(layer.digest)
    image.read(address_of(image, b"z-large"), 4096)
    assert registry.asked_by == [REFERENCE, newer]


def test_status_opens_no_layer(open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings) -> None:
    layers = [sample_layer(seed) for seed in range(3)]
    manager = open_manager(settings)
    complete, partial, _ = images = [resolve(manager, registry, layer) for layer in layers]
    complete.complete(Deadline.after(10))
    partial.read(partial.metadata_size, partial.image_size // 2)
    before = [manager.status(image.digest) for image in images]
    manager.close()
    manager = open_manager(settings)
    after = [manager.status(layer.digest) for layer in layers]
    assert manager.images() == []
    assert [status.state for status in after] == [LayerState.COMPLETE, LayerState.LAZY, LayerState.LAZY]
    assert [status.fetched_bytes for status in after] == [status.fetched_bytes for status in before]
    assert after[0].present_bytes == before[0].present_bytes
    assert 0.3 < after[1].present_bytes / before[1].present_bytes < 3
    assert after[2].present_bytes == 0


def test_a_second_manager_on_one_root_is_refused(
    open_manager: ManagerFactory, manager: LayerManager, settings: LayerSettings
) -> None:
    with pytest.raises(FailedPrecondition, match="another loader uses"):
        open_manager(settings)


def test_a_pinned_layer_is_not_removed(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    layer = sample_layer()
    manager = open_manager(settings)
    resolve(manager, registry, layer)
    manager.pin(layer.digest, "mount a")
    manager.close()
    manager = open_manager(settings)
    with pytest.raises(FailedPrecondition, match="mount a"):
        manager.remove(layer.digest)
    assert manager.pins() == {layer.digest: False}
    manager.unpin(layer.digest, "mount a")
    manager.unpin(layer.digest, "never there")
    manager.remove(layer.digest)
    assert not manager.image_path(layer.digest).parent.exists()


def test_pins_of_an_earlier_boot_are_void(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = sample_layer()
    manager = open_manager(settings)
    resolve(manager, registry, layer)
    manager.pin(layer.digest, "mount a")
    manager.close()
    boot_id = settings.root / "boot_id"
    boot_id.write_text("another boot\n")
    monkeypatch.setattr("apparate.layer.catalogue._BOOT_ID", boot_id)
    assert open_manager(settings).pins() == {}


def test_a_direct_pin_is_not_demoted_and_one_that_is_there_costs_no_write(
    manager: LayerManager, registry: FakeRegistry
) -> None:
    image = resolve(manager, registry, sample_layer())
    image.complete(Deadline.after(10))
    manager.pin(image.digest, "mount", direct=True)
    manager.sync()  # so that upkeep has nothing left to write
    changes = manager._catalogue._db.total_changes
    manager.pin(image.digest, "mount")
    manager.pin(image.digest, "mount", direct=True)
    assert manager.pins() == {image.digest: True}
    assert manager._catalogue._db.total_changes == changes
    manager.unpin(image.digest, "mount")
    manager.pin(image.digest, "mount")
    assert manager.pins() == {image.digest: False}


def test_a_pin_of_an_earlier_boot_is_replaced(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = sample_layer()
    manager = open_manager(settings)
    resolve(manager, registry, layer).complete(Deadline.after(10))
    manager.pin(layer.digest, "mount", direct=True)
    manager.close()
    boot_id = settings.root / "boot_id"
    boot_id.write_text("another boot\n")
    monkeypatch.setattr("apparate.layer.catalogue._BOOT_ID", boot_id)
    monkeypatch.setattr("apparate.layer.catalogue.Catalogue.tidy", lambda _: None)
    manager = open_manager(settings)
    manager.pin(layer.digest, "mount")
    assert manager.pins() == {layer.digest: False}


def test_a_removed_layer_is_let_go_of(manager: LayerManager, registry: FakeRegistry) -> None:
    image = resolve(manager, registry, sample_layer())
    image.complete(Deadline.after(10))
    gone = weakref.ref(image)
    manager.remove(image.digest)
    with pytest.raises(Unavailable, match="closed"):
        image.read(image.metadata_size, 4096)
    del image
    wait_until(lambda: gone() is None, "the image to be freed without the collector of cycles")


def test_removing_an_unknown_layer_is_success(manager: LayerManager) -> None:
    manager.remove(Digest.of(b"nothing"))


def test_an_unknown_layer_is_not_found(manager: LayerManager) -> None:
    for ask in (manager.attach, manager.status, manager.usage, manager.profile):
        with pytest.raises(NotFound):
            ask(Digest.of(b"nothing"))
    with pytest.raises(NotFound):
        manager.pin(Digest.of(b"nothing"), "test")


def test_directories_of_layers_that_were_never_promised_are_removed(
    open_manager: ManagerFactory, manager: LayerManager, settings: LayerSettings
) -> None:
    orphan = settings.root / "layers" / "00ff"
    orphan.mkdir()
    (orphan / "index").write_bytes(b"half")
    manager.close()
    open_manager(settings)
    assert not orphan.exists()


def test_a_lost_directory_means_a_failed_layer_until_it_is_resolved(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    layer = sample_layer()
    manager = open_manager(settings)
    number = resolve(manager, registry, layer).layer_id
    manager.close()
    for path in manager.image_path(layer.digest).parent.iterdir():
        path.unlink()
    manager = open_manager(settings)
    assert manager.status(layer.digest).state is LayerState.FAILED
    with pytest.raises(FormatError):
        manager.attach(layer.digest)
    image = resolve(manager, registry, layer)
    assert image.layer_id == number
    assert files_in(whole_image(image)) == layer.files


def test_the_profile_names_what_was_read_in_order(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    layer = sample_layer()
    manager = open_manager(settings)
    image = resolve(manager, registry, layer)
    image.read(address_of(image, b"z-large") + 4096, 8192)
    image.read(address_of(image, b"small-03"), 4096)
    image.read(address_of(image, b"z-large"), 4 * 4096)
    image.read_cached(address_of(image, b"a-large"), 4096, record=False)
    expected = [Touch(b"z-large", 4096, 8192), Touch(b"small-03", 0, 703), Touch(b"z-large", 0, 4096)]
    expected.append(Touch(b"z-large", 3 * 4096, 4096))
    assert manager.profile(layer.digest) == expected
    manager.close()
    assert open_manager(settings).profile(layer.digest) == expected


def test_the_profile_is_bounded(open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings) -> None:
    manager = open_manager(replaced(settings, profile_entries=3))
    image = resolve(manager, registry, sample_layer())
    for number in range(10):
        image.read(address_of(image, b"z-large") + number * 8192, 4096)
    assert len(manager.profile(image.digest)) == 3


def test_usage_is_what_the_disk_holds(manager: LayerManager, registry: FakeRegistry) -> None:
    image = resolve(manager, registry, sample_layer())
    before = manager.usage(image.digest)
    whole_image(image)
    wait_until(lambda: image.is_complete, "the layer to be durable")
    manager.sync()  # nothing is written from here on
    after = manager.usage(image.digest)
    files = list(image.path.parent.iterdir())
    assert after.bytes >= before.bytes + sum(len(data) for data in sample_layer().files.values())
    assert after.bytes == sum(path.stat().st_blocks * 512 for path in files)
    assert after.inodes == len(files) + 1


def test_status_tells_how_much_is_here(manager: LayerManager, registry: FakeRegistry) -> None:
    image = resolve(manager, registry, sample_layer())
    assert manager.status(image.digest).percent < 10
    image.read(address_of(image, b"z-large"), 10 * MEMBER)
    status = manager.status(image.digest)
    assert 20 < status.percent < 80
    assert status.state is LayerState.LAZY
    assert 10 * MEMBER <= status.fetched_bytes <= len(sample_layer().blob)


def test_a_layer_of_no_data_is_complete_at_once(manager: LayerManager, registry: FakeRegistry) -> None:
    layer: BuiltLayer = build_layer({b"empty": b""})
    image = resolve(manager, registry, layer)
    assert image.is_complete
    assert files_in(whole_image(image)) == layer.files


def test_a_member_that_does_not_fit_in_memory_is_refused(
    manager: LayerManager, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apparate.layer.attach.MEMBER_BYTES_MAX", 1000)
    layer = build_layer({b"file": incompressible(2000, 1)})
    with pytest.raises(Unsupported, match="above the limit"):
        manager.resolve(LayerRequest(REFERENCE, registry.add(layer), layer.annotations))


@pytest.mark.parametrize("change", [{"read_deadline_s": 0}, {"disk_low_water": 0.99}, {"disk_budget_bytes": -1}])
def test_settings_that_make_no_sense_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument, match=r"layers\."):
        replaced(LayerSettings(), **change)


def test_registries_are_needed_while_a_mounted_layer_is_not_complete(
    manager: LayerManager, registry: FakeRegistry
) -> None:
    image = resolve(manager, registry, sample_layer())
    assert not manager.has_incomplete_mounted()
    manager.pin(image.digest, "mount")
    assert manager.has_incomplete_mounted()
    image.complete(Deadline.after(10))
    manager.sync()
    assert not manager.has_incomplete_mounted()
