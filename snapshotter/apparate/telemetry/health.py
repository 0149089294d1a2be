"""Liveness and readiness: named checks, each a function that returns what is wrong or an empty text."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

from apparate.telemetry.metrics import Page

if TYPE_CHECKING:
    from collections.abc import Callable


class Health:
    """The checks of one process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._checks: dict[str, Callable[[], str]] = {}

    def add(self, name: str, check: Callable[[], str]) -> None:
        """Ask *check* on every readiness request; it returns "" when all is well, else one sentence."""
        with self._lock:
            self._checks[name] = check

    def failures(self) -> dict[str, str]:
        """Return the checks that fail now, with their sentence."""
        with self._lock:
            checks = dict(self._checks)
        answers = {name: check() for name, check in checks.items()}
        return {name: answer for name, answer in answers.items() if answer}

    def live_page(self) -> Page:
        """Return 200: a process that answers is alive."""
        return Page(200, "text/plain", b"ok\n")

    def ready_page(self) -> Page:
        """Return 200 and `{}`, or 503 and the failing checks as a JSON object."""
        failures = self.failures()
        return Page(503 if failures else 200, "application/json", json.dumps(failures).encode() + b"\n")
