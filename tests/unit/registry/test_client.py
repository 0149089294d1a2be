"""The client over a registry in memory: what is asked, what is shown, what is resumed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.fake_registry import FakeRegistry, Reply

from apparate.errors import (
    ApparateError,
    FailedPrecondition,
    FormatError,
    IntegrityError,
    InvalidArgument,
    RegistryError,
    Unavailable,
)
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.oci.manifest import MANIFEST_BYTES_MAX
from apparate.oci.reference import Reference
from apparate.registry.client import RegistryClient
from apparate.registry.deadline import Deadline
from apparate.registry.transport import Request

BLOB = bytes(range(256)) * 100
DIGEST = Digest.of(BLOB)
REF = Reference.parse("registry.test/team/app:v1")


@pytest.fixture
def registry() -> FakeRegistry:
    made = FakeRegistry()
    made.repository("team/app").blobs[str(DIGEST)] = BLOB
    return made


@pytest.fixture
def client(registry: FakeRegistry) -> Iterator[RegistryClient]:
    made = registry.client()
    yield made
    made.close()
    assert registry.closed


def soon() -> Deadline:
    return Deadline.after(10)


def test_all_manifest_types_are_accepted(client: RegistryClient, registry: FakeRegistry) -> None:
    client.put_manifest(REF, b"{}", names.OCI_MANIFEST)
    client.manifest(REF, deadline=soon())
    accept = registry.requests[-1].headers["Accept"]
    assert all(kind in accept for kind in names.INDEX_TYPES | names.MANIFEST_TYPES)


def test_digest_goes_before_the_tag(client: RegistryClient, registry: FakeRegistry) -> None:
    stored = client.put_manifest(REF, b"{}", names.OCI_MANIFEST)
    both = Reference.parse(f"{REF}@{stored.digest}")
    client.manifest(both, deadline=soon())
    assert registry.requests[-1].url.endswith(f"/manifests/{stored.digest}")


def test_manifest_of_another_digest_is_not_stored(client: RegistryClient, registry: FakeRegistry) -> None:
    with pytest.raises(IntegrityError):
        client.put_manifest(REF.with_digest(DIGEST), b"{}", names.OCI_MANIFEST)
    assert not registry.requests


def test_huge_manifest_is_refused(client: RegistryClient, registry: FakeRegistry) -> None:
    registry.fault = lambda _request: Reply(200, {}, b" " * (MANIFEST_BYTES_MAX + 1))
    with pytest.raises(FormatError, match="size"):
        client.manifest(REF, deadline=soon())


def test_head_without_a_digest_is_completed_by_get(client: RegistryClient, registry: FakeRegistry) -> None:
    stored = client.put_manifest(REF, b"{}", names.OCI_MANIFEST)
    registry.fault = lambda request: Reply(200) if request.method == "HEAD" else None
    assert client.head_manifest(REF, deadline=soon()) == stored


def test_digest_that_does_not_parse_is_named(client: RegistryClient, registry: FakeRegistry) -> None:
    registry.fault = lambda _request: Reply(200, {"Docker-Content-Digest": "md5:1"}, b"{}")
    for ask in (client.manifest, client.head_manifest):
        with pytest.raises(FormatError, match="Docker-Content-Digest"):
            ask(REF, deadline=soon())


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, 0), (5, -1)])
def test_range_that_makes_no_sense_is_refused(client: RegistryClient, offset: int, length: int) -> None:
    with pytest.raises(InvalidArgument):
        client.blob_range(REF, DIGEST, offset, length, deadline=soon())
    with pytest.raises(InvalidArgument):
        client.blob_tail(REF, DIGEST, min(length, 0), deadline=soon())


def test_blob_without_a_length_is_not_begun(client: RegistryClient, registry: FakeRegistry) -> None:
    registry.fault = lambda _request: Reply(200, {"Content-Length": "many"}, BLOB)
    with pytest.raises(Unavailable, match="how long"):
        client.blob(REF, DIGEST, deadline=Deadline.after(0.05))


def test_verified_blob_is_checked_with_its_last_byte(client: RegistryClient, registry: FakeRegistry) -> None:
    assert client.blob(REF, DIGEST, deadline=soon(), verify=True).read() == BLOB
    registry.repository("team/app").blobs[str(DIGEST)] = BLOB[:-1] + b"!"
    stream = client.blob(REF, DIGEST, deadline=soon(), verify=True)
    assert stream.read(len(BLOB) - 1) == BLOB[:-1]
    with pytest.raises(IntegrityError):
        stream.read()
    registry.repository("team/app").blobs[str(DIGEST)] = b""
    with pytest.raises(IntegrityError):
        client.blob(REF, DIGEST, deadline=soon(), verify=True)


def test_secrets_of_signed_addresses_are_not_shown(
    client: RegistryClient, registry: FakeRegistry, capfd: pytest.CaptureFixture[str]
) -> None:
    def sign(request: Request) -> Reply | None:
        if "registry.test" in request.url:
            return Reply(
                307, {"Location": "https://user:hunter1@store.test/b?X-Amz-Signature=hunter2&Expires=1#hunter3"}
            )
        return Reply(400, {}, b"hunter4")

    registry.fault = sign
    with pytest.raises(RegistryError) as caught:
        client.blob(REF, DIGEST, deadline=soon())
    shown = capfd.readouterr()
    assert "store.test/b?X-Amz-Signature=REDACTED" in str(caught.value)
    assert "hunter" not in str(caught.value) + shown.out + shown.err


@pytest.mark.parametrize(
    "location", ["http://store.test/b", "ftp://store.test/b", "https://[bad", "javascript:alert(1)"]
)
def test_redirect_to_where_we_do_not_go_is_refused(
    client: RegistryClient, registry: FakeRegistry, location: str
) -> None:
    registry.fault = lambda _request: Reply(307, {"Location": location})
    with pytest.raises(Unavailable, match="redirected"):
        client.blob(REF, DIGEST, deadline=Deadline.after(0.05))


def test_location_of_a_registry_behind_a_tls_proxy_keeps_https(client: RegistryClient, registry: FakeRegistry) -> None:
    def behind_proxy(request: Request) -> Reply | None:
        if request.method == "POST":
            registry.uploads["s"] = bytearray()
            return Reply(202, {"Location": "http://registry.test/v2/team/app/blobs/uploads/s"})
        return None

    registry.fault = behind_proxy
    client.upload_blob(REF, Digest.of(b"x"), 1, lambda: [b"x"])
    assert all(request.url.startswith("https://registry.test/") for request in registry.requests)


def test_chunk_whose_answer_was_lost_is_not_sent_twice(client: RegistryClient, registry: FakeRegistry) -> None:
    lost: list[Request] = []

    def lose(request: Request) -> Unavailable | None:
        if request.method == "PATCH" and not lost:
            lost.append(request)
            registry.uploads[next(iter(registry.uploads))] += BLOB
            return Unavailable("connection broke")
        return None

    registry.fault = lose
    assert client.upload_stream(REF, [BLOB]) == (DIGEST, len(BLOB))
    assert [request.method for request in registry.requests] == ["POST", "PATCH", "GET", "PUT"]


def test_half_a_chunk_is_completed(client: RegistryClient, registry: FakeRegistry) -> None:
    def halve(request: Request) -> Unavailable | None:
        if request.method == "PATCH" and registry.count("PATCH") == 1:
            registry.uploads[next(iter(registry.uploads))] += BLOB[:1000]
            return Unavailable("connection broke")
        return None

    registry.fault = halve
    assert client.upload_stream(REF, [BLOB]) == (DIGEST, len(BLOB))
    last = [request for request in registry.requests if request.method == "PATCH"][-1]
    assert last.headers["Content-Range"] == f"1000-{len(BLOB) - 1}"


@pytest.mark.parametrize("text", ["0-99999999", "a-b", "5-"])
def test_upload_status_that_makes_no_sense_is_refused(
    client: RegistryClient, registry: FakeRegistry, text: str
) -> None:
    def confuse(request: Request) -> Reply | Unavailable | None:
        if request.method == "PATCH":
            return Unavailable("connection broke")
        return Reply(204, {"Range": text}) if request.method == "GET" else None

    registry.fault = confuse
    with pytest.raises(FormatError, match=r"Range"):
        client.upload_stream(REF, [BLOB])


def test_answer_without_a_location_is_temporary(client: RegistryClient, registry: FakeRegistry) -> None:
    registry.fault = lambda request: Reply(202) if request.method == "POST" else None
    with pytest.raises(Unavailable, match="no Location"):
        client.upload_blob(REF, DIGEST, len(BLOB), lambda: [BLOB], deadline=Deadline.after(0.05))


def test_source_that_cannot_be_read_is_no_network_failure(client: RegistryClient, registry: FakeRegistry) -> None:
    def broken() -> Iterator[bytes]:
        yield BLOB[:10]
        raise OSError(5, "Input/output error")

    with pytest.raises(FailedPrecondition, match="Input/output error"):
        client.upload_blob(REF, DIGEST, len(BLOB), broken)
    assert registry.count("PUT") == 0


_HEADERS = st.dictionaries(
    st.sampled_from(["Location", "Content-Range", "Content-Length", "Content-Type", "Docker-Content-Digest",
                     "WWW-Authenticate", "Retry-After", "Range"]),
    st.text(st.characters(max_codepoint=255), max_size=30)
    | st.sampled_from([str(DIGEST), "5", "bytes 0-4/10", "bytes=0-4", "/v2/", "https://h:1/", 'Bearer realm="https://t/"',
                       'Basic realm="x"', "Wed, 21 Oct 2015 07:28:00 GMT", "text/html", "multipart/byteranges; boundary=x"]),
    max_size=4,
)  # fmt: skip
_REPLIES = st.builds(
    Reply,
    st.sampled_from([200, 201, 202, 204, 206, 301, 307, 400, 401, 403, 404, 416, 429, 500, 503]),
    _HEADERS,
    st.binary(max_size=40)
    | st.sampled_from([b"{}", b'{"token": "t"}', b'{"errors": [{"code": "X"}]}', b'{"errors": 5}']),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_REPLIES, min_size=1, max_size=5), st.integers(0, 6))
def test_whatever_a_registry_answers_only_our_errors_escape(replies: list[Reply], which: int) -> None:
    registry = FakeRegistry()
    left = iter(replies)
    registry.fault = lambda _request: next(left, Reply(404))
    client, brief = registry.client(), Deadline.after(0.02)
    calls: list[Callable[[], object]] = [
        lambda: client.manifest(REF, deadline=brief),
        lambda: client.head_manifest(REF, deadline=brief),
        lambda: client.blob(REF, DIGEST, deadline=brief).read(),
        lambda: client.blob_range(REF, DIGEST, 0, 5, deadline=brief).read(),
        lambda: client.blob_tail(REF, DIGEST, 5, deadline=brief).read(),
        lambda: client.upload_stream(REF, [b"x"], deadline=brief),
        lambda: client.mount_blob(REF, DIGEST, "other", deadline=brief),
    ]
    with contextlib.suppress(ApparateError):
        calls[which]()
    client.close()
