from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.fake_loader import FakeLayer, FakeLoader
from tests.support.processes import wait_until

from apparate.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.snapshot.directories import SnapshotDirectories
from apparate.snapshot.metastore import METADATA_NAME, Metastore
from apparate.snapshot.model import Info, Kind, Mount, Origin
from apparate.snapshot.overlay import Overlay
from apparate.snapshot.reconcile import LOST_NAME, metadata_lost, reconcile_directories
from apparate.snapshot.remote import ManifestLayer, ResolveRequest, Usage
from apparate.snapshot.settings import SnapshotterSettings
from apparate.snapshot.snapshotter import Parts, Snapshotter

REF = "registry/app:1"
MANIFEST = Digest.of(b"manifest")
Settings = Callable[..., Snapshotter]


def applier(blob: Iterator[bytes], directory: Path, lowers: Sequence[Path]) -> Digest:
    """Write the blob as one file; its own digest is the diff id."""
    data = b"".join(blob)
    (directory / "unpacked").write_bytes(data)
    assert all(lower.is_dir() for lower in lowers)
    return Digest.of(data)


@pytest.fixture
def fake(tmp_path: Path) -> FakeLoader:
    return FakeLoader(tmp_path / "layers")


@pytest.fixture
def make(tmp_path: Path, fake: FakeLoader) -> Iterator[Settings]:
    made: list[Snapshotter] = []

    def start(**changes: object) -> Snapshotter:
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        settings = replace(SnapshotterSettings(root=root, unmount_idle_s=0.0), **changes)  # type: ignore[arg-type]  # fields by name
        lost = metadata_lost(root)
        store, directories = Metastore(root / METADATA_NAME), SnapshotDirectories(root)
        reconcile_directories(store, directories, lost=lost)
        snapshotter = Snapshotter(Parts(settings, store, directories, Overlay(("index=off",)), fake, applier, lost))
        snapshotter.start()
        made.append(snapshotter)
        return snapshotter

    yield start
    for snapshotter in made:
        snapshotter.close()


@pytest.fixture
def snapshotter(make: Settings) -> Snapshotter:
    return make()


class Image:
    """An image in the fake registry, pulled as containerd pulls it."""

    def __init__(self, fake: FakeLoader, kinds: str) -> None:
        self.layers = [
            FakeLayer(f"layer {n}".encode(), {f"file{n}": b"x" * (n + 1)}, lazy=kind == "lazy")
            for n, kind in enumerate(kinds.split())
        ]
        self.manifest = Digest.of(b"manifest")
        for layer in self.layers:
            fake.add(layer)
        fake.manifests[self.manifest] = [
            ManifestLayer(layer.digest, names.OCI_LAYER_GZIP, 1, self._annotations(layer)) for layer in self.layers
        ]
        self.chain_ids: list[str] = []
        for layer in self.layers:
            diff_id = str(layer.digest)
            below = self.chain_ids[-1] if self.chain_ids else ""
            self.chain_ids.append(
                "sha256:" + hashlib.sha256(f"{below} {diff_id}".encode()).hexdigest() if below else diff_id
            )

    @staticmethod
    def _annotations(layer: FakeLayer) -> dict[str, str]:
        return {names.TOC_DIGEST: "sha256:toc"} if layer.lazy else {}

    def labels(self, number: int) -> dict[str, str]:
        return {
            names.TARGET_SNAPSHOT: self.chain_ids[number],
            names.CRI_IMAGE_REF: REF,
            names.CRI_MANIFEST_DIGEST: str(self.manifest),
            names.CRI_LAYER_DIGEST: str(self.layers[number].digest),
            names.CRI_IMAGE_LAYERS: ",".join(str(layer.digest) for layer in self.layers[number:]),
            **self._annotations(self.layers[number]),
        }


def pull(snapshotter: Snapshotter, image: Image, namespace: str = "k8s.io") -> tuple[str, list[str]]:
    """Unpack *image* as containerd's metadata layer and unpacker do; return the top name and how each layer went."""
    parent, how = "", []
    for number, chain_id in enumerate(image.chain_ids):
        key = f"{namespace}/{number}/extract-{number}-x {chain_id}"
        labels = image.labels(number)
        try:
            snapshotter.prepare(key, parent, labels)
        except AlreadyExists:
            matches = [
                info
                for info in snapshotter.walk([f'labels."containerd.io/snapshot.ref"=={chain_id},parent=="{parent}"'])
                if info.kind is Kind.COMMITTED
            ]
            assert len(matches) == 1
            parent = matches[0].name
            how.append("here")
        else:
            name = f"{namespace}/{100 + number}/{chain_id}"
            snapshotter.commit(name, key, labels)
            parent = name
            how.append("unpacked by containerd")
    return parent, how


def lowers(mounts: Sequence[Mount]) -> list[Path]:
    (mount,) = mounts
    (option,) = [option for option in mount.options if option.startswith("lowerdir=")]
    return [Path(path) for path in option.removeprefix("lowerdir=").split(":")]


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


def test_one_image_lazily_here_and_eagerly_there(make: Settings, fake: FakeLoader, tmp_path: Path) -> None:
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


def test_a_restart_finds_everything_and_asks_nobody(make: Settings, fake: FakeLoader, tmp_path: Path) -> None:
    first = make()
    top, _how = pull(first, Image(fake, "lazy odd lazy"))
    mounts = first.prepare("container", top, {})
    infos = list(first.walk())
    first.close()
    for orphan in ("99", "new-123"):
        (tmp_path / "root" / "snapshots" / orphan).mkdir()
    fake.fail["status"] = fake.fail["mount"] = Unavailable("no loader after the reboot")
    second = make()
    assert list(second.walk()) == infos
    wait_until(lambda: fake.count("status") > 1, "the loader is asked in the background")
    del fake.fail["status"], fake.fail["mount"]
    assert second.mounts("container") == mounts
    assert not (tmp_path / "root" / "snapshots" / "99").exists()
    assert len(fake.mounted) == 2


def test_a_restart_after_a_power_failure_makes_empty_directories_again(make: Settings, tmp_path: Path) -> None:
    first = make()
    (mount,) = first.prepare("key", "", {})
    first.close()
    Path(mount.source).rmdir()
    second = make()
    (again,) = second.mounts("key")
    assert Path(again.source).is_dir()


def test_when_the_metadata_are_lost_nothing_is_removed_until_they_are_repaired(
    make: Settings, fake: FakeLoader, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    image = Image(fake, "lazy odd lazy")
    first = make()
    top, _how = pull(first, image)
    first.prepare("container", top, {})
    first.close()
    for file in root.glob(f"{METADATA_NAME}*"):
        file.unlink()
    before = sorted(path.name for path in (root / "snapshots").iterdir())
    mounted, known = dict(fake.mounted), dict(fake.known)
    for _start in range(2):  # the second finds a store like any other
        again = make()
        again.cleanup()
        (mount,) = again.prepare("new", "", {})
        assert Path(mount.source).parent.name not in before
        again.remove("new")
        again.cleanup()
        assert sorted(path.name for path in (root / "snapshots").iterdir()) == before
        assert (fake.mounted, fake.known) == (mounted, known)
        again.close()
    (root / LOST_NAME).unlink()
    repaired = make()
    repaired.cleanup()
    assert list((root / "snapshots").iterdir()) == []
    assert (fake.mounted, fake.known) == ({}, {})


def test_a_new_root_has_lost_nothing(make: Settings, tmp_path: Path) -> None:
    make().close()
    make()
    assert not (tmp_path / "root" / LOST_NAME).exists()


def test_layers_that_nobody_refers_to_are_dropped_at_start(make: Settings, fake: FakeLoader) -> None:
    stray = fake.add(FakeLayer(b"stray"))
    fake.resolve(ResolveRequest(REF, stray))
    fake.mount(stray)
    make()
    wait_until(lambda: not fake.known, "the stray layer is dropped")


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


def test_mode_ordinary_leaves_everything_to_containerd(make: Settings, fake: FakeLoader) -> None:
    snapshotter = make(mode="ordinary")
    _top, how = pull(snapshotter, Image(fake, "lazy"))
    assert how == ["unpacked by containerd"]
    assert fake.count("resolve") == 0


def test_a_loader_that_lost_its_layers_gets_them_again(snapshotter: Snapshotter, fake: FakeLoader) -> None:
    image = Image(fake, "lazy lazy")
    top, _how = pull(snapshotter, image)
    fake.known.clear()
    assert len(lowers(snapshotter.prepare("c", top, {}))) == 2
    assert set(fake.known) == {layer.digest for layer in image.layers}


def test_cleanup_does_not_postpone_unmounting(make: Settings, fake: FakeLoader) -> None:
    snapshotter = make(unmount_idle_s=0.2)
    top, _how = pull(snapshotter, Image(fake, "lazy"))
    snapshotter.prepare("c", top, {})
    snapshotter.remove("c")

    def unmounted_while_cleaning() -> bool:
        snapshotter.cleanup()
        return not fake.mounted

    wait_until(unmounted_while_cleaning, "the idle layer is unmounted", timeout_s=10)
