"""What the layer store's tests share besides fixtures."""

from __future__ import annotations

from tests.support.layers import BuiltLayer, FakeRegistry, build_layer, incompressible

from apparate.format.erofs.reader import ErofsReader
from apparate.format.prefetch import PrefetchRange
from apparate.layer.image import LayerImage
from apparate.layer.manager import LayerManager
from apparate.layer.model import LayerRequest

REFERENCE = "registry.test/team/app:v1"
MEMBER = 16 * 1024
STEP = 128 * 1024


def sample_layer(
    seed: int = 1, *, large: int = 10, profile: tuple[PrefetchRange, ...] = (), small: int = 40
) -> BuiltLayer:
    """Return a layer with two files of many members and many files that share members."""
    files = {b"a-large": incompressible(large * MEMBER + 77, seed)}
    files |= {b"small-%02d" % number: incompressible(700 + number, seed + number) for number in range(small)}
    files |= {b"z-large": incompressible(2 * large * MEMBER, seed + 1000), b"empty": b""}
    return build_layer(files, member_bytes=MEMBER, profile=profile)


def resolve(manager: LayerManager, registry: FakeRegistry, layer: BuiltLayer) -> LayerImage:
    """Make a layer known and return its image; the requests for that are forgotten."""
    digest = registry.add(layer)
    manager.resolve(LayerRequest(REFERENCE, digest, layer.annotations))
    image = manager.attach(digest)
    registry.requests.clear()
    return image


def whole_image(image: LayerImage) -> bytes:
    """Read an image from end to end, as a container would."""
    return b"".join(image.read(at, STEP) for at in range(0, image.image_size, STEP))


def address_of(image: LayerImage, name: bytes) -> int:
    """Return where in the image the data of a file lie."""
    reader = ErofsReader(image.index.metadata())
    number = reader.lookup(reader.inode(reader.root_nid), name)
    assert number is not None
    return reader.address(reader.inode(number))


def files_in(content: bytes) -> dict[bytes, bytes]:
    """Return the regular files of a whole image, by path."""
    reader = ErofsReader(content)
    files = {}
    for path, inode in reader.walk():
        if inode.mode & 0o170000 == 0o100000:
            address = reader.address(inode)
            files[path] = content[address : address + inode.size] if inode.size else b""
    return files
