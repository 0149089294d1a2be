"""The layer store before a real registry, also through a server that spoils its answers; and the fake that unit tests use.

Never a wrong byte to a reader, no error as long as a good answer comes before the deadline, and the store goes on with the
next good answer after one.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import faulty
from tests.support.distribution import Registry
from tests.support.faulty import Answer, Front
from tests.support.layers import BuiltLayer, FakeRegistry, build_layer, incompressible
from tests.support.processes import wait_until

from apparate.errors import ApparateError, Unavailable
from apparate.format.erofs.reader import ErofsReader
from apparate.format.prefetch import PrefetchRange
from apparate.layer.image import LayerImage
from apparate.layer.manager import LayerManager
from apparate.layer.model import LayerRequest
from apparate.layer.settings import LayerSettings
from apparate.layer.source import BlobSource, RegistrySource
from apparate.oci.reference import Reference
from apparate.registry.client import RegistryClient
from apparate.registry.deadline import Deadline
from apparate.registry.ranges import RangesUnsupported
from apparate.registry.settings import RegistrySettings

MEMBER = 32 * 1024
STEP = 128 * 1024
REGISTRY = RegistrySettings(hosts_dirs=(), credentials_dir="", docker_config="/nonexistent", idle_timeout_s=0.5)


def sample() -> BuiltLayer:
    files = {b"large-%d" % number: incompressible(30 * MEMBER + number, number) for number in range(3)}
    files |= {b"small-%03d" % number: incompressible(300 + 7 * number, 100 + number) for number in range(200)}
    return build_layer(files, member_bytes=MEMBER, profile=[PrefetchRange(b"large-1"), PrefetchRange(b"small-100")])


LAYER = sample()


@pytest.fixture(scope="module")
def registry(registry: Registry) -> Registry:
    client = RegistryClient(REGISTRY)
    ref = Reference.parse(f"{registry.host}/team/app")
    client.upload_blob(ref, LAYER.digest, len(LAYER.blob), lambda: [LAYER.blob])
    client.close()
    return registry


@pytest.fixture
def front(registry: Registry) -> Iterator[Front]:
    with Front(registry.host) as server:
        yield server


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    made = RegistryClient(REGISTRY)
    yield made
    made.close()


def settings_below(root: Path, **changes: object) -> LayerSettings:
    base: dict[str, object] = {
        "root": root / "store", "read_deadline_s": 20.0, "attempt_timeout_s": 3.0, "resolve_deadline_s": 10.0,
        "background_after_s": 0.0, "disk_reserve_bytes": 0,
    }  # fmt: skip
    return LayerSettings(**(base | changes))  # type: ignore[arg-type]  # the names are checked by the dataclass


@pytest.fixture
def manager(tmp_path: Path, client: RegistryClient) -> Iterator[LayerManager]:
    made = LayerManager(settings_below(tmp_path), client)
    yield made
    made.close()


def attached(manager: LayerManager, front: Front) -> LayerImage:
    manager.resolve(LayerRequest(f"{front.host}/team/app:v1", LAYER.digest, LAYER.annotations))
    return manager.attach(LAYER.digest)


def files_of(image: LayerImage) -> dict[bytes, bytes]:
    content = b"".join(image.read(at, STEP) for at in range(0, image.image_size, STEP))
    reader = ErofsReader(content)
    inodes = {path: inode for path, inode in reader.walk() if path in LAYER.files}
    return {path: content[reader.address(inode) :][: inode.size] for path, inode in inodes.items()}


# --- the seam: whoever implements BlobSource ---


@pytest.fixture(params=["fake", "registry"])
def source(request: pytest.FixtureRequest, client: RegistryClient, front: Front) -> BlobSource:
    if request.param == "fake":
        fake = FakeRegistry()
        fake.add(LAYER)
        return fake.source(lambda: ["registry.test/app"], LAYER.digest)
    return RegistrySource(client, lambda: [f"{front.host}/team/app:v1"], LAYER.digest)


def test_a_range_is_that_part_of_the_blob(source: BlobSource) -> None:
    with source.range(1000, 200_000, deadline=Deadline.after(10)) as body:
        assert (body.offset, body.total_size) == (1000, len(LAYER.blob))
        assert b"".join(body) == LAYER.blob[1000:201_000]


def test_the_tail_is_the_end_of_the_blob(source: BlobSource) -> None:
    for length in (100, len(LAYER.blob), len(LAYER.blob) + 5):
        with source.tail(length, deadline=Deadline.after(10)) as body:
            assert (body.offset, body.total_size) == (max(0, len(LAYER.blob) - length), len(LAYER.blob))
            assert b"".join(body) == LAYER.blob[-length:]


def test_the_whole_is_the_blob(source: BlobSource) -> None:
    with source.whole(deadline=Deadline.after(10)) as body:
        assert (body.offset, body.total_size) == (0, len(LAYER.blob))
        assert b"".join(body) == LAYER.blob


def test_a_body_may_be_left_before_its_end(source: BlobSource) -> None:
    with source.whole(deadline=Deadline.after(10)) as body:
        next(iter(body))
    with source.range(0, 10, deadline=Deadline.after(10)) as body:
        assert b"".join(body) == LAYER.blob[:10]


def test_a_passed_deadline_is_an_error(source: BlobSource) -> None:
    with pytest.raises(Unavailable), source.range(0, 10, deadline=Deadline.after(-1)) as body:
        b"".join(body)


def test_the_next_reference_is_tried_when_one_is_refused(client: RegistryClient, front: Front) -> None:
    references = [f"{front.host}/gone/app:v1", f"{front.host}/team/app:v1"]
    source = RegistrySource(client, lambda: references, LAYER.digest)
    with source.range(5, 10, deadline=Deadline.after(10)) as body:
        assert b"".join(body) == LAYER.blob[5:15]


# --- the store before a registry ---


def test_a_layer_is_read_from_a_real_registry(manager: LayerManager, front: Front) -> None:
    image = attached(manager, front)
    assert files_of(image) == LAYER.files


def test_a_layer_is_prefetched_and_completed_from_a_real_registry(manager: LayerManager, front: Front) -> None:
    image = attached(manager, front)
    image.prefetch()
    members = image.index.members_in(*image.index.prefetch[0])
    wait_until(lambda: not image.store.missing(members), "the profile")
    image.complete(Deadline.after(20))
    assert files_of(image) == LAYER.files
    received = [seen.headers.get("range", "").removeprefix("bytes=") for seen in front.requests("GET", "/blobs/")]
    spans = sorted(tuple(map(int, text.split("-"))) for text in received)
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(spans)), "a byte came twice"


FAULTS = {
    "flipped bit": faulty.flip_bit(1234),
    "truncated": faulty.truncate(5000),
    "cut": faulty.cut(5000),
    "shifted": faulty.shift_range(1),
    "wrong range": faulty.lie_in_content_range("bytes 0-0/1"),
    "page": faulty.html(),
    "gateway page": faulty.html(502),
    "200 for 206": faulty.ignore_range(),
    "reset": faulty.reset(),
    "404": faulty.status(404),
    "403": faulty.status(403),
    "401": faulty.status(401),
    "503": faulty.status(503),
    "429": faulty.status(429),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_bad_answers_in_between_are_not_noticed(manager: LayerManager, front: Front, fault: faulty.Action) -> None:
    image = attached(manager, front)
    front.on("GET", "/blobs/", fault, times=2)
    assert files_of(image) == LAYER.files


@pytest.mark.parametrize("kind", ["slow", "stall", "mute", "trickle"])
def test_a_registry_that_dawdles_is_left(manager: LayerManager, front: Front, kind: str) -> None:
    image = attached(manager, front)
    fault = {
        "slow": faulty.slow(front, 100, 0.3), "stall": faulty.stall(front, 5000), "mute": faulty.mute(front),
        "trickle": faulty.trickle_headers(front, 0.3),
    }[kind]  # fmt: skip
    front.on("GET", "/blobs/", fault, times=1)
    assert files_of(image) == LAYER.files


def test_a_flipped_bit_on_every_second_answer_never_reaches_a_reader(manager: LayerManager, front: Front) -> None:
    image = attached(manager, front)
    spoil = threading.Event()

    def every_second(seen: faulty.Seen, forward: faulty.Forward) -> Answer:
        spoil.clear() if spoil.is_set() else spoil.set()
        return faulty.flip_bit(700)(seen, forward) if spoil.is_set() else forward()

    front.on("GET", "/blobs/", every_second)
    assert files_of(image) == LAYER.files


def test_a_registry_that_is_gone_for_a_while_means_a_pause(
    tmp_path: Path, client: RegistryClient, registry: Registry, front: Front
) -> None:
    manager = LayerManager(settings_below(tmp_path), client)
    image = attached(manager, front)
    result: list[dict[bytes, bytes] | ApparateError] = []

    def read() -> None:
        try:
            result.append(files_of(image))
        except ApparateError as error:
            result.append(error)

    image.read(image.metadata_size, MEMBER)
    gone = front.on("GET", "/blobs/", faulty.reset())
    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: gone.used > 5, "the reader to meet a registry that is gone")
    assert not result
    front.clear()
    reader.join(30)
    assert result == [LAYER.files]
    manager.close()


def test_a_registry_that_is_gone_for_good_fails_the_read_and_works_when_it_returns(
    tmp_path: Path, client: RegistryClient, registry: Registry
) -> None:
    manager = LayerManager(settings_below(tmp_path, read_deadline_s=1.0), client)
    with Front(registry.host) as front:
        image = attached(manager, front)
        cached = image.read(image.metadata_size, MEMBER)
        front.on("GET", "/blobs/", faulty.reset())
        with pytest.raises(Unavailable):
            image.read(image.metadata_size + 50 * MEMBER, MEMBER)
        assert image.read(image.metadata_size, MEMBER) == cached
        front.clear()
        assert files_of(image) == LAYER.files
    manager.close()


def test_a_registry_without_ranges_costs_one_download(manager: LayerManager, front: Front) -> None:
    front.on("GET", "/blobs/", faulty.ignore_range())
    image = attached(manager, front)
    assert files_of(image) == LAYER.files
    image.complete(Deadline.after(20))
    whole = [seen for seen in front.requests("GET", "/blobs/") if "range" not in seen.headers]
    assert len(whole) == 1


def test_resolving_before_a_registry_that_errs_succeeds_with_the_next_good_answer(
    manager: LayerManager, front: Front
) -> None:
    front.on("GET", "/blobs/", faulty.flip_bit(99), times=1)
    front.on("GET", "/blobs/", faulty.html(), times=1)
    front.on("GET", "/blobs/", faulty.truncate(10), times=1)
    assert files_of(attached(manager, front)) == LAYER.files


def test_ranges_unsupported_is_what_the_client_says(source: BlobSource, front: Front) -> None:
    if isinstance(source, RegistrySource):
        front.on("GET", "/blobs/", faulty.ignore_range())
        with pytest.raises(RangesUnsupported), source.range(5, 10, deadline=Deadline.after(10)):
            pass
