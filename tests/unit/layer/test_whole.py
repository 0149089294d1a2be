"""Registries that give a layer only as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support.layers import FakeBody, FakeRegistry, Refused
from tests.support.processes import wait_until
from tests.unit.layer.conftest import ManagerFactory, replaced
from tests.unit.layer.helpers import REFERENCE, files_in, resolve, sample_layer, whole_image

from apparate.errors import IntegrityError, Unavailable
from apparate.layer.manager import LayerManager
from apparate.layer.model import LayerRequest
from apparate.layer.settings import LayerSettings
from apparate.registry.deadline import Deadline
from apparate.registry.ranges import RangesUnsupported


def no_ranges(size: int) -> object:
    def fault(offset: int, length: int, _right: bytes) -> None:
        if (offset, length) != (0, size):
            raise RangesUnsupported("the server sends the whole blob")

    return fault


def test_a_layer_without_ranges_is_downloaded_once_and_kept(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    layer = sample_layer()
    digest = registry.add(layer)
    registry.fault = no_ranges(len(layer.blob))  # type: ignore[assignment] # closure
    manager = open_manager(settings)
    manager.resolve(LayerRequest(REFERENCE, digest, layer.annotations))
    image = manager.attach(digest)
    image.complete(Deadline.after(10))
    assert files_in(whole_image(image)) == layer.files
    assert [request for request in registry.requests if request == (0, len(layer.blob))] == [(0, len(layer.blob))]
    wait_until(lambda: not image.path.with_name("blob").exists(), "the spooled blob to go")


def test_another_layer_of_that_registry_is_not_asked_for_in_parts(
    manager: LayerManager, registry: FakeRegistry
) -> None:
    first, second = sample_layer(1), sample_layer(2)
    for layer in (first, second):
        registry.fault = no_ranges(len(layer.blob))  # type: ignore[assignment] # closure
        registry.requests.clear()
        manager.resolve(LayerRequest(REFERENCE, registry.add(layer), layer.annotations))
    assert registry.requests == [(0, len(second.blob))]


def test_ranges_that_cease_to_work_lead_to_one_download(manager: LayerManager, registry: FakeRegistry) -> None:
    layer = sample_layer(large=30)
    image = resolve(manager, registry, layer)
    image.read(image.metadata_size, 4096)
    registry.requests.clear()
    registry.fault = no_ranges(len(layer.blob))  # type: ignore[assignment] # closure
    with ThreadPoolExecutor(6) as pool:
        contents = set(pool.map(lambda _: whole_image(image), range(6)))
    assert [files_in(content) for content in contents] == [layer.files]
    assert registry.requests.count((0, len(layer.blob))) == 1


def test_a_download_that_breaks_is_begun_again(manager: LayerManager, registry: FakeRegistry) -> None:
    layer = sample_layer()
    image = resolve(manager, registry, layer)
    breaks = iter(range(2))

    def fault(offset: int, length: int, right: bytes) -> FakeBody | None:
        if (offset, length) != (0, len(layer.blob)):
            raise RangesUnsupported("the server sends the whole blob")
        if next(breaks, None) is not None:
            return FakeBody(right[: length // 2], 0, length)
        return None

    registry.fault = fault
    assert files_in(whole_image(image)) == layer.files


def test_a_page_in_place_of_the_layer_is_not_believed(manager: LayerManager, registry: FakeRegistry) -> None:
    layer = sample_layer()
    image = resolve(manager, registry, layer)
    pages = iter(range(2))

    def fault(offset: int, length: int, right: bytes) -> FakeBody | None:
        if next(pages, None) is None:
            return None
        if (offset, length) != (0, len(layer.blob)):
            raise RangesUnsupported("the server sends something whole")
        return FakeBody(b"<html>sorry</html>" * 1000, 0, 18000)

    registry.fault = fault
    assert files_in(whole_image(image)) == layer.files


def test_a_whole_layer_with_another_digest_is_refused_and_leaves_nothing(
    manager: LayerManager, registry: FakeRegistry
) -> None:
    layer = sample_layer()
    digest = registry.add(layer)

    def fault(offset: int, length: int, right: bytes) -> FakeBody:
        if (offset, length) != (0, len(layer.blob)):
            raise RangesUnsupported("the server sends the whole blob")
        return FakeBody(right[:-1] + b"!", 0, length)

    registry.fault = fault
    with pytest.raises(IntegrityError):
        manager.resolve(LayerRequest(REFERENCE, digest, layer.annotations))
    assert manager.layers() == []
    assert list((manager.image_path(digest).parent.parent).iterdir()) == []


def test_a_download_that_is_refused_fails_the_read_in_the_end(
    manager: LayerManager, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = sample_layer()
    image = resolve(manager, registry, layer)
    monkeypatch.setattr(image, "_around", image._around)

    def fault(offset: int, length: int, right: bytes) -> FakeBody:
        if (offset, length) != (0, len(layer.blob)):
            raise RangesUnsupported("the server sends the whole blob")
        raise Refused("go away")

    registry.fault = fault
    with pytest.raises(Refused):
        image.fetcher.obtain([0], Deadline.after(5))


def test_a_defect_in_a_download_leaves_no_reader_waiting_and_the_next_read_works(
    manager: LayerManager, registry: FakeRegistry
) -> None:
    layer = sample_layer()
    image = resolve(manager, registry, layer)
    defects = iter(range(1))

    def fault(offset: int, length: int, _right: bytes) -> None:
        if (offset, length) != (0, len(layer.blob)):
            raise RangesUnsupported("the server sends the whole blob")
        if next(defects, None) is not None:
            raise ReferenceError("a defect")

    registry.fault = fault
    with pytest.raises(Unavailable, match="interrupted"):
        image.fetcher.obtain([0], Deadline.after(5))
    wait_until(lambda: not image.whole.is_running, "the download to end")
    assert files_in(whole_image(image)) == layer.files


class Endless(FakeBody):
    """Never ends: gives the same bytes again and again."""

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield self.data


@pytest.mark.parametrize(
    ("answer", "changes", "why"),
    [
        (Endless(b"", 0, None), {"resolve_deadline_s": 0.2}, "too slow"),
        (Endless(bytes(65536), 0, 1_000_000), {}, "more than the 1000000 bytes"),
        (Endless(bytes(65536), 0, None), {"disk_budget_bytes": 4_000_000}, "no room"),
        (None, {"disk_reserve_bytes": 1 << 60}, "no room"),
    ],
)
def test_a_whole_layer_that_never_ends_or_has_no_room_is_given_up_and_leaves_nothing(
    open_manager: ManagerFactory,
    registry: FakeRegistry,
    settings: LayerSettings,
    answer: FakeBody | None,
    changes: dict[str, float],
    why: str,
) -> None:
    layer = sample_layer()
    digest = registry.add(layer)

    def fault(offset: int, length: int, _right: bytes) -> FakeBody | None:
        if (offset, length) != (0, len(layer.blob)):
            raise RangesUnsupported("the server sends the whole blob")
        return answer

    registry.fault = fault
    manager = open_manager(replaced(settings, **changes))
    with pytest.raises(Unavailable, match=why):
        manager.resolve(LayerRequest(REFERENCE, digest, layer.annotations))
    assert list(manager.image_path(digest).parent.parent.iterdir()) == []


def test_a_download_that_trickles_is_begun_anew(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    layer = sample_layer()
    image = resolve(open_manager(replaced(settings, attempt_timeout_s=0.05)), registry, layer)
    slow = Endless(b"", 0, len(layer.blob))

    def fault(offset: int, length: int, _right: bytes) -> FakeBody | None:
        if (offset, length) != (0, len(layer.blob)):
            raise RangesUnsupported("the server sends the whole blob")
        return None if slow.distrusted else slow

    registry.fault = fault
    assert files_in(whole_image(image)) == layer.files
    assert "too slow" in slow.distrusted


def test_a_download_that_ends_early_or_says_another_length_comes_from_somebody_else(
    manager: LayerManager, registry: FakeRegistry
) -> None:
    layer = sample_layer()
    image = resolve(manager, registry, layer)
    size = len(layer.blob)
    given = [FakeBody(layer.blob[: size // 2], 0, size), FakeBody(layer.blob, 0, size + 1)]
    rest = list(given)

    def fault(offset: int, length: int, _right: bytes) -> FakeBody | None:
        if (offset, length) != (0, size):
            raise RangesUnsupported("the server sends the whole blob")
        return rest.pop(0) if rest else None

    registry.fault = fault
    assert files_in(whole_image(image)) == layer.files
    assert all(body.distrusted for body in given)
