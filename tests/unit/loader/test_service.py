"""What is pinned is what is mounted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.layers import FakeRegistry
from tests.unit.layer.helpers import resolve, sample_layer

from apparate.format.prefetch import PrefetchRange
from apparate.layer.image import LayerImage
from apparate.layer.manager import LayerManager
from apparate.layer.settings import LayerSettings
from apparate.loader.erofs_mount import Driver
from apparate.loader.mounts import LayerMounts
from apparate.loader.service import LoaderService
from apparate.loader.settings import LoaderSettings
from apparate.registry.deadline import Deadline

DONE_S = 30.0


class NotingCourier:
    """Keeps what was to be mounted."""

    def __init__(self) -> None:
        self.sources: list[str] = []

    def mount(self, _driver: Driver, source: str, _target: str, _read_ahead_kb: int) -> str:
        self.sources.append(source)
        return ""


class SlowMounts(LayerMounts):
    """Mounts that take so long that the layer becomes complete meanwhile."""

    def mount(self, image: LayerImage, *, local: bool) -> object:  # type: ignore[override]  # one kind of image
        image.complete(Deadline.after(DONE_S))
        assert image.is_complete
        return super().mount(image, local=local)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[LayerManager]:
    settings = LayerSettings(root=tmp_path / "layers", disk_reserve_bytes=0, background_after_s=0.0)
    made = LayerManager(settings, None, sources=REGISTRY.source)  # type: ignore[arg-type]  # not asked for a client
    yield made
    made.close()


REGISTRY = FakeRegistry()


@pytest.mark.parametrize("early", [True, False])
def test_what_the_kernel_reads_itself_is_pinned_so(manager: LayerManager, tmp_path: Path, *, early: bool) -> None:
    image, courier = resolve(manager, REGISTRY, sample_layer(1)), NotingCourier()
    if early:
        image.complete(Deadline.after(DONE_S))
    settings = LoaderSettings(run_dir=tmp_path / "run")
    mounts = SlowMounts(settings, Driver.EROFS_FILE, courier, "0:39")  # type: ignore[arg-type]  # takes notes only
    LoaderService(manager, mounts, None, DONE_S).mount(image.digest)  # type: ignore[arg-type]  # no client is needed
    assert manager.pins() == {image.digest: early}
    assert (courier.sources == [str(image.path)]) is early


def test_a_layer_that_is_mounted_already_is_not_prefetched_again(
    manager: LayerManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = resolve(manager, REGISTRY, sample_layer(2, profile=(PrefetchRange(b"a-large"),)))
    begun: list[LayerImage] = []
    prefetch = LayerImage.prefetch

    def noted(itself: LayerImage) -> None:
        begun.append(itself)
        prefetch(itself)

    monkeypatch.setattr(LayerImage, "prefetch", noted)
    monkeypatch.setattr("apparate.loader.kernel.mount_at", lambda _target: object())
    settings = LoaderSettings(run_dir=tmp_path / "run")
    mounts = LayerMounts(settings, Driver.EROFS_FILE, NotingCourier(), "0:39")  # type: ignore[arg-type]  # takes notes only
    service = LoaderService(manager, mounts, None, DONE_S)  # type: ignore[arg-type]  # no client is needed
    for _ in range(3):
        service.mount(image.digest)
    assert begun == [image]
    successor = LoaderService(manager, mounts, None, DONE_S)  # type: ignore[arg-type]  # no client is needed
    image.prefetch_begun = False  # as after a restart
    successor.mount(image.digest)
    assert begun == [image, image]
