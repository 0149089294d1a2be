"""The registry client against a real registry: Debian's docker-registry (CNCF Distribution 2.8)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from tests.support.distribution import Registry
from tests.support.fake_registry import FakeRegistry

from apparate.errors import IntegrityError, NotFound, RegistryError
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.oci.manifest import Descriptor, Manifest
from apparate.oci.reference import Reference
from apparate.registry.client import RegistryClient
from apparate.registry.deadline import Deadline
from apparate.registry.settings import RegistrySettings

PATIENCE_S = 30.0
BLOB = os.urandom(100_000)
DIGEST = Digest.of(BLOB)


class Peer(Protocol):
    """What stores for us: the real registry or the fake."""

    @property
    def host(self) -> str: ...


@pytest.fixture(scope="module", params=["docker-registry", "fake"])
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    if request.param == "fake":
        yield FakeRegistry()
        return
    with Registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def client(registry: Peer) -> Iterator[RegistryClient]:
    made = registry.client() if isinstance(registry, FakeRegistry) else RegistryClient(RegistrySettings(hosts_dirs=()))
    yield made
    made.close()


@pytest.fixture
def ref(registry: Peer, client: RegistryClient) -> Reference:
    made = Reference.parse(f"{registry.host}/team/app:v1")
    if not client.blob_exists(made, DIGEST):
        client.upload_blob(made, DIGEST, len(BLOB), lambda: [BLOB[:7], BLOB[7:]])
    return made


def soon() -> Deadline:
    return Deadline.after(PATIENCE_S)


def manifest_of(digest: Digest, size: int) -> bytes:
    return Manifest(Descriptor(names.OCI_CONFIG, digest, size), ()).to_json()


def test_whole_blob_comes_back(client: RegistryClient, ref: Reference) -> None:
    with client.blob(ref, DIGEST, deadline=soon()) as stream:
        assert stream.size == len(BLOB)
        assert b"".join(stream) == BLOB


def test_missing_blob_is_not_found(client: RegistryClient, ref: Reference) -> None:
    with pytest.raises(NotFound):
        client.blob(ref, Digest.of(b"nothing"), deadline=soon())
    assert not client.blob_exists(ref, Digest.of(b"nothing"), deadline=soon())


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, 100_000), (99_999, 1), (1234, 50_000)])
def test_range_brings_exactly_its_bytes(client: RegistryClient, ref: Reference, offset: int, length: int) -> None:
    with client.blob_range(ref, DIGEST, offset, length, deadline=soon()) as stream:
        assert (stream.offset, stream.total_size) == (offset, len(BLOB))
        assert stream.read() == BLOB[offset : offset + length]


def test_range_over_the_end_is_cut_there(client: RegistryClient, ref: Reference) -> None:
    with client.blob_range(ref, DIGEST, 99_990, 100, deadline=soon()) as stream:
        buffer = bytearray(100)
        assert stream.readinto(buffer) == 10
        assert buffer[:10] == BLOB[-10:]


def test_range_past_the_end_is_refused(client: RegistryClient, ref: Reference) -> None:
    with pytest.raises(RegistryError) as caught:
        client.blob_range(ref, DIGEST, 100_000, 1, deadline=soon())
    assert caught.value.status == 416


@pytest.mark.parametrize("length", [1, 51, 100_000, 200_000])
def test_tail_is_the_end_of_the_blob(client: RegistryClient, ref: Reference, length: int) -> None:
    with client.blob_tail(ref, DIGEST, length, deadline=soon()) as stream:
        assert stream.total_size == len(BLOB)
        assert stream.read() == BLOB[-length:]


def test_manifest_round_trip_by_tag_and_by_digest(client: RegistryClient, ref: Reference) -> None:
    body = manifest_of(DIGEST, len(BLOB))
    stored = client.put_manifest(ref, body, names.OCI_MANIFEST)
    assert stored.digest == Digest.of(body)
    for name in (ref, ref.with_digest(stored.digest)):
        fetched = client.manifest(name, deadline=soon())
        assert fetched.body == body
        assert fetched.descriptor == stored
        assert client.head_manifest(name, deadline=soon()) == stored


def test_missing_manifest_is_none_for_head_and_an_error_for_get(client: RegistryClient, ref: Reference) -> None:
    gone = ref.with_tag("gone")
    assert client.head_manifest(gone, deadline=soon()) is None
    with pytest.raises(NotFound):
        client.manifest(gone, deadline=soon())


def test_chunked_upload_of_several_chunks(client: RegistryClient, ref: Reference) -> None:
    piece = os.urandom(1 << 20)
    digest, size = client.upload_stream(ref, (piece for _ in range(40)))
    assert (digest, size) == (Digest.of(piece * 40), 40 << 20)
    with client.blob_range(ref, digest, (17 << 20) - 3, 6, deadline=soon()) as stream:
        assert stream.read() == piece[-3:] + piece[:3]


def test_upload_that_lies_about_its_digest_is_refused(client: RegistryClient, ref: Reference) -> None:
    with pytest.raises(RegistryError) as caught:
        client.upload_blob(ref, Digest.of(b"something else"), 5, lambda: [b"other"])
    assert caught.value.codes == ("DIGEST_INVALID",)


@pytest.mark.parametrize("pieces", [[b"1234"], [b"123456"]])
def test_upload_of_another_size_is_never_completed(client: RegistryClient, ref: Reference, pieces: list[bytes]) -> None:
    with pytest.raises(IntegrityError):
        client.upload_blob(ref, Digest.of(pieces[0]), 5, lambda: pieces)
    assert not client.blob_exists(ref, Digest.of(pieces[0]))


def test_blob_is_mounted_from_another_repository(client: RegistryClient, ref: Reference, registry: Peer) -> None:
    other = Reference.parse(f"{registry.host}/team/other")
    assert client.mount_blob(other, DIGEST, ref.repository)
    assert client.blob_exists(other, DIGEST)


def test_mount_of_what_is_not_there_says_so(client: RegistryClient, ref: Reference, registry: Peer) -> None:
    other = Reference.parse(f"{registry.host}/team/other")
    assert not client.mount_blob(other, Digest.of(b"nowhere"), ref.repository)


def test_deleted_manifest_is_gone(client: RegistryClient, ref: Reference) -> None:
    stored = client.put_manifest(ref.with_tag("brief"), manifest_of(DIGEST, len(BLOB)) + b"\n", names.OCI_MANIFEST)
    client.delete_manifest(ref.with_digest(stored.digest))
    assert client.head_manifest(ref.with_digest(stored.digest), deadline=soon()) is None


def test_data_of_an_earlier_run_is_served_after_a_restart(tmp_path: Path) -> None:
    client = RegistryClient(RegistrySettings(hosts_dirs=()))
    server = Registry(tmp_path)
    with server:
        ref = Reference.parse(f"{server.host}/app")
        client.upload_blob(ref, DIGEST, len(BLOB), lambda: [BLOB])
    with server, client.blob(ref, DIGEST, deadline=soon()) as stream:
        assert stream.read() == BLOB
    client.close()
