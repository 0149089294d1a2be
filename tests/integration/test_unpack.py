"""A layer that we unpack in place gives the tree that containerd's own unpacking gives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.content import stored, with_layer_of
from tests.support.distribution import Registry
from tests.support.images import Image, build_image, push
from tests.support.leftovers import clean_folder
from tests.support.node import Node, node
from tests.support.services import apparate
from tests.support.tarball import Node as Entry
from tests.support.tarball import directory, file
from tests.support.torture import base_layer, torture_layer
from tests.support.trees import differences, read_tree

from apparate.snapshot.snapshotter import LAYER_UNPACKED

pytestmark = [pytest.mark.root, pytest.mark.fuse]

OLD_GNU_SPARSE = b"sparse/gnu"  # containerd refuses this entry type, so it cannot judge it


@pytest.fixture(scope="module")
def running() -> Iterator[Node]:
    with clean_folder("unpack") as folder, node(folder, "2.4.2") as made:
        yield made


def torture() -> Image:
    odd = {path: entry for path, entry in torture_layer().items() if path != OLD_GNU_SPARSE}
    return build_image([base_layer(), odd, {"on top": b"1\n"}])


def implied_directories() -> Image:
    """The odd layer names files in directories that only the layer below describes."""
    below: dict[str, Entry | bytes | None] = {
        "a/": directory(mode=0o2750, uid=5, gid=6),
        "a/b/": directory(mode=0o700, uid=7, gid=8, xattrs={"user.kept": b"1"}),
        "a/b/old": b"1\n",
    }
    odd: dict[str, Entry | bytes | None] = {"a/b/new": b"2\n", "fresh/made/here": b"3\n"}
    return build_image([below, odd, {"on top": b"1\n"}])


def replaced_entries() -> Image:
    """Names that occur twice, and whiteouts of what the same layer brings."""
    pairs: list[tuple[str | bytes, Entry | bytes | None]] = [
        ("d/", directory(mode=0o755)),
        ("d/x", file(b"old\n")),
        ("d", file(b"now a file\n")),
        ("e", file(b"first\n")),
        ("e/", directory(mode=0o711)),
        ("e/y", file(b"second\n")),
        (".wh.kept", file()),
        ("kept", file(b"new\n")),
        (".wh.gone", file()),
    ]
    return build_image([{"kept": b"old\n", "gone": b"1\n", "e": b"0\n"}, pairs, {"on top": b"1\n"}])


IMAGES = {"torture": torture, "implied-directories": implied_directories, "replaced-entries": replaced_entries}


@pytest.mark.parametrize("kind", IMAGES)
def test_tree_equals_that_of_containerd(running: Node, registry: Registry, folder: Path, kind: str) -> None:
    name = f"unpack/{kind}"
    source = push(registry, name, IMAGES[kind]())
    apparate("convert", source, f"{source}-apparate")
    mixed = with_layer_of(registry, f"{source}-apparate", source, 1, f"{name}-mixed")
    daemon = running.containerd
    began_ns = time.time_ns()
    lazy_before, unpacked_before = len(running.remote_layers()), len(running.ours.events(LAYER_UNPACKED))
    try:
        daemon.cri.pull(mixed)
        digests = stored(mixed).digests
        assert running.remote_layers()[lazy_before:] == [digests[0], digests[2]]
        unpacked = running.ours.events(LAYER_UNPACKED)[unpacked_before:]
        assert [event["layer"] for event in unpacked] == [digests[1]]
        daemon.pull_with_ctr(source, "overlayfs")
        ours, theirs = folder / "ours", folder / "theirs"
        with daemon.mounted(mixed, running.snapshotter, ours), daemon.mounted(source, "overlayfs", theirs):
            assert differences(read_tree(ours), read_tree(theirs), began_ns) == []
    finally:
        daemon.remove_all()
    running.assert_empty()
