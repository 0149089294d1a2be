from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.fake_loader import FakeLayer, FakeLoader

from apparate.errors import FailedPrecondition, FormatError, Unavailable
from apparate.oci.digest import Digest
from apparate.snapshot.layer_mounts import LayerMounts
from apparate.snapshot.remote import ResolveRequest


@pytest.fixture
def fake(tmp_path: Path) -> FakeLoader:
    return FakeLoader(tmp_path)


@pytest.fixture
def in_use() -> set[Digest]:
    return set()


def resolve(fake: FakeLoader, layer: Digest) -> None:
    fake.resolve(ResolveRequest("r", layer))


@pytest.fixture
def mounts(fake: FakeLoader, in_use: set[Digest]) -> Iterator[LayerMounts]:
    made = LayerMounts(fake, lambda: set(in_use), lambda layer: resolve(fake, layer))
    yield made
    made.close()


def known(fake: FakeLoader, *names: str) -> list[Digest]:
    digests = [fake.add(FakeLayer(name.encode(), {"file": name.encode()})) for name in names]
    for digest in digests:
        fake.resolve(ResolveRequest("r", digest))
    return digests


def test_held_layers_are_mounted_each_once(mounts: LayerMounts, fake: FakeLoader) -> None:
    layers = known(fake, "a", "b", "c")
    with mounts.held([*layers, layers[0]]) as paths:
        assert set(paths) == set(layers)
        assert Path(paths[layers[0]], "file").read_bytes() == b"a"
    assert fake.count("mount") == 3


def test_a_held_layer_is_not_released(mounts: LayerMounts, fake: FakeLoader) -> None:
    (layer,) = known(fake, "a")
    with mounts.held([layer]), mounts.held([layer]):
        assert not mounts.release(layer)
    assert mounts.release(layer)
    assert fake.mounted == {}


def test_a_layer_of_a_container_is_not_released(mounts: LayerMounts, fake: FakeLoader, in_use: set[Digest]) -> None:
    (layer,) = known(fake, "a")
    in_use.add(layer)
    with mounts.held([layer]):
        pass
    assert not mounts.release(layer)
    in_use.clear()
    assert mounts.release(layer)


def test_a_failed_mount_holds_nothing(mounts: LayerMounts, fake: FakeLoader) -> None:
    layers = known(fake, "a", "b")
    fake.fail["mount"] = Unavailable("away")
    with pytest.raises(Unavailable), mounts.held(layers):
        raise AssertionError("not reached")
    del fake.fail["mount"]
    assert all(mounts.release(layer) for layer in layers)


def test_a_busy_mount_stays(mounts: LayerMounts, fake: FakeLoader) -> None:
    (layer,) = known(fake, "a")
    with mounts.held([layer]):
        pass
    fake.busy.add(layer)
    with pytest.raises(FailedPrecondition):
        mounts.release(layer)
    assert layer in fake.mounted


def test_whoever_comes_while_it_is_unmounted_mounts_it_again(mounts: LayerMounts, fake: FakeLoader) -> None:
    (layer,) = known(fake, "a")
    with mounts.held([layer]):
        pass
    unmounting, go_on = threading.Event(), threading.Event()

    def hold(_layer: object) -> None:
        unmounting.set()
        assert go_on.wait(10)

    fake.before["unmount"] = hold
    releaser = threading.Thread(target=mounts.release, args=(layer,))
    releaser.start()
    assert unmounting.wait(10)
    inside = threading.Event()

    def container() -> None:
        with mounts.held([layer]) as paths:
            assert Path(paths[layer], "file").exists()
            inside.set()

    comer = threading.Thread(target=container)
    comer.start()
    assert not inside.is_set()
    go_on.set()
    assert inside.wait(10)
    comer.join()
    releaser.join()


@pytest.mark.parametrize("error", [None, FormatError("index", "magic", "damaged")])
def test_a_layer_that_the_loader_has_lost_is_resolved_again(
    mounts: LayerMounts, fake: FakeLoader, error: FormatError | None
) -> None:
    (layer,) = known(fake, "a")
    if error is None:
        fake.forget(layer)
    else:
        fake.fail["mount"] = error
        fake.before["resolve"] = lambda _: fake.fail.clear()
    with mounts.held([layer]) as paths:
        assert Path(paths[layer], "file").exists()
