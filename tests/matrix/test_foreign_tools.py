"""Ours and theirs: other tools pull and mount our images, we mount the images that other tools make."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.test_fidelity import OLD_GNU_SPARSE
from tests.support import foreign_tools, tarball
from tests.support.busybox import busybox_entries
from tests.support.content import Stored, served_bytes, stored
from tests.support.distribution import Registry
from tests.support.foreign_tools import ContainersStorage
from tests.support.images import build_image, pattern, plain_layer, push
from tests.support.leftovers import clean_folder
from tests.support.node import Node, node
from tests.support.processes import run
from tests.support.services import apparate
from tests.support.tarball import LayerItems, directory, file, hardlink, symlink
from tests.support.torture import base_layer, torture_layer
from tests.support.trees import Entry, differences, read_tree

Layer = dict[bytes, tarball.Node | bytes | None]
FORMATS = ("estargz", "zstd:chunked")
BIG_BYTES = 8 << 20
SECOND_NS = 10**9
ODD_LINKS = (b"bin/odd", b"bin/odd-link")
OF_THE_FORMAT = {b".prefetch.landmark", b".no.prefetch.landmark", b"stargz.index.json"}

pytestmark = [pytest.mark.root, pytest.mark.fuse]


def hard_layers() -> list[Layer]:
    """Everything that a tar can hold, and a file large enough to show who reads lazily."""
    upper = {path: entry for path, entry in torture_layer().items() if path != OLD_GNU_SPARSE}
    return [base_layer(), upper, {b"data/": None, b"data/big": pattern(BIG_BYTES)}]


def valid_text(path: bytes) -> bool:
    """Whether *path* is UTF-8."""
    return path.decode(errors="replace").encode() == path


def wild_layers() -> list[Layer]:
    """The hard layers without sparse files, which other converters cannot read or write again as they were."""
    return [
        {path: entry for path, entry in layer.items() if not path.startswith(b"sparse/")} for layer in hard_layers()
    ]


def foreign_layers() -> list[Layer]:
    """What the tables of contents of other tools can hold too: no name that is no UTF-8."""

    def is_possible(path: bytes, entry: tarball.Node | bytes | None) -> bool:
        return valid_text(path) and valid_text(entry.link if isinstance(entry, tarball.Node) else b"")

    return [{path: entry for path, entry in layer.items() if is_possible(path, entry)} for layer in wild_layers()]


def easy_layers() -> list[LayerItems]:
    """What ordinary images hold, for tools that cannot do everything."""
    changes: dict[str, tarball.Node | bytes | None] = {
        "data/file-00000": b"replaced\n",
        "data/.wh.file-00001": b"",
        "data/link": symlink("../bin/sh"),
        "data/one": b"1\n",
        "data/same": hardlink("data/one"),
        "data/private": file(b"p\n", mode=0o4750, uid=1000, gid=70_000, xattrs={"user.note": b"\0\xff"}),
        "opt/": directory(mode=0o1777, uid=5),
    }
    return [busybox_entries(), plain_layer(3000, 3000), changes]


@pytest.fixture(scope="module")
def hard(registry: Registry) -> str:
    return push(registry, "foreign/hard", build_image(hard_layers()))


@pytest.fixture(scope="module")
def foreign(registry: Registry) -> str:
    return push(registry, "foreign/foreign", build_image(foreign_layers()))


@pytest.fixture(scope="module")
def easy(registry: Registry) -> str:
    return push(registry, "foreign/easy", build_image(easy_layers()))


@pytest.fixture(scope="module")
def ours(hard: str, easy: str) -> Callable[[str, str], str]:
    """The conversion of a source image to a format, made once."""
    made: dict[tuple[str, str], str] = {}

    def convert(source: str, form: str) -> str:
        if (source, form) not in made:
            target = f"{source}-{form.replace(':', '-')}"
            apparate("convert", "--format", form, source, target)
            made[source, form] = target
        return made[source, form]

    return convert


@pytest.fixture(scope="module")
def running() -> Iterator[Node]:
    with clean_folder("foreign") as base, node(base, "2.4.2") as made:
        yield made


@pytest.fixture
def storage(folder: Path) -> Iterator[ContainersStorage]:
    with ContainersStorage(folder / "storage").in_use() as made:
        yield made


# --- ours, pulled by others ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "form"),
    [
        ("1.4.3", "estargz"),
        ("debian", "estargz"),
        ("debian", "zstd:chunked"),
        ("2.4.2", "estargz"),
        ("2.4.2", "zstd:chunked"),
    ],
)
def test_stock_containerd_pulls_ours_in_full(
    folder: Path, hard: str, ours: Callable[[str, str], str], release: str, form: str
) -> None:
    converted = ours(hard, form)
    began_ns = time.time_ns()
    with node(folder, release, snapshotter="overlayfs") as stock:
        daemon = stock.containerd
        for reference in (converted, hard):
            daemon.cri.pull(reference)
        one, other = folder / "one", folder / "other"
        with daemon.mounted(converted, "overlayfs", one), daemon.mounted(hard, "overlayfs", other):
            ours_there, source_there = image_tree(one), image_tree(other)
        if daemon.release.version < (1, 5):  # it forgets the mode of a hard link's header; ours has it in all of them
            for tree in (ours_there, source_there):
                for path in ODD_LINKS:
                    tree[path] = dataclasses.replace(tree[path], mode=0)
        assert differences(ours_there, source_there, began_ns) == []
        daemon.remove_all()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("tool", ["podman", "skopeo"])
def test_podman_and_skopeo_pull_ours_in_full(
    storage: ContainersStorage, hard: str, ours: Callable[[str, str], str], tool: str, form: str
) -> None:
    pull = storage.pull_with_podman if tool == "podman" else storage.pull_with_skopeo
    began_ns = time.time_ns()
    converted, source = pull(ours(hard, form)), pull(hard)
    with storage.mounted(converted) as one, storage.mounted(source) as other:
        assert differences(image_tree(one), image_tree(other), began_ns) == []


@pytest.mark.parametrize("form", FORMATS)
def test_stargz_snapshotter_mounts_ours_lazily(
    folder: Path, registry: Registry, easy: str, ours: Callable[[str, str], str], form: str
) -> None:
    converted = ours(easy, form)
    image = stored(converted)
    with foreign_tools.stargz_node(folder, registry.address) as theirs:
        daemon = theirs.containerd
        before = served_bytes(registry, image.digests)
        daemon.cri.pull(converted)
        assert theirs.mounted_layers() == len(image.digests)
        assert served_bytes(registry, image.digests) - before < image.size / 2
        began_ns = time.time_ns()
        daemon.pull_with_ctr(easy, "overlayfs")
        one, other = folder / "one", folder / "other"
        with daemon.mounted(converted, foreign_tools.STARGZ, one), daemon.mounted(easy, "overlayfs", other):
            assert differences(image_tree(one), image_tree(other), began_ns) == []
        daemon.remove_all()


# --- theirs, mounted by us ----------------------------------------------------------------------


def made_by_converter(kind: str) -> Callable[[Registry, Node, Path, str], str]:
    def make(registry: Registry, running: Node, folder: Path, source: str) -> str:
        target = f"{source}-converter-{kind}"
        foreign_tools.convert_with_estargz(running.containerd, source, target, kind)
        return target

    return make


def made_by_go_containerregistry(registry: Registry, running: Node, folder: Path, source: str) -> str:
    target = f"{source}-go-containerregistry"
    layers = [tarball.tar_bytes(layer) for layer in foreign_layers()]
    foreign_tools.push_with_go_containerregistry(folder, layers, target)
    return target


def made_by_podman(registry: Registry, running: Node, folder: Path, source: str) -> str:
    target = f"{source}-podman"
    with ContainersStorage(folder / "storage").in_use() as storage:
        image_id = storage.pull_with_podman(source)
        foreign_tools.push_with_podman(storage, image_id, target.replace("127.0.0.1", "localhost"), "zstd:chunked")
    return target


def made_by_containers_image(registry: Registry, running: Node, folder: Path, source: str) -> str:
    target = f"{source}-containers-image"
    foreign_tools.copy_with_containers_image("zstd:chunked", source, target)
    return target


# Debian's podman 4.3.1 does not get through every layer ("happened during read: short write"), and leaves out the end of
# the tar, so that nothing that unpacks what it has pushed accepts it ("wrong diff id"). What it pushed can be mounted.
MAKERS = {
    "converter-estargz": (made_by_converter("estargz"), "foreign"),
    "converter-zstdchunked": (made_by_converter("zstdchunked"), "foreign"),
    "go-containerregistry": (made_by_go_containerregistry, "foreign"),
    "podman": (made_by_podman, "easy"),
    "containers-image": (made_by_containers_image, "foreign"),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_we_mount_theirs_lazily(
    registry: Registry, running: Node, folder: Path, request: pytest.FixtureRequest, maker: str
) -> None:
    make, name = MAKERS[maker]
    source = request.getfixturevalue(name)
    began_ns = time.time_ns()
    reference = make(registry, running, folder, source)
    lazy, unpacked = lazy_and_unpacked(registry, running, folder, reference, source)
    assert differences(with_near_times(lazy, unpacked), unpacked, began_ns) == []


def test_a_layer_whose_names_their_table_has_lost_is_unpacked(registry: Registry, running: Node, folder: Path) -> None:
    running.ours.allow("layer is not loaded lazily")
    daemon = running.containerd
    source = push(registry, "foreign/wild", build_image(wild_layers()))
    reference = made_by_containers_image(registry, running, folder, source)
    began_ns = time.time_ns()
    daemon.cri.pull(reference)
    daemon.pull_with_ctr(source, "overlayfs")
    one, other = folder / "one", folder / "other"
    with daemon.mounted(reference, running.snapshotter, one), daemon.mounted(source, "overlayfs", other):
        assert differences(image_tree(one), image_tree(other), began_ns) == []
    assert "no UTF-8" in running.images_json()
    daemon.remove_all()
    running.assert_empty()


@pytest.mark.parametrize("form", FORMATS)
def test_we_mount_ours_lazily(
    registry: Registry, running: Node, folder: Path, hard: str, ours: Callable[[str, str], str], form: str
) -> None:
    began_ns = time.time_ns()
    lazy, unpacked = lazy_and_unpacked(registry, running, folder, ours(hard, form), hard)
    assert differences(lazy, unpacked, began_ns) == []


def lazy_and_unpacked(
    registry: Registry, running: Node, folder: Path, reference: str, source: str
) -> tuple[dict[bytes, Entry], dict[bytes, Entry]]:
    """The trees of *reference* mounted and of *source* unpacked.

    On the way *reference* is pulled without its data, completed, and its layer files shown to fsck.erofs.
    """
    daemon = running.containerd
    image = stored(reference)
    seen, before = len(running.remote_layers()), served_bytes(registry, image.digests)
    try:
        daemon.cri.pull(reference)
        assert set(running.remote_layers()[seen:]) == set(image.digests)
        assert served_bytes(registry, image.digests) - before < image.size / 2
        daemon.pull_with_ctr(source, "overlayfs")
        one, other = folder / "one", folder / "other"
        with daemon.mounted(reference, running.snapshotter, one), daemon.mounted(source, "overlayfs", other):
            lazy, unpacked = image_tree(one), image_tree(other)
        apparate("complete", "--config", running.ours.config, reference)
        assert_files_pass_fsck(running, image)
    finally:
        daemon.remove_all()
    running.assert_empty()
    return lazy, unpacked


def image_tree(root: Path) -> dict[bytes, Entry]:
    """The tree without the files that the format itself adds, which an unpacked layer shows and a mounted one may show."""
    return {path: entry for path, entry in read_tree(root).items() if path not in OF_THE_FORMAT}


def with_near_times(tree: dict[bytes, Entry], other: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """*tree* with the times of *other* where they are less than a second apart: tables of other tools round or cut them."""
    return {
        path: dataclasses.replace(entry, mtime_ns=other[path].mtime_ns)
        if path in other and abs(entry.mtime_ns - other[path].mtime_ns) < SECOND_NS
        else entry
        for path, entry in tree.items()
    }


def assert_files_pass_fsck(running: Node, image: Stored) -> None:
    files = sorted((running.ours.root / "layers" / "layers").glob("*/image"))
    assert len(files) >= len(set(image.digests))
    for each in files:
        run(["fsck.erofs", each])
