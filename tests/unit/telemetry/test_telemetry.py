import json
import os
import socket
import stat
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from apparate.errors import InvalidArgument, Unavailable
from apparate.telemetry import logging as applog
from apparate.telemetry import systemd
from apparate.telemetry.client import get_page
from apparate.telemetry.health import Health
from apparate.telemetry.metrics import READS, Page, TelemetryServer, metrics_page


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("local")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def _get(path: Path, url: str) -> tuple[int, bytes]:
    connection = _UnixConnection(path)
    connection.request("GET", url)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_pages_are_served_on_a_private_socket(tmp_path: Path) -> None:
    health = Health()
    path = tmp_path / "t.sock"
    server = TelemetryServer({"/metrics": metrics_page, "/readyz": health.ready_page, "/livez": health.live_page}, path)
    try:
        READS.inc()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"apparate_loader_reads_total" in _get(path, "/metrics")[1]
        assert _get(path, "/readyz") == (200, b"{}\n")
        health.add("loader", lambda: "does not answer")
        status, body = _get(path, "/readyz")
        assert (status, json.loads(body)) == (503, {"loader": "does not answer"})
        assert _get(path, "/livez")[0] == 200
        assert _get(path, "/other")[0] == 404
    finally:
        server.close()
    assert not path.exists()


def test_private_pages_are_not_served_over_tcp(tmp_path: Path) -> None:
    path = tmp_path / "t.sock"
    private = {"/records": lambda: Page(200, "text/plain", b"private")}
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with closing(TelemetryServer({"/metrics": metrics_page}, path, address, private_pages=private)):
        assert get_page(path, "/records") == b"private"
        with closing(HTTPConnection(address)) as connection:
            connection.request("GET", "/records")
            assert connection.getresponse().status == 404
        with pytest.raises(Unavailable, match="404"):
            get_page(path, "/other")
    with pytest.raises(Unavailable, match="does not answer"):
        get_page(path, "/records")


def test_the_directory_made_for_the_socket_is_private(tmp_path: Path) -> None:
    path = tmp_path / "run" / "t.sock"
    TelemetryServer({}, path).close()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_tcp_address_is_checked() -> None:
    with pytest.raises(InvalidArgument, match="host:port"):
        TelemetryServer({}, None, "localhost")


def test_notify_without_a_service_manager_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert systemd.notify("READY=1") is False


def test_notify_reaches_the_service_manager_with_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        assert systemd.notify("READY=1")
        assert manager.recv(100) == b"READY=1"
        assert systemd.store_fd("fuse", manager.fileno())
        payload, fds, _flags, _address = socket.recv_fds(manager, 100, 4)
        assert b"FDSTORE=1\nFDNAME=fuse" in payload
        assert len(fds) == 1
        os.close(fds[0])


def test_only_a_descriptor_that_is_not_kept_is_an_error_when_the_service_manager_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert systemd.notify("STOPPING=1") is False
    assert systemd.remove_fd("fuse") is False
    with pytest.raises(Unavailable, match="FDSTORE"):
        systemd.store_fd("fuse", 0)


def test_descriptors_of_another_process_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert systemd.inherited_fds() == {}
    assert "LISTEN_FDS" not in os.environ


def test_log_lines_are_json_with_plain_fields(capfd: pytest.CaptureFixture[str]) -> None:
    applog.configure("info", "json")
    log = applog.get_logger("test")
    log.info("something happened", path=Path("/a"), raw=b"\xff", error=Unavailable("not now"))
    log.debug("not shown")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    entry = json.loads(lines[0])
    assert entry["msg"] == "something happened"
    assert (entry["path"], entry["raw"], entry["error"]) == ("/a", "\\xff", "not now")
    assert (entry["level"], entry["component"]) == ("info", "test")
