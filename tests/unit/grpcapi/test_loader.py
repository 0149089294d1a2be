from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from tests.support.fake_loader import FakeLayer, FakeLoader

from apparate.errors import (
    AlreadyExists,
    ApparateError,
    FailedPrecondition,
    FormatError,
    IntegrityError,
    InvalidArgument,
    NotFound,
    RegistryError,
    Unavailable,
    Unsupported,
)
from apparate.grpcapi.loader import loader_handler
from apparate.grpcapi.loader_client import LoaderClient, LoaderDeadlines
from apparate.grpcapi.rpc import SERVER_OPTIONS
from apparate.oci.digest import Digest
from apparate.snapshot.remote import LayerPhase, ManifestLayer, Progress, ResolveRequest

QUICK = LoaderDeadlines(query_s=5, resolve_s=5, mount_s=5, idle_s=5, outage_s=0.2)


def serve(loader: FakeLoader, socket: Path, threads: int = 8) -> grpc.Server:
    server = grpc.server(futures.ThreadPoolExecutor(threads), options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((loader_handler(loader),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    return server


@pytest.fixture
def fake(tmp_path: Path) -> FakeLoader:
    return FakeLoader(tmp_path / "layers")


@pytest.fixture
def client(fake: FakeLoader, tmp_path: Path) -> Iterator[LoaderClient]:
    server = serve(fake, tmp_path / "s")
    with LoaderClient(str(tmp_path / "s"), QUICK) as connected:
        yield connected
    server.stop(None).wait()


def test_every_call_gives_the_same_values_on_both_sides(client: LoaderClient, fake: FakeLoader) -> None:
    digest = fake.add(FakeLayer(b"blob", {"a": b"x" * 10, "b/\xe9": b"yy"}))
    assert client.resolve(ResolveRequest("r", digest, {"k": "v"})).image_size == 12
    assert fake.calls[0] == ("resolve", ResolveRequest("r", digest, {"k": "v"}))
    assert client.mount(digest) == fake.mount(digest)
    assert client.usage(digest) == fake.usage(digest)
    assert client.status() == fake.status()
    assert client.profile(digest) == fake.profile(digest)
    assert list(client.complete(digest)) == [Progress(0, 12), Progress(12, 12)]
    assert client.status()[0].phase is LayerPhase.COMPLETE
    assert b"".join(client.fetch("r", digest)) == b"blob"
    client.unmount(digest)
    client.forget(digest)
    assert client.status() == []


def test_layers_of_a_manifest_keep_order_and_annotations(client: LoaderClient, fake: FakeLoader) -> None:
    layers = [ManifestLayer(Digest.of(bytes([n])), "type", n, {"k": str(n)}) for n in range(5)]
    fake.manifests[Digest.of(b"m")] = layers
    assert client.layers("r", Digest.of(b"m")) == layers


def test_a_large_blob_arrives_whole_in_bounded_messages(client: LoaderClient, fake: FakeLoader) -> None:
    blob = bytes(range(256)) * 20_000
    digest = fake.add(FakeLayer(blob))
    parts = list(client.fetch("r", digest))
    assert b"".join(parts) == blob
    assert max(map(len, parts)) <= 1 << 20


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument("a"),
        NotFound("b"),
        AlreadyExists("c"),
        FailedPrecondition("d"),
        Unsupported("e"),
        FormatError("estargz", "footer", "short", 12),
        IntegrityError("TOC", "sha256:a", "sha256:b"),
        RegistryError("GET", "https://r/v2/", 403, ("DENIED",), "log in"),
        Unavailable("g", 3.0),
        ApparateError("h"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_error_on_the_other_side(
    client: LoaderClient, fake: FakeLoader, error: ApparateError
) -> None:
    fake.fail["usage"] = fake.fail["complete"] = error
    for call in (lambda: client.usage(Digest.of(b"")), lambda: list(client.complete(Digest.of(b"")))):
        with pytest.raises(type(error)) as caught:
            call()
        assert type(caught.value) is type(error)
        assert str(caught.value) == str(error)
        assert vars(caught.value).keys() == vars(error).keys()


def test_a_digest_that_does_not_parse_is_the_callers_fault(tmp_path: Path, fake: FakeLoader) -> None:
    from apparate.grpcapi._gen import loader_pb2
    from apparate.grpcapi.loader import SERVICE
    from apparate.grpcapi.rpc import Stub, channel_to

    server = serve(fake, tmp_path / "s")
    with channel_to(str(tmp_path / "s")) as channel, pytest.raises(grpc.RpcError) as caught:
        Stub(channel, SERVICE)("Mount", loader_pb2.LayerRequest(layer_digest="sha256:xyz"), timeout_s=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    server.stop(None).wait()


def test_no_loader_is_unavailable_after_the_outage_limit(tmp_path: Path) -> None:
    with LoaderClient(str(tmp_path / "nobody"), QUICK) as client:
        with pytest.raises(Unavailable, match="the loader at"):
            client.status()
        with pytest.raises(Unavailable):
            client.usage(Digest.of(b""))


def test_reachable_is_told_from_unreachable(client: LoaderClient, tmp_path: Path) -> None:
    assert client.is_reachable(5)
    with LoaderClient(str(tmp_path / "nobody"), QUICK) as other:
        assert not other.is_reachable(0.1)
    assert not other.is_reachable(0.1)


def test_a_restarted_loader_is_a_pause(fake: FakeLoader, tmp_path: Path) -> None:
    digest = fake.add(FakeLayer(b"blob", {"a": b"x"}))
    socket = tmp_path / "s"
    server = serve(fake, socket)
    with LoaderClient(str(socket), LoaderDeadlines(outage_s=30)) as client:
        client.resolve(ResolveRequest("r", digest))
        server.stop(None).wait()
        answers: list[str] = []
        caller = threading.Thread(target=lambda: answers.append(client.mount(digest).driver))
        caller.start()
        server = serve(fake, socket)
        caller.join(30)
        assert answers == ["fake"]
    server.stop(None).wait()


def test_a_call_that_takes_too_long_is_unavailable(fake: FakeLoader, tmp_path: Path) -> None:
    server = serve(fake, tmp_path / "s")
    release = threading.Event()
    fake.before["usage"] = lambda _: release.wait(30)
    with LoaderClient(str(tmp_path / "s"), LoaderDeadlines(query_s=0.1)) as client:
        with pytest.raises(Unavailable, match="did not answer"):
            client.usage(Digest.of(b""))
        release.set()
    server.stop(None).wait()


def test_calls_that_wait_for_a_registry_leave_threads_for_what_is_here(fake: FakeLoader, tmp_path: Path) -> None:
    digest = fake.add(FakeLayer(b"blob", {"a": b"x"}))
    server = serve(fake, tmp_path / "s", threads=2)
    release, waiting = threading.Event(), threading.Semaphore(0)

    def hang(_: object) -> None:
        waiting.release()
        assert release.wait(30)

    with LoaderClient(str(tmp_path / "s"), LoaderDeadlines(outage_s=1)) as client:
        client.resolve(ResolveRequest("r", digest))
        fake.before["resolve"] = hang
        with futures.ThreadPoolExecutor(2) as callers:
            calls = [callers.submit(client.resolve, ResolveRequest("r", digest)) for _ in range(2)]
            for _ in calls:
                assert waiting.acquire(timeout=30)
            assert client.mount(digest).driver == "fake"
            release.set()
            assert [call.result().layer_digest for call in calls] == [digest, digest]
    server.stop(None).wait()


def test_a_silent_stream_is_given_up(fake: FakeLoader, tmp_path: Path) -> None:
    server = serve(fake, tmp_path / "s")
    release = threading.Event()
    fake.before["complete"] = lambda _: release.wait(30)
    with LoaderClient(str(tmp_path / "s"), LoaderDeadlines(idle_s=0.1)) as client:
        with pytest.raises(Unavailable):
            list(client.complete(Digest.of(b"")))
        release.set()
    server.stop(None).wait()


def test_an_unexpected_failure_is_internal_and_logged(
    client: LoaderClient, fake: FakeLoader, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_argument: object) -> None:
        raise KeyError("surprise")

    fake.before["usage"] = fail
    with pytest.raises(ApparateError, match="surprise"):
        client.usage(Digest.of(b""))
    captured = capsys.readouterr()
    assert "call failed unexpectedly" in captured.out + captured.err


def test_closing_ends_a_call_that_waits_for_the_loader(tmp_path: Path) -> None:
    client = LoaderClient(str(tmp_path / "nobody"), LoaderDeadlines(outage_s=3600))
    errors: list[Exception] = []

    def call() -> None:
        try:
            client.usage(Digest.of(b""))
        except Unavailable as error:
            errors.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    client.close()
    caller.join(10)
    assert len(errors) == 1
    with pytest.raises(Unavailable, match="closed"):
        client.status()
