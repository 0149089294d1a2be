"""Asking a process of this node for one of its telemetry pages."""

from __future__ import annotations

import http.client
import socket
from contextlib import closing
from typing import TYPE_CHECKING

from apparate.errors import Unavailable

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S = 10.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("local", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(str(self._path))


def ask(socket_path: Path, page: str) -> tuple[int, bytes]:
    """Return status and body of *page*, as `/readyz`, from the process that serves *socket_path*.

    Raises:
        Unavailable: nobody serves there.
    """
    with closing(_UnixConnection(socket_path)) as connection:
        try:
            connection.request("GET", page)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{socket_path} does not answer: {error}") from error


def get_page(socket_path: Path, page: str) -> bytes:
    """Return the body of *page*, as `/metrics`, from the process that serves *socket_path*.

    Raises:
        Unavailable: nobody serves there, or it has no such page.
    """
    status, body = ask(socket_path, page)
    if status != http.HTTPStatus.OK:
        raise Unavailable(f"{socket_path} answers {page} with {status}")
    return body
