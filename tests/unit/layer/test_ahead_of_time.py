"""What is fetched before anyone asks for it."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import pytest
from tests.support.layers import FakeRegistry, Refused
from tests.support.processes import wait_until
from tests.unit.layer.conftest import ManagerFactory, replaced
from tests.unit.layer.helpers import MEMBER, STEP, address_of, files_in, resolve, sample_layer, whole_image

from apparate.errors import ApparateError, Unavailable
from apparate.format.prefetch import PrefetchRange
from apparate.layer.ahead import ReadAhead
from apparate.layer.crew import Crew
from apparate.layer.image import LayerImage
from apparate.layer.manager import LayerManager
from apparate.layer.model import Priority
from apparate.layer.pace import Pace
from apparate.layer.prefetch import rounds
from apparate.layer.settings import LayerSettings
from apparate.registry.deadline import Deadline

if TYPE_CHECKING:
    from typing_extensions import Buffer

PROFILE = (
    PrefetchRange(b"z-large", 4 * MEMBER, 2 * MEMBER),
    PrefetchRange(b"small-07"),
    PrefetchRange(b"a-large", 0, MEMBER),
)


class Recorder:
    """Listens and remembers."""

    def __init__(self) -> None:
        self.content: dict[int, bytes] = {}
        self.completions = 0
        self.removals = 0

    def filled(self, image: LayerImage, address: int, data: Buffer) -> None:
        self.content[address] = bytes(memoryview(data))

    def completed(self, image: LayerImage) -> None:
        self.completions += 1

    def removed(self, image: LayerImage) -> None:
        self.removals += 1


@pytest.fixture
def listener(manager: LayerManager) -> Recorder:
    recorder = Recorder()
    manager.listen(recorder)
    return recorder


def test_the_profile_is_loaded_in_its_order(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    manager = open_manager(replaced(settings, prefetch_round_bytes=1, prefetch_connections=1))
    image = resolve(manager, registry, sample_layer(profile=PROFILE))
    image.prefetch()
    wait_until(lambda: len(registry.requests) >= 3 and not len(image.fetcher.flights), "prefetch")
    wanted = [address_of(image, b"z-large") + 4 * MEMBER, address_of(image, b"small-07"), address_of(image, b"a-large")]
    firsts = [image.index.member(image.index.members_in(address, 1)[0]).offset for address in wanted]
    asked = [offset for offset, _ in registry.requests]
    assert [offset for offset in asked if offset in firsts] == firsts
    assert image.read_cached(wanted[0], 2 * MEMBER) is not None


def test_a_round_is_fetched_in_blob_order(manager: LayerManager, registry: FakeRegistry) -> None:
    image = resolve(manager, registry, sample_layer(profile=PROFILE))
    once = list(rounds(image.index, image.index.prefetch, 1 << 30))
    assert len(once) == 1
    assert once[0] == sorted(once[0])
    assert [member for one in rounds(image.index, image.index.prefetch, 1) for member in one] != once[0]


def test_everything_that_arrives_is_announced(
    manager: LayerManager, registry: FakeRegistry, listener: Recorder
) -> None:
    image = resolve(manager, registry, sample_layer())
    content = whole_image(image)
    pushed = bytearray(image.image_size)
    pushed[: image.metadata_size] = image.index.metadata()
    for address, data in listener.content.items():
        pushed[address : address + len(data)] = data
    assert bytes(pushed) == content
    assert all(address % 4096 == 0 and len(data) % 4096 == 0 for address, data in listener.content.items())


def test_what_is_here_of_the_profile_is_announced_again(
    manager: LayerManager, registry: FakeRegistry, listener: Recorder
) -> None:
    image = resolve(manager, registry, sample_layer(profile=PROFILE))
    whole_image(image)
    listener.content.clear()
    registry.requests.clear()
    image.prefetch()
    address = address_of(image, b"a-large")
    wait_until(lambda: address in listener.content, "announcement of what is here")
    assert registry.requests == []


def test_a_prefetch_that_fails_is_tried_again(manager: LayerManager, registry: FakeRegistry) -> None:
    image = resolve(manager, registry, sample_layer(profile=PROFILE))
    failures = iter(range(2))

    def away(_offset: int, _length: int, _right: bytes) -> None:
        if next(failures, None) is not None:
            raise Refused("connection refused")

    registry.fault = away
    image.prefetch()
    address = address_of(image, b"a-large")
    wait_until(lambda: image.read_cached(address, MEMBER) is not None, "prefetch")


def test_what_a_failed_step_gives_back_is_done_although_another_step_found_nothing() -> None:
    crew = Crew("test", 2)
    campaign = Campaign()
    crew.add(campaign)
    assert campaign.ended.wait(10)
    assert campaign.log == ["first begins", "second finds nothing", "first fails", "again", "nothing"]
    crew.close()


class Campaign:
    """One piece of work that fails the first time, while another thread looks for more."""

    priority = Priority.PREFETCH
    attempts = 5

    def __init__(self) -> None:
        self.log: list[str] = []
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._calls = 0
        self._found_nothing = threading.Event()

    def step(self) -> bool:
        with self._lock:
            self._calls += 1
            call = self._calls
            self.log.append({1: "first begins", 2: "second finds nothing", 3: "again"}.get(call, "nothing"))
        if call == 1:
            assert self._found_nothing.wait(10)
            self.log.append("first fails")
            raise Refused("connection refused")
        if call == 2:
            threading.Timer(0.05, self._found_nothing.set).start()
        return call == 3

    def end(self, error: ApparateError | None) -> None:
        assert error is None
        self.ended.set()


class Broken:
    """Work that meets a defect of ours, both in its step and at its end."""

    priority = Priority.PREFETCH
    attempts = 5

    def __init__(self) -> None:
        self.ends: list[ApparateError | None] = []

    def step(self) -> bool:
        raise ReferenceError("a defect")

    def end(self, error: ApparateError | None) -> None:
        self.ends.append(error)
        raise ReferenceError("another defect")


def test_a_defect_ends_its_own_work_and_no_thread() -> None:
    crew = Crew("test", 1)
    broken = Broken()
    crew.add(broken)
    thread = crew._threads[0]
    wait_until(lambda: bool(broken.ends), "the broken work to end")
    assert isinstance(broken.ends[0], ApparateError)
    assert thread.is_alive()
    assert crew._threads == [thread]
    crew.close()


def test_other_layers_go_on_when_one_is_removed_while_it_is_fetched(
    manager: LayerManager, registry: FakeRegistry
) -> None:
    removed, kept = resolve(manager, registry, sample_layer(1)), resolve(manager, registry, sample_layer(2))
    hold = threading.Event()

    def held(_offset: int, _length: int, _right: bytes) -> None:
        assert hold.wait(10)

    registry.fault = held
    removed.completion.start(Priority.COMPLETION)
    wait_until(lambda: bool(registry.requests), "a request")
    threads = list(manager._around.crew._threads)
    kept.completion.start(Priority.COMPLETION)
    digest = removed.digest
    del removed
    manager.remove(digest)
    hold.set()
    wait_until(lambda: kept.is_complete or kept.store.is_full, "the other layer")
    assert all(thread.is_alive() for thread in threads)


def test_a_reader_joins_what_prefetch_has_asked_for(manager: LayerManager, registry: FakeRegistry) -> None:
    image = resolve(manager, registry, sample_layer(profile=(PrefetchRange(b"a-large"),)))
    asked, go = threading.Event(), threading.Event()

    def hold(_offset: int, _length: int, _right: bytes) -> None:
        asked.set()
        assert go.wait(10)

    registry.fault = hold
    image.prefetch()
    assert asked.wait(10)
    threading.Timer(0.05, go.set).start()
    image.read(address_of(image, b"a-large"), MEMBER)
    assert registry.fetched_twice() == 0


def test_a_layer_is_completed_and_durable(manager: LayerManager, registry: FakeRegistry, listener: Recorder) -> None:
    layer = sample_layer()
    image = resolve(manager, registry, layer)
    image.complete(Deadline.after(10))
    assert image.is_complete
    assert files_in(image.path.read_bytes()) == layer.files
    assert registry.fetched_twice() == 0
    wait_until(lambda: listener.completions == 1, "announcement")
    assert manager.status(image.digest).percent == 100.0


def test_completion_gives_up_at_its_deadline(manager: LayerManager, registry: FakeRegistry) -> None:
    image = resolve(manager, registry, sample_layer())

    def away(_offset: int, _length: int, _right: bytes) -> None:
        raise Refused("connection refused")

    registry.fault = away
    with pytest.raises(Unavailable, match="connection refused"):
        image.complete(Deadline.after(0.3))


def test_a_quiet_mounted_layer_is_completed_in_the_background(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    manager = open_manager(replaced(settings, background_after_s=0.001))
    image = resolve(manager, registry, sample_layer())
    manager.sync()
    assert registry.requests == []
    manager.pin(image.digest, "test")

    def is_full() -> bool:
        manager.sync()  # the layer may be too young to be quiet at the first look, and the next one is far away
        return bool(image.store.is_full)

    wait_until(is_full, "background completion")


def test_a_sequential_reader_gets_the_rest_ahead(
    open_manager: ManagerFactory, registry: FakeRegistry, settings: LayerSettings
) -> None:
    manager = open_manager(replaced(settings, sequential_bytes=2 * STEP))
    image = resolve(manager, registry, sample_layer(large=40))
    for at in range(image.metadata_size, image.metadata_size + 6 * STEP, STEP):
        image.read(at, STEP)
    wait_until(lambda: image.store.is_full, "the rest")
    assert registry.fetched_twice() == 0


def test_a_random_reader_gets_nothing_ahead() -> None:
    ahead = ReadAhead(sequential_bytes=4 << 20, ahead_bytes=16 << 20)
    assert all(ahead.note(number * (5 << 20) % (97 << 20), 128 << 10) is None for number in range(300))


def test_a_reader_who_leaves_out_as_much_as_he_reads_gets_nothing_ahead() -> None:
    ahead = ReadAhead(sequential_bytes=4 << 20, ahead_bytes=16 << 20)
    assert all(ahead.note(number * (256 << 10), 128 << 10) is None for number in range(300))


def test_a_reader_who_is_seen_only_where_something_is_missing_goes_straight_on() -> None:
    """What arrives is pushed into the page cache: of each member of 64 KiB, only the first 16 KiB are asked for."""
    ahead = ReadAhead(sequential_bytes=4 << 20, ahead_bytes=16 << 20)
    member = 64 << 10
    spans = []
    for number in range(200):
        span = ahead.note(number * member, 16 << 10, here_from=max(0, number - 8) * member)
        if span:
            spans.append(span)
            break
    start, end = spans[0]
    assert 4 << 20 <= start <= 5 << 20
    # All up to the end has arrived unasked; the next read is behind it.
    assert ahead.note(end, 16 << 10, here_from=0) is not None


def test_a_read_behind_a_prefetched_stretch_alone_gets_nothing_ahead() -> None:
    ahead = ReadAhead(sequential_bytes=4 << 20, ahead_bytes=16 << 20)
    assert ahead.note(1 << 20, 16 << 10) is None
    assert ahead.note(15 << 20, 16 << 10, here_from=0) is None


def test_requests_that_overtake_one_another_are_one_reader() -> None:
    ahead = ReadAhead(sequential_bytes=4 << 20, ahead_bytes=16 << 20)
    numbers = [number ^ 1 for number in range(100)]
    assert any(ahead.note(number * (128 << 10), 128 << 10) for number in numbers)


def test_the_way_ahead_grows_with_the_way_behind_and_is_bounded() -> None:
    ahead = ReadAhead(sequential_bytes=1 << 20, ahead_bytes=4 << 20)
    spans = [span for at in range(0, 64 << 20, 128 << 10) if (span := ahead.note(at, 128 << 10))]
    assert spans[0] == (1 << 20, 2 << 20)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    assert max(end - start for start, end in spans) <= 4 << 20


def test_window_and_gap_follow_latency_and_rate() -> None:
    settings, now = LayerSettings(), [100.0]
    pace = Pace(settings, clock=lambda: now[0])

    def receive(rate: float) -> None:
        for _ in range(40):
            pace.received(int(rate / 100))
            now[0] += 0.01

    assert pace.window_bytes(guess=False) == settings.fetch_gap_min_bytes
    assert pace.window_bytes(guess=True) == settings.fetch_window_min_bytes
    pace.answered(0.020)
    receive(12.5e6)
    assert pace.window_bytes(guess=False) == pytest.approx(0.5 * 0.020 * 12.5e6, rel=0.1)
    assert pace.gap_bytes(4) == pytest.approx(pace.window_bytes(guess=False) / 4, rel=0.01)
    receive(125e6)
    assert pace.window_bytes(guess=False) == pytest.approx(0.5 * 0.020 * 125e6, rel=0.1)
    assert pace.window_bytes(guess=True) == settings.fetch_window_bytes
    assert pace.gap_bytes() == settings.fetch_gap_bytes
    pace.answered(0.00001)
    assert pace.gap_bytes() == settings.fetch_gap_min_bytes


@pytest.mark.parametrize("rate", [12.5e6, 50e6])
def test_who_guesses_asks_for_what_takes_as_long_as_a_request(rate: float) -> None:
    now, latency_s = [100.0], 0.020
    pace = Pace(LayerSettings(), clock=lambda: now[0])
    for _ in range(400):
        window = pace.window_bytes(guess=True)
        now[0] += latency_s
        pace.answered(latency_s)
        for _ in range(10):
            pace.received(window // 10)
            now[0] += window / rate / 10
    # spans see a request more or less, so the best of them says a little too much
    assert latency_s * rate * 0.9 <= pace.window_bytes(guess=True) <= latency_s * rate * 1.5


def test_a_body_that_came_at_once_does_not_look_like_a_fast_line() -> None:
    now = [100.0]
    pace = Pace(LayerSettings(), clock=lambda: now[0])
    for _ in range(10):
        pace.answered(0.020)
        pace.received(60_000)
        now[0] += 0.025
    assert pace.window_bytes(guess=False) <= 0.5 * 0.020 * 60_000 * 9 / 0.2
