"""What a layer was verified against: nothing else answers for it, mends it, or is served beside it."""

from __future__ import annotations

import pytest
from tests.support.layers import BuiltLayer, FakeBody, FakeRegistry, build_layer, incompressible
from tests.support.tarball import tar_bytes
from tests.support.written import write_layer
from tests.unit.layer.conftest import ManagerFactory
from tests.unit.layer.helpers import MEMBER, REFERENCE, files_in, resolve, sample_layer, whole_image

from apparate.errors import FailedPrecondition, Unsupported
from apparate.format.toc import Compression
from apparate.layer.bitmap import Bitmap
from apparate.layer.manager import LayerManager
from apparate.layer.model import LayerRequest
from apparate.layer.settings import LayerSettings
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.registry.deadline import Deadline


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
