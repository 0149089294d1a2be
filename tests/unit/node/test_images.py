from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.support import images as made
from tests.support import tarball
from tests.support.fake_containerd import FakeContainerd

from apparate.containerd.client import K8S, SNAPSHOT_REFERENCE, Image
from apparate.errors import FailedPrecondition, IntegrityError, Unsupported
from apparate.node.images import NodeImages
from apparate.oci.digest import Digest
from apparate.oci.manifest import Descriptor

LAYERS: list[Mapping[str, tarball.Node | bytes | None]] = [{"a": b"1\n"}, {"b": b"2\n"}]
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


@pytest.fixture
def daemon(tmp_path: Path) -> FakeContainerd:
    return FakeContainerd(tmp_path)


def _store(daemon: FakeContainerd, image: made.Image, *names: str) -> Descriptor:
    for blob in (image.manifest, *image.blobs.values(), *(child.manifest for child in image.children)):
        daemon.blobs[Digest.of(blob)] = blob
    for child in image.children:
        for blob in child.blobs.values():
            daemon.blobs[Digest.of(blob)] = blob
    target = Descriptor(image.media_type, Digest.of(image.manifest), len(image.manifest))
    daemon.stored += [Image(name, target) for name in names]
    return target


def test_layers_come_from_the_content_store_and_are_held(daemon: FakeContainerd) -> None:
    _store(daemon, made.build_image(LAYERS), "app:1", "app@digest")
    images = NodeImages(daemon)
    (image,) = images.survey()
    assert image.names == ("app:1", "app@digest")
    images.carry(image, "overlayfs", "apparate")
    assert daemon.loaded["apparate"].exists(image.top)
    assert daemon.loaded["apparate"].active == {}
    assert daemon.labels[image.config, f"{SNAPSHOT_REFERENCE}apparate"] == image.top
    images.carry(image, "overlayfs", "apparate")
    images.release(image, "apparate")
    assert daemon.labels[image.config, f"{SNAPSHOT_REFERENCE}apparate"] == ""


def _lose(daemon: FakeContainerd) -> None:
    (image,) = NodeImages(daemon).survey()
    for layer in image.layers:
        del daemon.blobs[layer.descriptor.digest]


def test_lost_layers_come_from_the_former_snapshotter(daemon: FakeContainerd) -> None:
    _store(daemon, made.build_image(LAYERS), "app:1")
    _lose(daemon)
    images = NodeImages(daemon)
    (image,) = images.survey()
    former = daemon.on(K8S, "overlayfs")
    for number, layer in enumerate(image.layers):
        former.add(layer.chain_id, f"layer {number}")
    assert image.missing == image.layers
    assert images.size_under([image, image], "overlayfs") == len("layer 0") * 2
    images.carry(image, "overlayfs", "apparate")
    copies = daemon.loaded["apparate"].committed
    assert [(copies[layer.chain_id] / "file").read_text() for layer in image.layers] == ["layer 0", "layer 1"]
    assert former.active == {}


def test_layers_that_are_nowhere_are_an_error_that_leaves_nothing(daemon: FakeContainerd) -> None:
    _store(daemon, made.build_image(LAYERS), "app:1")
    _lose(daemon)
    images = NodeImages(daemon)
    (image,) = images.survey()
    assert not image.usable_under(daemon.on(K8S, "overlayfs"))
    with pytest.raises(FailedPrecondition, match="neither stored nor unpacked"):
        images.carry(image, "overlayfs", "apparate")
    assert daemon.loaded["apparate"].names() == []


def test_former_snapshotter_of_another_kind_is_not_read(daemon: FakeContainerd) -> None:
    _store(daemon, made.build_image(LAYERS), "app:1")
    _lose(daemon)
    (image,) = NodeImages(daemon).survey()
    former = daemon.on(K8S, "btrfs")
    former.kind = "btrfs"
    for layer in image.layers:
        former.add(layer.chain_id, "")
    with pytest.raises(Unsupported, match="type btrfs"):
        NodeImages(daemon).carry(image, "btrfs", "apparate")
    assert former.active == {}


def test_layer_that_is_not_what_the_configuration_says_is_refused(daemon: FakeContainerd) -> None:
    image = made.build_image(LAYERS)
    config = next(blob for blob in image.blobs.values() if blob.startswith(b"{"))
    other = json.loads(config)
    other["rootfs"]["diff_ids"].reverse()
    changed = json.dumps(other).encode()
    manifest = json.loads(image.manifest)
    manifest["config"].update(digest=str(Digest.of(changed)), size=len(changed))
    raw = json.dumps(manifest).encode()
    _store(daemon, image)
    daemon.blobs |= {Digest.of(changed): changed, Digest.of(raw): raw}
    daemon.stored.append(Image("app:1", Descriptor(image.media_type, Digest.of(raw), len(raw))))
    (found,) = NodeImages(daemon).survey()
    with pytest.raises(IntegrityError):
        NodeImages(daemon).carry(found, "overlayfs", "apparate")
    assert daemon.loaded["apparate"].names() == []


def test_index_gives_the_image_of_this_machine(daemon: FakeContainerd) -> None:
    mine = made.build_image(LAYERS[:1], platform=f"linux/{ARCHITECTURE}")
    other = made.build_image(LAYERS, platform="linux/s390x")
    _store(daemon, made.build_index([other, mine]), "app:1")
    (image,) = NodeImages(daemon).survey()
    assert len(image.layers) == 1


def test_image_without_manifest_or_configuration_is_passed_over(daemon: FakeContainerd) -> None:
    daemon.stored.append(Image("gone:1", Descriptor(made.OCI_MANIFEST, Digest.of(b"gone"), 4)))
    daemon.blobs[Digest.of(b"{}")] = b"{}"
    daemon.stored.append(Image("odd:1", Descriptor(made.OCI_MANIFEST, Digest.of(b"{}"), 2)))
    assert NodeImages(daemon).survey() == []


def test_removing_takes_every_name(daemon: FakeContainerd) -> None:
    _store(daemon, made.build_image(LAYERS), "app:1", "app:2")
    (image,) = NodeImages(daemon).survey()
    NodeImages(daemon).remove(image)
    assert daemon.stored == []
