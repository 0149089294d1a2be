"""Reading a layer that is not there yet."""

from __future__ import annotations

import pytest

from apparate.errors import Unsupported
from apparate.format.erofs.reader import ErofsReader
from apparate.layer.image import LayerImage
from apparate.layer.manager import LayerManager
from apparate.layer.model import LayerRequest
from tests.support.layers import BuiltLayer, FakeRegistry, build_layer, incompressible

REFERENCE = "registry.test/team/app:v1"
MEMBER = 16 * 1024


@pytest.fixture
def layer() -> BuiltLayer:
    files = {b"a-large": incompressible(10 * MEMBER + 77, 1)}
    files |= {b"small-%02d" % number: incompressible(700 + number, number) for number in range(40)}
    files |= {b"z-large": incompressible(20 * MEMBER, 2), b"empty": b""}
    return build_layer(files, member_bytes=MEMBER)


def resolve(manager: LayerManager, registry: FakeRegistry, layer: BuiltLayer) -> LayerImage:
    digest = registry.add(layer)
    manager.resolve(LayerRequest(REFERENCE, digest, layer.annotations))
    return manager.attach(digest)


def whole_image(image: LayerImage) -> bytes:
    return b"".join(image.read(at, 128 * 1024) for at in range(0, image.image_size, 128 * 1024))


def file_in(content: bytes, name: bytes) -> bytes:
    reader = ErofsReader(content)
    number = reader.lookup(reader.inode(reader.root_nid), name)
    assert number is not None
    inode = reader.inode(number)
    return content[reader.address(inode) :][: inode.size] if inode.size else b""


def test_resolving_a_layer_with_an_index_costs_one_request(
    manager: LayerManager, registry: FakeRegistry, layer: BuiltLayer
) -> None:
    resolve(manager, registry, layer)
    assert len(registry.requests) == 1


def test_what_is_read_is_what_the_files_hold(manager: LayerManager, registry: FakeRegistry, layer: BuiltLayer) -> None:
    image = resolve(manager, registry, layer)
    content = whole_image(image)
    assert {name: file_in(content, name) for name in layer.files} == layer.files


def test_no_byte_of_the_blob_is_fetched_twice(manager: LayerManager, registry: FakeRegistry, layer: BuiltLayer) -> None:
    image = resolve(manager, registry, layer)
    whole_image(image)
    whole_image(image)
    assert registry.fetched_twice() == 0


def test_what_is_here_is_read_without_a_request(
    manager: LayerManager, registry: FakeRegistry, layer: BuiltLayer
) -> None:
    image = resolve(manager, registry, layer)
    address = image.index.metadata_size
    assert image.read_cached(address, 4096) is None
    data = image.read(address, 4096)
    before = len(registry.requests)
    assert image.read_cached(address, 4096) == data
    assert len(registry.requests) == before


def test_a_layer_without_annotations_is_not_loaded_lazily(
    manager: LayerManager, registry: FakeRegistry, layer: BuiltLayer
) -> None:
    digest = registry.add(layer)
    with pytest.raises(Unsupported, match="not lazily loadable"):
        manager.resolve(LayerRequest(REFERENCE, digest, {}))
    assert manager.layers() == []
