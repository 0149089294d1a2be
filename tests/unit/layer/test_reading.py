"""Reading a layer that is not there yet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from tests.support.layers import FakeBody, FakeRegistry, Refused
from tests.unit.layer.conftest import ManagerFactory, replaced
from tests.unit.layer.helpers import MEMBER, REFERENCE, STEP, address_of, files_in, resolve, sample_layer, whole_image

from apparate.errors import NotFound, RegistryError, Unavailable
from apparate.layer.image import LayerImage
from apparate.layer.manager import LayerManager
from apparate.layer.model import LayerRequest
from apparate.layer.settings import LayerSettings
from apparate.registry.deadline import Deadline


def test_what_is_read_is_what_the_files_hold(manager: LayerManager, registry: FakeRegistry) -> None:
    layer = sample_layer()
    image = resolve(manager, registry, layer)
    assert files_in(whole_image(image)) == layer.files


def test_no_byte_of_the_blob_is_fetched_twice(manager: LayerManager, registry: FakeRegistry) -> None:
    image = resolve(manager, registry, sample_layer())
    whole_image(image)
    whole_image(image)
    assert registry.fetched_twice() == 0


def test_what_is_here_is_read_without_a_request(manager: LayerManager, registry: FakeRegistry) -> None:
    image = resolve(manager, registry, sample_layer())
    assert image.read_cached(image.metadata_size, 4096) is None
    data = image.read(image.metadata_size, 4096)
    before = len(registry.requests)
    assert image.read_cached(image.metadata_size, 4096) == data
    assert len(registry.requests) == before


def test_what_is_stored_is_told_from_what_is_missing_without_a_request(
    manager: LayerManager, registry: FakeRegistry
) -> None:
    image = resolve(manager, registry, sample_layer())
    start = image.metadata_size
    assert (image.is_here(start, MEMBER), image.read_stored(start, MEMBER)) == (False, None)
    data = image.read(start, MEMBER)
    registry.requests.clear()
    assert (image.is_here(start, MEMBER), image.read_stored(start, MEMBER)) == (True, data)
    assert image.read_stored(image.image_size, 4096) == b""
    assert registry.requests == []


def test_what_is_present_is_counted_as_it_comes_and_goes(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = open_manager(settings)
    layer = sample_layer()

    def counted(image: LayerImage) -> int:
        held = [member for member in range(image.index.member_count) if member in image.store]
        return image.metadata_size + sum(image.index.member(member).need_bytes for member in held)

    image = resolve(manager, registry, layer)
    assert image.present_bytes == image.metadata_size
    image.read(image.metadata_size, 10 * MEMBER)
    assert image.metadata_size < image.present_bytes == counted(image)
    image.store.punch([0, 1, 1])
    image.store.doubt([2, 0])
    assert image.present_bytes == counted(image)
    manager.close()
    image = resolve(open_manager(settings), registry, layer)
    assert image.present_bytes == counted(image) > image.metadata_size
    monkeypatch.setattr(type(image.index), "member", lambda *_: pytest.fail("every member was looked at again"))
    assert image.present_bytes > image.metadata_size


def test_metadata_need_no_request(manager: LayerManager, registry: FakeRegistry) -> None:
    image = resolve(manager, registry, sample_layer())
    assert image.read_cached(0, image.metadata_size) == bytes(image.index.metadata())
    assert registry.requests == []


def test_a_read_past_the_end_is_cut(manager: LayerManager, registry: FakeRegistry) -> None:
    image = resolve(manager, registry, sample_layer())
    assert len(image.read(image.image_size - 100, 4096)) == 100
    assert image.read(image.image_size + 5, 4096) == b""


def test_readers_of_one_member_share_one_request(manager: LayerManager, registry: FakeRegistry) -> None:
    image = resolve(manager, registry, sample_layer())
    waiting = threading.Event()
    go = threading.Event()

    def hold(_offset: int, _length: int, _right: bytes) -> None:
        waiting.set()
        assert go.wait(10)

    registry.fault = hold
    address = address_of(image, b"a-large")
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(image.read, address, 4096)
        assert waiting.wait(10)
        rest = [pool.submit(image.read, address, 4096) for _ in range(7)]
        go.set()
        answers = {future.result() for future in (first, *rest)}
    assert len(answers) == 1
    assert len(registry.requests) == 1


def test_readers_of_everything_at_once_get_everything_once(manager: LayerManager, registry: FakeRegistry) -> None:
    layer = sample_layer(large=30)
    image = resolve(manager, registry, layer)
    with ThreadPoolExecutor(8) as pool:
        contents = set(pool.map(lambda _: whole_image(image), range(8)))
    assert len(contents) == 1
    assert files_in(contents.pop()) == layer.files
    assert registry.fetched_twice() == 0


def test_a_small_gap_is_fetched_along_and_kept(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    gap = 2 * MEMBER + 1024
    image = resolve(
        open_manager(replaced(settings, fetch_gap_min_bytes=gap, fetch_window_bytes=0)), registry, sample_layer()
    )
    address = address_of(image, b"a-large")
    image.fetcher.obtain([0, 2], Deadline.after(10))
    assert len(registry.requests) == 1
    assert image.read_cached(address + MEMBER, MEMBER) is not None


def test_a_member_that_is_here_is_not_fetched_as_a_gap(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    image = resolve(
        open_manager(replaced(settings, fetch_gap_min_bytes=10 * MEMBER, fetch_window_bytes=0)),
        registry,
        sample_layer(),
    )
    image.fetcher.obtain([1], Deadline.after(10))
    image.fetcher.obtain([0, 2], Deadline.after(10))
    assert len(registry.requests) == 3
    assert registry.fetched_twice() == 0


@dataclass
class SlowEnd(FakeBody):
    """Gives the first *count* bytes at once, the rest when `go` is set."""

    count: int = 0
    go: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[bytes]:
        yield self.data[: self.count]
        assert self.go.wait(10)
        yield self.data[self.count :]


def test_a_reader_does_not_wait_for_what_is_fetched_along(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    manager = open_manager(replaced(settings, fetch_window_min_bytes=4 * MEMBER))
    image = resolve(manager, registry, sample_layer())
    address, first = address_of(image, b"a-large"), image.index.member(0)
    answers: list[SlowEnd] = []

    def slow(offset: int, _length: int, right: bytes) -> FakeBody:
        answers.append(SlowEnd(right, offset, None, count=first.length))
        return answers[-1]

    registry.fault = slow
    image.read(address, 1024)
    assert image.read_cached(address + MEMBER, 1024) is None
    registry.fault = None
    answers[0].go.set()
    assert image.read(address, 3 * MEMBER)
    assert len(registry.requests) == 1


def test_a_reader_alone_finishes_his_request_himself(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    """Nobody is free to finish it: what was fetched along is here when the read returns."""
    manager = open_manager(replaced(settings, fetch_window_min_bytes=4 * MEMBER))
    manager._around.hands.close()
    image = resolve(manager, registry, sample_layer())
    address = address_of(image, b"a-large")
    image.read(address, 1024)
    assert image.read_cached(address + 2 * MEMBER, 1024) is not None


@pytest.mark.parametrize("spoil", ["flip", "truncate", "elsewhere", "longer", "html"])
def test_bad_answers_never_become_data(manager: LayerManager, registry: FakeRegistry, spoil: str) -> None:
    layer = sample_layer()
    image = resolve(manager, registry, layer)
    bad = iter(range(3))

    def fault(offset: int, length: int, right: bytes) -> FakeBody | None:
        if next(bad, None) is None:
            return None
        size = len(layer.blob)
        return {
            "flip": FakeBody(right[:100] + bytes([right[100] ^ 1]) + right[101:], offset, size),
            "truncate": FakeBody(right[: length // 2], offset, size),
            "elsewhere": FakeBody(layer.blob[offset + 1 :][:length], offset + 1, size),
            "longer": FakeBody(right + b"more", offset, size),
            "html": FakeBody((b"<html>" * length)[:length], offset, size),
        }[spoil]

    registry.fault = fault
    assert files_in(whole_image(image)) == layer.files


def spoiling(registry: FakeRegistry, spoil: Callable[[int, int, bytes, int], FakeBody | None]) -> list[FakeBody]:
    """Let *spoil* (offset, length, right, length of the blob) give the next answer; return what it has given."""
    given: list[FakeBody] = []
    (blob,) = registry.blobs.values()

    def fault(offset: int, length: int, right: bytes) -> FakeBody | None:
        body = None if given else spoil(offset, length, right, len(blob))
        if body is not None:
            given.append(body)
        return body

    registry.fault = fault
    return given


@pytest.mark.parametrize("spoil", ["short", "longer", "elsewhere", "smaller blob", "larger blob"])
def test_who_gives_another_answer_than_was_asked_for_is_asked_last_for_a_while(
    manager: LayerManager, registry: FakeRegistry, spoil: str
) -> None:
    layer = sample_layer()
    image = resolve(manager, registry, layer)
    given = spoiling(
        registry,
        lambda offset, length, right, size: {
            "short": FakeBody(right[: length // 2], offset, size),
            "longer": FakeBody(right + b"more", offset, size),
            "elsewhere": FakeBody(right, offset + 1, size),
            "smaller blob": FakeBody(right, offset, offset + length),
            "larger blob": FakeBody(right, offset, size + 1),
        }[spoil],
    )
    assert files_in(whole_image(image)) == layer.files
    assert [bool(body.distrusted) for body in given] == [True]


def test_the_length_of_a_blob_that_was_said_at_first_is_not_believed_against_the_index(
    open_manager: ManagerFactory, settings: LayerSettings, registry: FakeRegistry
) -> None:
    layer = sample_layer()
    digest = registry.add(layer)
    registry.fault = lambda offset, _, right: FakeBody(right, offset, 1000)
    manager = open_manager(settings)
    assert manager.resolve(LayerRequest(REFERENCE, digest, layer.annotations)).blob_size == 1000
    given = spoiling(registry, lambda offset, _, right, size: FakeBody(right, offset, size))
    manager.attach(digest).read(manager.attach(digest).metadata_size, MEMBER)
    assert [body.distrusted for body in given] == [""]


def test_the_good_members_of_a_bad_answer_are_kept(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    image = resolve(open_manager(replaced(settings, fetch_gap_min_bytes=STEP)), registry, sample_layer())

    def spoil_the_first(offset: int, _length: int, right: bytes) -> FakeBody:
        registry.fault = None
        return FakeBody(right[:50] + bytes([right[50] ^ 1]) + right[51:], offset, None)

    registry.fault = spoil_the_first
    whole_image(image)
    first, second = image.index.member(0), image.index.member(1)
    assert [offset for offset, _ in registry.requests].count(first.offset) == 2
    assert registry.requests[0][1] > first.length
    assert registry.requests[1] == (first.offset, first.length)
    assert not any(offset == second.offset for offset, _ in registry.requests)


def test_a_registry_that_is_away_means_a_pause(manager: LayerManager, registry: FakeRegistry) -> None:
    image = resolve(manager, registry, sample_layer())
    failures = iter(range(4))

    def away(_offset: int, _length: int, _right: bytes) -> None:
        if next(failures, None) is not None:
            raise Refused("connection refused")

    registry.fault = away
    assert len(image.read(image.metadata_size, 4096)) == 4096


def test_a_registry_that_stays_away_fails_the_read_in_time_and_not_for_ever(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    image = resolve(open_manager(replaced(settings, read_deadline_s=0.3)), registry, sample_layer())

    def away(_offset: int, _length: int, _right: bytes) -> None:
        raise Unavailable("connection refused")

    registry.fault = away
    with pytest.raises(Unavailable, match="connection refused"):
        image.read(image.metadata_size, 4096)
    assert "connection refused" in image.last_error
    registry.fault = None
    assert len(image.read(image.metadata_size, 4096)) == 4096


def test_a_refusal_is_not_remembered(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    image = resolve(open_manager(replaced(settings, read_deadline_s=0.2)), registry, sample_layer())
    refusals: list[Exception] = [NotFound("no such blob"), RegistryError("GET", "http://registry.test/", 403)]

    def refuse(_offset: int, _length: int, _right: bytes) -> None:
        raise refusals[0]

    registry.fault = refuse
    while refusals:
        with pytest.raises(type(refusals[0])):
            image.read(image.metadata_size, 4096)
        refusals.pop(0)
    registry.fault = None
    assert len(image.read(image.metadata_size, 4096)) == 4096
