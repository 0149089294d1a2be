"""Mounted layers: not removed, not demoted, and void after the machine has booted."""

from __future__ import annotations

import pytest
from tests.support.layers import FakeRegistry
from tests.unit.layer.conftest import ManagerFactory
from tests.unit.layer.helpers import resolve, sample_layer

from apparate.errors import FailedPrecondition
from apparate.layer.manager import LayerManager
from apparate.layer.settings import LayerSettings
from apparate.registry.deadline import Deadline


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
