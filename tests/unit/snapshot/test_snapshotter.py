"""Snapshots: what containerd is told of a lazy, an odd and an ordinary image, and what is mounted, measured, removed."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.fake_loader import FakeLoader
from tests.support.processes import wait_until
from tests.unit.snapshot.conftest import MakeSnapshotter
from tests.unit.snapshot.helpers import Image, lowers, pull

from apparate.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from apparate.oci.digest import Digest
from apparate.snapshot.model import Info, Kind, Origin
from apparate.snapshot.remote import Usage
from apparate.snapshot.snapshotter import Snapshotter


def test_a_lazy_image_is_committed_layer_by_layer_and_mounted_for_a_container(
    snapshotter: Snapshotter, fake: FakeLoader
) -> None:
    image = Image(fake, "lazy lazy lazy")
    top, how = pull(snapshotter, image)
    assert how == ["here"] * 3
    assert fake.mounted == {}
    mounts = snapshotter.prepare("k8s.io/9/container", top, {})
    assert [path.name for path in lowers(mounts)] == ["fs"] * 3
    assert [sorted(os.listdir(path)) for path in lowers(mounts)] == [["file2"], ["file1"], ["file0"]]
    assert snapshotter.mounts("k8s.io/9/container") == mounts
    snapshotter.remove("k8s.io/9/container")
    wait_until(lambda: not fake.mounted, "layers are unmounted when no container uses them")
    assert len(fake.known) == 3


def test_a_layer_that_occurs_twice_is_a_lower_directory_once(snapshotter: Snapshotter, fake: FakeLoader) -> None:
    image = Image(fake, "lazy lazy")
    image.layers.append(image.layers[0])
    image.chain_ids.append("sha256:" + hashlib.sha256(b"top").hexdigest())
    top, how = pull(snapshotter, image)
    assert how == ["here"] * 3
    targets = [path.resolve() for path in lowers(snapshotter.prepare("k8s.io/9/container", top, {}))]
    assert len(targets) == len(set(targets)) == 2
    assert (targets[0] / "file0").exists()


def test_removing_the_image_leaves_nothing(snapshotter: Snapshotter, fake: FakeLoader, tmp_path: Path) -> None:
    image = Image(fake, "lazy odd lazy odd")
    top, how = pull(snapshotter, image)
    assert how == ["here", "here", "here", "unpacked by containerd"]
    snapshotter.prepare("c", top, {})
    snapshotter.remove("c")
    by_name = {info.name: info for info in snapshotter.walk()}
    while top:
        snapshotter.remove(top)
        top = by_name[top].parent
    snapshotter.cleanup()
    assert list(snapshotter.walk()) == []
    assert list((tmp_path / "root" / "snapshots").iterdir()) == []
    assert list((tmp_path / "root" / "removed").iterdir()) == []
    assert (fake.mounted, fake.known) == ({}, {})


def test_an_odd_layer_is_unpacked_here_and_those_above_stay_lazy(snapshotter: Snapshotter, fake: FakeLoader) -> None:
    image = Image(fake, "lazy odd lazy")
    top, _how = pull(snapshotter, image)
    origins = [record.origin for record in snapshotter.records()]
    assert origins == [Origin.LAZY, Origin.UNPACKED, Origin.LAZY]
    assert "no table of contents" in snapshotter.records()[1].reason
    mounts = snapshotter.prepare("c", top, {})
    assert (lowers(mounts)[1] / "unpacked").read_bytes() == image.layers[1].blob
    assert snapshotter.usage(snapshotter.records()[1].info.name).inodes == 2


@pytest.mark.parametrize("failure", ["fetch", "digest"])
def test_an_unpack_that_fails_leaves_the_layer_to_containerd(
    snapshotter: Snapshotter, fake: FakeLoader, failure: str, tmp_path: Path
) -> None:
    image = Image(fake, "odd lazy")
    if failure == "fetch":
        fake.fail["fetch"] = Unavailable("gone")
    else:
        image.chain_ids[0] = str(Digest.of(b"something else"))
    mounts = snapshotter.prepare("ns/1/extract-1 x", "", image.labels(0))
    assert mounts[0].type == "bind"
    assert list(Path(mounts[0].source).iterdir()) == []
    record = snapshotter.records()[0]
    assert record.info.kind is Kind.ACTIVE
    assert "unpacking it here failed" in record.reason
    snapshotter.cleanup()
    assert len(list((tmp_path / "root" / "snapshots").iterdir())) == 1


def test_an_ordinary_image_behaves_as_with_overlayfs(snapshotter: Snapshotter, fake: FakeLoader) -> None:
    image = Image(fake, "odd odd")
    top, how = pull(snapshotter, image)
    assert how == ["unpacked by containerd"] * 2
    mounts = snapshotter.prepare("c", top, {})
    assert mounts[0].options[0] == "index=off"
    assert len(lowers(mounts)) == 2
    assert fake.count("mount") == fake.count("resolve") == 0


def test_a_loader_that_is_away_makes_new_images_ordinary(snapshotter: Snapshotter, fake: FakeLoader) -> None:
    fake.fail["resolve"] = fake.fail["layers"] = Unavailable("the loader does not answer")
    _top, how = pull(snapshotter, Image(fake, "lazy lazy"))
    assert how == ["unpacked by containerd"] * 2


def test_a_loader_that_is_away_makes_containers_of_lazy_images_wait(
    snapshotter: Snapshotter, fake: FakeLoader, tmp_path: Path
) -> None:
    top, _how = pull(snapshotter, Image(fake, "lazy"))
    fake.fail["mount"] = Unavailable("away")
    for make in (snapshotter.prepare, snapshotter.view):
        with pytest.raises(Unavailable):
            make("c", top, {})
    with pytest.raises(NotFound):
        snapshotter.stat("c")
    assert list((tmp_path / "root" / "snapshots").iterdir()) == []
    del fake.fail["mount"]
    snapshotter.prepare("c", top, {})


def test_two_namespaces_share_a_lazy_layer(snapshotter: Snapshotter, fake: FakeLoader) -> None:
    image = Image(fake, "lazy lazy")
    first, _how = pull(snapshotter, image, "k8s.io")
    second, _how = pull(snapshotter, image, "moby")
    assert first == second
    assert fake.count("resolve") == 2


def test_one_image_lazily_here_and_eagerly_there(make: MakeSnapshotter, fake: FakeLoader, tmp_path: Path) -> None:
    mode = tmp_path / "mode"
    snapshotter = make(mode_file=mode)
    image = Image(fake, "lazy lazy")
    for order, namespace in enumerate(("lazy", "ordinary", "lazy")):
        mode.write_text(namespace)
        top, how = pull(snapshotter, image, f"{namespace}{order}")
        snapshotter.prepare(f"container {order}", top, {})
        assert set(how) <= {"here", "unpacked by containerd"}
    assert len({record.info.name for record in snapshotter.records()}) == len(snapshotter.records())


def test_concurrent_pulls_of_one_layer_resolve_it_once(snapshotter: Snapshotter, fake: FakeLoader) -> None:
    image = Image(fake, "lazy")
    gate = threading.Barrier(2)
    fake.before["resolve"] = lambda _: gate.wait(10)

    def attempt(number: int) -> str:
        try:
            snapshotter.prepare(f"ns{number}/1/extract-{number} x", "", image.labels(0))
        except AlreadyExists:
            return "here"
        return "mounts"

    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(attempt, number) for number in range(8)]
        gate.wait(10)
        assert {result.result() for result in results} == {"here"}
    assert len(snapshotter.records()) == 1
    assert fake.count("resolve") == 1


def test_a_pods_label_does_not_make_a_container_remote(snapshotter: Snapshotter, fake: FakeLoader) -> None:
    image = Image(fake, "lazy")
    mounts = snapshotter.prepare("k8s.io/4/3f0a9c2e", "", image.labels(0))
    assert mounts[0].type == "bind"
    assert fake.calls == [] or fake.count("resolve") == 0


def test_commit_is_measured_once_and_afterwards(snapshotter: Snapshotter) -> None:
    (mount,) = snapshotter.prepare("key", "", {})
    Path(mount.source, "file").write_bytes(b"x" * 5000)
    assert snapshotter.usage("key").inodes == 2
    snapshotter.commit("name", "key", {"a": "b"})
    assert snapshotter.stat("name").labels == {"a": "b"}
    usage = snapshotter.usage("name")
    assert usage.inodes == 2
    Path(mount.source, "later").touch()
    assert snapshotter.usage("name") == usage
    wait_until(lambda: snapshotter.records()[0].usage == usage, "the usage is stored")


def test_usage_of_a_shared_lazy_layer_is_counted_once(snapshotter: Snapshotter, fake: FakeLoader) -> None:
    image = Image(fake, "lazy lazy")
    image.layers[1] = image.layers[0]
    fake.manifests[image.manifest] = fake.manifests[image.manifest][:1] * 2
    pull(snapshotter, image)
    first, second = (record.info.name for record in snapshotter.records())
    assert snapshotter.usage(first) == Usage(1, 1)
    assert snapshotter.usage(second) == Usage()
    fake.fail["usage"] = Unavailable("away")
    assert snapshotter.usage(first) == Usage()


def test_mounts_of_a_committed_snapshot_are_refused(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("key", "", {})
    snapshotter.commit("name", "key", {})
    with pytest.raises(FailedPrecondition):
        snapshotter.mounts("name")
    with pytest.raises(NotFound):
        snapshotter.mounts("key")


@pytest.mark.parametrize(
    ("paths", "labels", "result"),
    [
        ([], {"x": "1"}, {"x": "1"}),
        (["labels"], {"x": "1"}, {"x": "1"}),
        (["labels.a.b"], {"a.b": "2", "ignored": "3"}, {"a.b": "2", "keep": "k"}),
        (["labels.keep"], {}, {"a.b": "1"}),
        (["labels.keep"], {"keep": ""}, {"a.b": "1"}),
        (["labels.new", "labels.a.b"], {"new": "n"}, {"keep": "k", "new": "n"}),
    ],
)
def test_update_follows_its_mask(
    snapshotter: Snapshotter, paths: list[str], labels: dict[str, str], result: dict[str, str]
) -> None:
    snapshotter.prepare("key", "", {"a.b": "1", "keep": "k", "empty": ""})
    before = snapshotter.stat("key")
    after = snapshotter.update(Info("key", "nonsense", Kind.COMMITTED, 0, 0, labels), paths)
    assert after == replace(before, labels=result, updated_ns=after.updated_ns)
    assert after.updated_ns > before.updated_ns
    assert snapshotter.stat("key") == after


@pytest.mark.parametrize("path", ["parent", "name", "labelsx", "kind"])
def test_nothing_but_labels_can_be_updated(snapshotter: Snapshotter, path: str) -> None:
    snapshotter.prepare("key", "", {})
    with pytest.raises(InvalidArgument):
        snapshotter.update(Info("key", "", Kind.ACTIVE, 0, 0), [path])


def test_a_layer_of_a_pull_under_way_is_not_dropped(snapshotter: Snapshotter, fake: FakeLoader) -> None:
    image = Image(fake, "lazy lazy")
    ahead = fake.watch_resolve(image.layers[1].digest)
    with pytest.raises(AlreadyExists):
        snapshotter.prepare("ns/1/extract-1 x", "", image.labels(0))
    assert ahead.wait(10)
    wait_until(lambda: len(fake.known) == 2, "both are resolved")
    snapshotter.cleanup()
    assert len(fake.known) == 2


def test_a_busy_layer_is_dropped_when_it_can_be(snapshotter: Snapshotter, fake: FakeLoader) -> None:
    image = Image(fake, "lazy")
    top, _how = pull(snapshotter, image)
    snapshotter.prepare("c", top, {})
    fake.busy.add(image.layers[0].digest)
    snapshotter.remove("c")
    snapshotter.remove(top)
    snapshotter.cleanup()
    assert len(fake.known) == 1
    fake.busy.clear()
    snapshotter.cleanup()
    wait_until(lambda: not fake.known, "the layer is dropped on a later try")


def test_mode_ordinary_leaves_everything_to_containerd(make: MakeSnapshotter, fake: FakeLoader) -> None:
    snapshotter = make(mode="ordinary")
    _top, how = pull(snapshotter, Image(fake, "lazy"))
    assert how == ["unpacked by containerd"]
    assert fake.count("resolve") == 0


def test_cleanup_does_not_postpone_unmounting(make: MakeSnapshotter, fake: FakeLoader) -> None:
    snapshotter = make(unmount_idle_s=0.2)
    top, _how = pull(snapshotter, Image(fake, "lazy"))
    snapshotter.prepare("c", top, {})
    snapshotter.remove("c")

    def unmounted_while_cleaning() -> bool:
        snapshotter.cleanup()
        return not fake.mounted

    wait_until(unmounted_while_cleaning, "the idle layer is unmounted", timeout_s=10)
