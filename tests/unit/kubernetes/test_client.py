"""Requests: what the server says becomes one sentence, no secret does, and nothing is waited for without end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.distribution import Authority
from tests.support.kubernetes_fake import FakeKubernetes

from apparate.errors import ApparateError, FailedPrecondition, InvalidArgument, Unavailable
from apparate.kubernetes import client as client_module
from apparate.kubernetes.access import Access
from apparate.kubernetes.client import Client, collection
from apparate.kubernetes.errors import Denied, error_of

NODES = collection("v1", "nodes")
SECRETS = collection("v1", "secrets", "apparate")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeKubernetes]:
    with FakeKubernetes(tmp_path) as fake:
        yield fake


def test_paths_are_those_of_the_api() -> None:
    assert collection("v1", "nodes") == "/api/v1/nodes"
    assert collection("apps/v1", "daemonsets", "x") == "/apis/apps/v1/namespaces/x/daemonsets"


def test_pod_finds_server_and_account(tmp_path: Path) -> None:
    for name in ("ca.crt", "token"):
        (tmp_path / name).write_text(f"{name}\n")
    found = Access.in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}, tmp_path)
    assert found.server == "https://[fd00::1]:443"
    assert found.read_token() == "token"
    (tmp_path / "token").write_text("renewed")
    assert found.read_token() == "renewed"


def test_outside_of_a_pod_the_sentence_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"KUBERNETES_SERVICE_HOST .* run this in a pod"):
        Access.in_cluster({}, tmp_path)
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(FailedPrecondition, match=r"ca\.crt is not there: set automountServiceAccountToken: true"):
        Access.in_cluster(environ, tmp_path)


def test_certificate_of_another_authority_is_not_trusted(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    with FakeKubernetes(tmp_path, ours.issue("api"), ours.ca) as fake:
        assert fake.client().get(NODES)["items"] == []
        access = fake.account("admin")
        with pytest.raises(Unavailable, match=r"the API server does not answer: .*certificate verify failed"):
            Client(Access(access.server, theirs.ca, access.token), "test").get(NODES)
    with pytest.raises(FailedPrecondition, match="no authorities to hold its certificate against"):
        Client(Access("https://127.0.0.1:1"), "test")


def test_token_is_read_again_for_every_request(cluster: FakeKubernetes) -> None:
    access = cluster.account("first")
    client = Client(access, "test")
    client.get(NODES)
    cluster.account("second")
    cluster.revoke("first")
    with pytest.raises(Denied):
        client.get(NODES)
    assert access.token is not None
    access.token.write_text("second")
    client.get(NODES)


def test_server_that_is_away_is_unavailable_and_found_again(cluster: FakeKubernetes) -> None:
    client, port = cluster.client(), cluster.port
    cluster.stop()
    with pytest.raises(Unavailable, match="GET /api/v1/nodes: the API server does not answer"):
        client.get(NODES)
    cluster.restart(port)
    assert client.get(NODES)["items"] == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InvalidArgument), (418, ApparateError), (422, InvalidArgument), (429, Unavailable), (503, Unavailable)],
)
def test_refusal_is_the_error_of_its_status(cluster: FakeKubernetes, status: int, kind: type[ApparateError]) -> None:
    cluster.answer_all_with(status, "SomeReason", {"Retry-After": "7"})
    with pytest.raises(kind, match=rf"HTTP status {status} \(SomeReason\): as the test wants it") as caught:
        cluster.client().get(NODES)
    if isinstance(caught.value, Unavailable):
        assert caught.value.retry_after_s == 7


def test_words_of_the_server_about_a_secret_are_not_repeated() -> None:
    said = "Secret in version v1 cannot be handled: unmarshal hunter2"
    assert "hunter2" in str(error_of("POST /api/v1/nodes", 400, "BadRequest", said, None, secrets=False))
    assert "hunter2" not in str(error_of(f"POST {SECRETS}", 400, "BadRequest", said, None, secrets=True))


def test_page_of_a_proxy_is_no_answer(cluster: FakeKubernetes) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        page = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n<html>\n"
        thread = threading.Thread(target=_answer_once, args=(server, page))
        thread.start()
        with pytest.raises(Unavailable, match="the answer is no JSON object"):
            Client(Access(f"http://127.0.0.1:{server.getsockname()[1]}"), "test").get(NODES)
        thread.join()


def test_answer_without_end_is_refused(cluster: FakeKubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BODY_BYTES_MAX", 100)
    cluster.put("nodes", "a", {"metadata": {"annotations": {"x": "y" * 200}}})
    with pytest.raises(Unavailable, match="larger than 100 bytes"):
        cluster.client().get(NODES)


def test_watch_event_without_end_is_refused(cluster: FakeKubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LINE_BYTES_MAX", 100)
    chunk = b"c8\r\n" + b"x" * 200 + b"\r\n"
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        page = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk
        thread = threading.Thread(target=_answer_once, args=(server, page))
        thread.start()
        with pytest.raises(Unavailable, match="one event is larger than 100 bytes"):
            list(Client(Access(f"http://127.0.0.1:{server.getsockname()[1]}"), "test").watch(NODES, {}, "1"))
        thread.join()


def test_watch_that_breaks_is_unavailable_after_what_it_told(cluster: FakeKubernetes) -> None:
    event = b'{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"5"}}}\n'
    page = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(event), event)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        thread = threading.Thread(target=_answer_once, args=(server, page))
        thread.start()
        events = Client(Access(f"http://127.0.0.1:{server.getsockname()[1]}"), "test").watch(NODES, {}, "1")
        assert next(events).version == "5"
        with pytest.raises(Unavailable, match="WATCH /api/v1/nodes: the connection broke"):
            next(events)
        thread.join()


def _answer_once(server: socket.socket, page: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(page)
