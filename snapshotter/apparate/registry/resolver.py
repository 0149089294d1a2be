"""Host names to addresses, in bounded time: getaddrinfo() itself waits as long as resolv.conf says, half a minute and more."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future

Address = str


class Resolver:
    """Looks names up in threads of its own, one at a time for each name; thread-safe.

    A look-up that is given up goes on until the system answers, and whoever asks for the same name meanwhile waits for that
    answer too, so there are never more threads than names.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: dict[tuple[str, int], Future[tuple[Address, ...]]] = {}

    def addresses(self, host: str, port: int, timeout_s: float) -> tuple[Address, ...]:
        """Return the addresses of *host*, best first, at least one.

        Raises:
            OSError: there are none (socket.gaierror among them).
            TimeoutError: no answer in time.
        """
        key = (host, port)
        with self._lock:
            future = self._pending.get(key)
            if future is None:
                future = self._pending[key] = Future()
                threading.Thread(
                    target=self._look_up, args=(key, future), name="registry-resolver", daemon=True
                ).start()
        return future.result(timeout_s)

    def _look_up(self, key: tuple[str, int], future: Future[tuple[Address, ...]]) -> None:
        try:
            found = socket.getaddrinfo(*key, type=socket.SOCK_STREAM)
            addresses = tuple(dict.fromkeys(str(info[4][0]) for info in found))
            if not addresses:
                raise OSError("no address")
        except (OSError, UnicodeError) as error:
            self._forget(key)
            future.set_exception(error)
            return
        self._forget(key)
        future.set_result(addresses)

    def _forget(self, key: tuple[str, int]) -> None:
        with self._lock:
            self._pending.pop(key, None)
