"""The registry client before a server that misbehaves: never a wrong length, never a hang, recovery with the next good answer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from tests.support import faulty
from tests.support.distribution import Registry, free_port
from tests.support.faulty import Answer, Front

from apparate.errors import FailedPrecondition, IntegrityError, NotFound, RegistryError, Unavailable
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.oci.manifest import Descriptor, Manifest
from apparate.oci.reference import Reference
from apparate.registry.client import RegistryClient
from apparate.registry.deadline import Deadline
from apparate.registry.ranges import RangesUnsupported
from apparate.registry.settings import RegistrySettings

PATIENCE_S = 30.0
BRIEF_S = 1.0
BLOB = os.urandom(3_000_000)
DIGEST = Digest.of(BLOB)
OFFSET, LENGTH = 1_000_003, 500_000
PART = BLOB[OFFSET : OFFSET + LENGTH]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as server:
        client = RegistryClient(settings())
        client.upload_blob(Reference.parse(f"{server.host}/team/app"), DIGEST, len(BLOB), lambda: [BLOB])
        client.close()
        yield server


@pytest.fixture
def front(registry: Registry) -> Iterator[Front]:
    with Front(registry.host) as server:
        yield server


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    made = RegistryClient(settings())
    yield made
    made.close()


@pytest.fixture
def ref(front: Front) -> Reference:
    return Reference.parse(f"{front.host}/team/app:v1")


def settings(**changes: object) -> RegistrySettings:
    base: dict[str, object] = {"hosts_dirs": (), "credentials_dir": "", "docker_config": "/nonexistent"}
    return RegistrySettings(**(base | changes))  # type: ignore[arg-type]  # the names are checked by the dataclass


def soon() -> Deadline:
    return Deadline.after(PATIENCE_S)


def part_of(client: RegistryClient, ref: Reference, deadline: Deadline | None = None) -> bytes:
    with client.blob_range(ref, DIGEST, OFFSET, LENGTH, deadline=deadline or soon()) as stream:
        return stream.read()


@pytest.mark.parametrize(
    "fault",
    [
        faulty.reset(),
        faulty.html(),
        faulty.html(502),
        faulty.truncate(0),
        faulty.truncate(100_000),
        faulty.cut(100_000),
        faulty.shift_range(1),
        faulty.shift_range(-1),
        faulty.lie_in_content_range("bytes 0-0/1"),
        faulty.lie_in_content_range("bytes 5-3/10"),
        faulty.lie_in_content_range("chunks 1-2/3"),
        faulty.lie_in_content_range(""),
        faulty.status(500),
        faulty.status(503, codes=("UNAVAILABLE",)),
        faulty.status(429, codes=("TOOMANYREQUESTS",)),
        faulty.status(408),
    ],
    ids=str,
)
def test_one_bad_answer_is_healed_by_the_next(
    client: RegistryClient, front: Front, ref: Reference, fault: faulty.Action
) -> None:
    rule = front.on("GET", "/blobs/", fault, times=1)
    assert part_of(client, ref) == PART
    assert rule.used == 1


def test_broken_body_is_resumed_where_it_broke(client: RegistryClient, front: Front, ref: Reference) -> None:
    front.on("GET", "/blobs/", faulty.truncate(200_000), times=1)
    front.on("GET", "/blobs/", faulty.truncate(1_000_000), times=1)
    with client.blob(ref, DIGEST, deadline=soon()) as stream:
        assert b"".join(stream) == BLOB
    asked = [seen.headers.get("range") for seen in front.requests("GET", "/blobs/")]
    assert asked == [None, f"bytes=200000-{len(BLOB) - 1}", f"bytes=1200000-{len(BLOB) - 1}"]


def test_blob_that_never_ends_well_is_given_up(client: RegistryClient, front: Front, ref: Reference) -> None:
    front.on("GET", "/blobs/", faulty.truncate(10))
    with pytest.raises(Unavailable):
        part_of(client, ref)
    assert front.count() < 20


def test_multipart_answer_is_understood(client: RegistryClient, front: Front, ref: Reference) -> None:
    front.on("GET", "/blobs/", faulty.multipart())
    assert part_of(client, ref) == PART


def test_whole_blob_for_a_range_says_ranges_are_unsupported(
    client: RegistryClient, front: Front, ref: Reference
) -> None:
    front.on("GET", "/blobs/", faulty.ignore_range())
    with pytest.raises(RangesUnsupported):
        part_of(client, ref)
    with pytest.raises(RangesUnsupported):
        client.blob_tail(ref, DIGEST, 100, deadline=soon())
    with client.blob_range(ref, DIGEST, 0, len(BLOB), deadline=soon()) as stream:
        assert stream.read() == BLOB, "the whole is what was asked for"


def test_tail_without_suffix_ranges_is_had_in_two_steps(client: RegistryClient, front: Front, ref: Reference) -> None:
    front.on("GET", "/blobs/", faulty.status(416), times=1)
    with client.blob_tail(ref, DIGEST, 1000, deadline=soon()) as stream:
        assert stream.total_size == len(BLOB)
        assert stream.read() == BLOB[-1000:]


@pytest.mark.parametrize("make", [faulty.mute, lambda f: faulty.stall(f, 1000), lambda f: faulty.slow(f, 10, 0.05),
                                  lambda f: faulty.trickle_headers(f, 0.05)], ids=["mute", "stall", "slow", "headers"])  # fmt: skip
def test_a_connection_that_does_not_move_is_replaced(
    front: Front, ref: Reference, make: Callable[[Front], faulty.Action]
) -> None:
    client = RegistryClient(settings(idle_timeout_s=0.4))
    front.on("GET", "/blobs/", make(front), times=1)
    begun = time.monotonic()
    assert part_of(client, ref) == PART
    assert time.monotonic() - begun < 5
    client.close()


@pytest.mark.parametrize("make", [faulty.mute, lambda f: faulty.stall(f, 1000), lambda f: faulty.slow(f, 2000, 0.05),
                                  lambda f: faulty.trickle_headers(f, 0.05)], ids=["mute", "stall", "slow", "headers"])  # fmt: skip
def test_the_deadline_bounds_whatever_a_server_does(
    client: RegistryClient, front: Front, ref: Reference, make: Callable[[Front], faulty.Action]
) -> None:
    front.on("", "/blobs/", make(front))
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        part_of(client, ref, Deadline.after(BRIEF_S))
    assert time.monotonic() - begun < BRIEF_S + 1.0


def test_registry_that_is_gone_is_waited_for(client: RegistryClient, tmp_path_factory: pytest.TempPathFactory) -> None:
    with Registry(tmp_path_factory.mktemp("gone")) as server:
        ref = Reference.parse(f"{server.host}/app")
        client.upload_blob(ref, DIGEST, len(BLOB), lambda: [BLOB])
        with client.blob_range(ref, DIGEST, 0, LENGTH, deadline=soon()) as stream:
            assert stream.read() == BLOB[:LENGTH]
        server.stop()
        back = threading.Timer(1.0, server.start)
        back.start()
        assert part_of(client, ref) == PART
        back.join()


def test_registry_that_stays_gone_ends_with_the_deadline(client: RegistryClient) -> None:
    ref = Reference.parse(f"127.0.0.1:{free_port()}/app")
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="refused"):
        part_of(client, ref, Deadline.after(BRIEF_S))
    assert time.monotonic() - begun < BRIEF_S + 0.5


def test_retry_after_is_kept_by_every_caller(client: RegistryClient, front: Front, ref: Reference) -> None:
    front.on("GET", "/blobs/", faulty.status(429, {"Retry-After": "1"}), times=1)
    begun = time.monotonic()
    assert part_of(client, ref) == PART
    assert time.monotonic() - begun >= 1.0
    front.on("GET", "/blobs/", faulty.status(503, {"Retry-After": "3600"}), times=1)
    with pytest.raises(Unavailable) as caught:
        part_of(client, ref)
    assert caught.value.retry_after_s is not None
    asked = front.count()
    with pytest.raises(Unavailable, match="asked to wait"):
        part_of(client, ref)
    assert front.count() == asked, "nobody asks before the time has passed"


def test_final_refusals_are_not_repeated(client: RegistryClient, front: Front, ref: Reference) -> None:
    front.on("GET", "/blobs/", faulty.status(404, codes=("BLOB_UNKNOWN",)), times=1)
    with pytest.raises(NotFound, match="BLOB_UNKNOWN"):
        part_of(client, ref)
    front.on("GET", "/blobs/", faulty.status(400, codes=("DIGEST_INVALID",)), times=1)
    with pytest.raises(RegistryError) as caught:
        part_of(client, ref)
    assert (caught.value.status, caught.value.codes) == (400, ("DIGEST_INVALID",))
    assert front.count() == 2


def test_manifest_damaged_once_is_fetched_again_and_always_is_refused(
    client: RegistryClient, front: Front, ref: Reference
) -> None:
    body = Manifest(Descriptor(names.OCI_CONFIG, DIGEST, len(BLOB)), ()).to_json()
    stored = client.put_manifest(ref, body, names.OCI_MANIFEST)
    front.on("GET", "/manifests/", faulty.flip_bit(5), times=1)
    assert client.manifest(ref.with_digest(stored.digest), deadline=soon()).body == body
    front.on("GET", "/manifests/", faulty.flip_bit(5))
    with pytest.raises(IntegrityError):
        client.manifest(ref.with_digest(stored.digest), deadline=soon())
    with pytest.raises(IntegrityError):
        client.manifest(ref, deadline=soon())


def test_redirect_carries_no_authorization_and_is_remembered(
    client: RegistryClient, front: Front, ref: Reference, registry: Registry
) -> None:
    with Front(registry.host) as storage:
        front.on("GET", "/blobs/", faulty.redirect(f"{storage.url}/"))
        for _ in range(3):
            assert part_of(client, ref) == PART
        assert front.count("GET", "/blobs/") == 1
        assert storage.count("GET", "/blobs/") == 3
        storage.on("GET", "/blobs/", faulty.status(403), times=1)
        assert part_of(client, ref) == PART, "an expired address is asked for again"
        assert front.count("GET", "/blobs/") == 2


def test_expired_address_that_stays_refused_is_an_error(client: RegistryClient, front: Front, ref: Reference) -> None:
    with Front() as storage:
        front.on("GET", "/blobs/", faulty.redirect(f"{storage.url}/"))
        storage.on("GET", "", faulty.status(403))
        with pytest.raises(RegistryError) as caught:
            part_of(client, ref)
        assert caught.value.status == 403


def test_redirects_in_a_circle_end(client: RegistryClient, front: Front, ref: Reference) -> None:
    front.on("GET", "/blobs/", faulty.redirect(f"{front.url}/"))
    with pytest.raises(Unavailable, match="redirects"):
        part_of(client, ref, Deadline.after(BRIEF_S))


def test_upload_goes_on_after_failures(client: RegistryClient, front: Front, ref: Reference) -> None:
    front.on("POST", "/blobs/uploads/", faulty.status(503), times=1)
    front.on("PUT", "digest=", faulty.reset(), times=1)
    data = os.urandom(700_000)
    client.upload_blob(ref, Digest.of(data), len(data), lambda: [data], deadline=soon())
    assert client.blob_exists(ref, Digest.of(data))


def test_chunk_whose_answer_was_lost_is_not_appended_twice(
    client: RegistryClient, front: Front, ref: Reference
) -> None:
    def lose_answer(_seen: faulty.Seen, forward: faulty.Forward) -> Answer:
        forward().whole()
        return Answer(0)

    front.on("PATCH", "/blobs/uploads/", lose_answer, times=1)
    data = os.urandom(20 << 20)
    # Distribution cannot say how much it has once its last Location is lost; others can (tests/unit/registry).
    with pytest.raises(FailedPrecondition, match="upload again"):
        client.upload_stream(ref, [data], deadline=soon())
    assert client.upload_stream(ref, [data], deadline=soon()) == (Digest.of(data), len(data))


def test_chunk_that_was_lost_is_sent_again(client: RegistryClient, front: Front, ref: Reference) -> None:
    front.on("PATCH", "/blobs/uploads/", faulty.reset(), times=1)
    data = os.urandom(1 << 20)
    assert client.upload_stream(ref, [data], deadline=soon()) == (Digest.of(data), len(data))


def test_closing_wakes_those_who_wait(front: Front, ref: Reference) -> None:
    client = RegistryClient(settings())
    front.on("GET", "/blobs/", faulty.status(503, {"Retry-After": "20"}))
    failed: list[Exception] = []

    def read() -> None:
        try:
            part_of(client, ref)
        except Unavailable as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    while not front.count("GET", "/blobs/"):
        assert thread.is_alive()
    client.close()
    thread.join(5)
    assert not thread.is_alive()
    assert failed


def test_header_lines_without_end_are_refused(client: RegistryClient, front: Front, ref: Reference) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + b"X-Much: y\r\n" * 500
    front.on("GET", "/blobs/", lambda _seen, _forward: Answer(-1, body=head), times=1)
    assert part_of(client, ref) == PART
