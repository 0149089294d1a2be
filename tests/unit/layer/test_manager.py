"""Making layers known, opening and forgetting them; restarts."""

from __future__ import annotations

import weakref

import pytest
from tests.support.layers import BuiltLayer, FakeBody, FakeRegistry, build_layer, incompressible
from tests.support.processes import wait_until
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
