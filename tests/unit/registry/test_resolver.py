"""Name look-ups that may hang."""

import socket
import threading

import pytest

from apparate.registry.resolver import Resolver


def test_addresses_are_given_once_each() -> None:
    assert Resolver().addresses("127.0.0.1", 80, 5) == ("127.0.0.1",)
    assert "127.0.0.1" in Resolver().addresses("localhost", 80, 5)


def test_look_up_that_hangs_is_given_up_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    release, asked = threading.Event(), []

    def hang(host: str, *_args: object, **_options: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        asked.append(host)
        assert release.wait(20)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    resolver = Resolver()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            resolver.addresses("slow.test", 80, 0.05)
    assert asked == ["slow.test"]
    waiting = threading.Timer(0.05, release.set)
    waiting.start()
    assert resolver.addresses("slow.test", 80, 20) == ("192.0.2.1",)
    waiting.join()


@pytest.mark.parametrize("error", [socket.gaierror(-2, "no such name"), UnicodeError("label too long")])
def test_failure_is_raised_and_not_kept(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    answers: list[object] = [error, [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]]

    def answer(*_args: object, **_options: object) -> object:
        said = answers.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    resolver = Resolver()
    with pytest.raises(type(error)):
        resolver.addresses("name.test", 80, 5)
    assert resolver.addresses("name.test", 80, 5) == ("192.0.2.1",)
