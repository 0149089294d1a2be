"""The layer store on real file systems that fill up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from tests.support.layers import BuiltLayer, FakeRegistry, build_layer, incompressible
from tests.support.processes import run

from apparate.errors import Unavailable
from apparate.format.erofs.reader import ErofsReader
from apparate.layer.image import LayerImage
from apparate.layer.manager import LayerManager
from apparate.layer.model import LayerRequest
from apparate.layer.settings import LayerSettings
from apparate.registry.client import RegistryClient

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount file systems"),
]
MIB = 1024 * 1024
DISK_BYTES = 12 * MIB
REFERENCE = "registry.test/team/app:v1"
STEP = 128 * 1024


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, folder: Path) -> Iterator[Path]:
    """A small file system of its own."""
    kind, place = str(request.param), folder / "disk"
    place.mkdir()
    if kind == "tmpfs":
        run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", place])
    else:
        backing = folder / "backing"
        backing.touch()
        os.truncate(backing, DISK_BYTES)
        run(["mkfs.ext4", "-q", backing])
        run(["mount", "-o", "loop", backing, place])
    try:
        yield place
    finally:
        run(["umount", place])


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


def open_manager(disk: Path, registry: FakeRegistry, **changes: int) -> LayerManager:
    settings = LayerSettings(root=disk / "store", background_after_s=0.0, disk_reserve_bytes=0, **changes)  # type: ignore[arg-type]  # sizes
    return LayerManager(settings, cast("RegistryClient", None), sources=registry.source)


def sample(seed: int, mib: int) -> BuiltLayer:
    files = {b"large": incompressible(mib * MIB, seed)}
    return build_layer(files | {b"small-%03d" % number: incompressible(3000, seed + number) for number in range(100)})


def attach(manager: LayerManager, registry: FakeRegistry, layer: BuiltLayer) -> LayerImage:
    manager.resolve(LayerRequest(REFERENCE, registry.add(layer), layer.annotations))
    return manager.attach(layer.digest)


def files_of(image: LayerImage) -> dict[bytes, bytes]:
    content = b"".join(image.read(at, STEP) for at in range(0, image.image_size, STEP))
    reader = ErofsReader(content)
    return {path: content[reader.address(inode) :][: inode.size] for path, inode in reader.walk() if path}


def fill(disk: Path) -> Path:
    """Leave no free block."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 512):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


def test_a_layer_larger_than_the_disk_is_read_whole(disk: Path, registry: FakeRegistry) -> None:
    layer = sample(1, 14)
    manager = open_manager(disk, registry)
    image = attach(manager, registry, layer)
    assert files_of(image) == layer.files
    assert files_of(image) == layer.files
    assert 0 < image.store.present_members < image.index.member_count
    manager.close()
    manager = open_manager(disk, registry)
    assert files_of(manager.attach(layer.digest)) == layer.files
    manager.close()


def test_on_a_full_disk_what_is_here_is_served_and_the_rest_passes_through(disk: Path, registry: FakeRegistry) -> None:
    layer = sample(2, 3)
    manager = open_manager(disk, registry)
    image = attach(manager, registry, layer)
    here = image.read(image.metadata_size, STEP)
    manager.sync()
    filler = fill(disk)
    assert image.read_cached(image.metadata_size, STEP) == here
    assert files_of(image) == layer.files
    manager.sync()
    with pytest.raises(Unavailable):
        attach(manager, registry, sample(3, 3))
    manager.close()
    manager = open_manager(disk, registry)
    image = manager.attach(layer.digest)
    assert image.read_cached(image.metadata_size, STEP) == here
    manager.pin(layer.digest, "a mount")
    assert files_of(image) == layer.files
    filler.unlink()
    assert files_of(attach(manager, registry, sample(3, 3))) == sample(3, 3).files
    manager.close()


def test_a_budget_gives_blocks_back(disk: Path, registry: FakeRegistry) -> None:
    manager = open_manager(disk, registry, disk_budget_bytes=5 * MIB)
    for seed in range(4):
        layer = sample(10 + seed, 3)
        image = attach(manager, registry, layer)
        manager.pin(layer.digest, "test")
        assert files_of(image) == layer.files
        manager.sync()
        assert sum(manager.usage(digest).bytes for digest in manager.digests()) <= 5.5 * MIB
    manager.close()
