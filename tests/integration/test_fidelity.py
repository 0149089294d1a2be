"""One image, two ways: the tree that our drivers show is the tree that containerd's overlayfs unpacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.benchmark.workloads import WORKLOADS, layout, load
from tests.support import tarball
from tests.support.content import stored
from tests.support.distribution import Registry
from tests.support.images import Image, build_image, plain_layer, push
from tests.support.leftovers import clean_folder
from tests.support.node import Node, node
from tests.support.scope import matrix_only
from tests.support.services import apparate
from tests.support.tarball import EPOCH_NS, directory, file, symlink
from tests.support.torture import ACL, base_layer, crowded_layer, deep_image, torture_layer
from tests.support.trees import differences, read_tree

DRIVERS = ("erofs-file", "erofs-loop", "tree")
OLD_GNU_SPARSE = b"sparse/gnu"  # containerd refuses this entry type: "unhandled tar header type 83"

pytestmark = [pytest.mark.root, pytest.mark.fuse]


def torture(**options: object) -> Image:
    upper = {path: entry for path, entry in torture_layer().items() if path != OLD_GNU_SPARSE}
    return build_image([base_layer(), upper, {}], **options)  # type: ignore[arg-type]  # forwarded


def opaque_over_opaque() -> Image:
    """A directory that is emptied twice, deleted, and made again."""
    again: dict[str, tarball.Node | bytes | None] = {"d/": directory(mode=0o700, uid=7, gid=8), "d/last": b"5\n"}
    emptied: dict[str, bytes | None] = {"d/": None, "d/.wh..wh..opq": b"", "d/mine": b"2\n"}
    return build_image(
        [
            {"d/": None, "d/a": b"1\n", "d/sub/": None, "d/sub/b": b"1\n"},
            emptied,
            {"d/": None, "d/.wh..wh..opq": b"", "d/sub/": None, "d/sub/c": b"3\n"},
            {".wh.d": b""},
            again,
        ]
    )


def metadata_only_changes() -> Image:
    """Later layers that change nothing but owner, mode and time of what lies below."""
    return build_image(
        [
            {"etc/": None, "etc/passwd": b"root\n", "link": symlink("etc/passwd")},
            {"etc/": directory(mode=0o711, mtime_ns=EPOCH_NS + 5)},
            {"etc/": directory(mode=0o711), "etc/passwd": file(b"root\n", mode=0o640), "link": symlink("etc/shadow")},
        ]
    )


def implied_directories() -> Image:
    """Later layers put things into directories without naming them; unpacking copies these from below."""
    xattrs = {"user.kept": b"1", "trusted.one": b"1", "system.posix_acl_access": ACL}
    base: dict[str, tarball.Node | bytes | None] = {
        "etc/": directory(mode=0o711, uid=3, xattrs=xattrs),
        "etc/deep/": directory(mode=0o2750, gid=9),
        "usr/lib/": directory(mode=0o701, uid=4),
        "lib": symlink("usr/lib"),
        "opt/a/": directory(mode=0o700),
        "opt/b/": directory(mode=0o700),
        "opt/c/": directory(mode=0o700, uid=5),
        "srv/here/": directory(mode=0o1777),
    }
    again: dict[str, tarball.Node | bytes | None] = {"srv/": directory(mode=0o750), "opt/a/": directory(mode=0o711)}
    return build_image(
        [
            base,
            {"etc/passwd": b"root\n", "new/made/file": b"1\n", "opt/.wh.b": b"", "opt/c/.wh..wh..opq": b""},
            again,
            {"etc/deep/x/file": b"2\n", "lib/file": b"3\n", "opt/b/file": b"4\n", "opt/c/d/file": b"5\n"},
            {"srv/here/.wh.nothing": b"", "opt/a/file": b"6\n", "new/file": b"7\n"},
        ]
    )


SMALL: dict[str, Callable[[], Image]] = {
    "torture": torture,
    "torture-docker": lambda: torture(docker=True),
    "empty-layers": lambda: build_image([{}, {"only": b"1\n"}, {}]),
    "nothing-at-all": lambda: build_image([{}]),
    "120-layers": deep_image,
    "100000-entries": lambda: build_image([crowded_layer()]),
    "opaque": opaque_over_opaque,
    "metadata": metadata_only_changes,
    "implied-directories": implied_directories,
    "many-files": lambda: build_image([plain_layer(3000, 700), plain_layer(3000, 700, seed=1)]),
    "large-files": lambda: build_image([plain_layer(4, 3_000_000)]),
}


@pytest.fixture(scope="module", params=DRIVERS)
def running(request: pytest.FixtureRequest) -> Iterator[Node]:
    sections = {"loader": {"driver": str(request.param)}}
    with clean_folder("fidelity") as folder, node(folder, "2.4.2", sections=sections) as made:
        yield made


@pytest.fixture(scope="module")
def pushed(registry: Registry) -> Callable[[str, Image], tuple[str, str]]:
    """Push an image and its conversion once for all drivers; returns both references."""
    done: dict[str, tuple[str, str]] = {}

    def make(name: str, image: Image) -> tuple[str, str]:
        if name not in done:
            source = push(registry, f"fidelity/{name}", image)
            apparate("convert", source, f"{source}-apparate")
            done[name] = (source, f"{source}-apparate")
        return done[name]

    return make


@pytest.mark.parametrize("name", SMALL)
def test_tree_equals_that_of_overlayfs(
    running: Node, folder: Path, pushed: Callable[[str, Image], tuple[str, str]], name: str
) -> None:
    source, converted = pushed(name, SMALL[name]())
    assert_same_tree(running, folder, source, converted)


@matrix_only
@pytest.mark.parametrize("name", ["python", "debian", "node"])
def test_tree_of_real_image_equals_that_of_overlayfs(
    running: Node, folder: Path, pushed: Callable[[str, Image], tuple[str, str]], name: str
) -> None:

    source, converted = pushed(f"real-{name}", load(layout(WORKLOADS[name])))
    assert_same_tree(running, folder, source, converted)


def assert_same_tree(running: Node, folder: Path, source: str, converted: str) -> None:
    daemon = running.containerd
    began_ns = time.time_ns()
    seen_before = len(running.remote_layers())
    try:
        daemon.cri.pull(converted)
        assert set(running.remote_layers()[seen_before:]) == set(stored(converted).digests)
        daemon.pull_with_ctr(source, "overlayfs")
        ours, theirs = folder / "ours", folder / "theirs"
        with daemon.mounted(converted, running.snapshotter, ours), daemon.mounted(source, "overlayfs", theirs):
            assert differences(read_tree(ours), read_tree(theirs), began_ns) == []
    finally:
        daemon.remove_all()
    running.assert_empty()
