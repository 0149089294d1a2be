"""The end of the loader: in order, and soon."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from apparate.layer.settings import LayerSettings
from apparate.loader import main
from apparate.loader.process import Control
from apparate.loader.session import FD_NAME
from apparate.loader.settings import LoaderSettings
from apparate.registry.settings import RegistrySettings

SOON_S = 10.0


class NotingProcess:
    """Begins the control and ends, as a process that is told to stop."""

    def __init__(self, *_: object) -> None:
        pass

    def run(self, control: Control) -> None:
        with control(None):  # type: ignore[arg-type]  # nobody calls the mounts
            pass


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was closed, in order."""
    names: list[str] = []

    def closable(name: str) -> SimpleNamespace:
        return SimpleNamespace(close=lambda: names.append(name), fds={FD_NAME: [0]}, identity="", get=lambda: None)

    monkeypatch.setattr(main, "take_run_dir", lambda *_: closable("run dir"))
    monkeypatch.setattr(main, "open_session", lambda *_: SimpleNamespace(taken_over=False))
    monkeypatch.setattr(main, "LateClient", lambda *_: closable("client"))
    monkeypatch.setattr(main, "LayerManager", lambda *_: closable("manager"))
    monkeypatch.setattr(main, "LoaderProcess", NotingProcess)
    return names


def run(ended: list[str], hold: threading.Event | None = None) -> None:
    @contextmanager
    def control(_: object, _insist: bool) -> Iterator[None]:
        yield
        if hold is not None:
            hold.wait()
        ended.append("control")

    main.run(LoaderSettings(), LayerSettings(), RegistrySettings(), control)


def test_whoever_waits_for_a_registry_is_woken_before_anything_is_waited_for(ended: list[str]) -> None:
    run(ended)
    assert ended.index("client") < ended.index("control") < ended.index("manager")
    assert ended[-1] == "run dir"


def test_a_call_that_does_not_end_does_not_hold_up_the_successor(ended: list[str]) -> None:
    hold, begin = threading.Event(), time.monotonic()
    try:
        run(ended, hold)
    finally:
        hold.set()
    assert ended.index("client") < ended.index("run dir")
    assert time.monotonic() - begin < SOON_S
