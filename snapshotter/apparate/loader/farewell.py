"""Credentials of a cluster that a node has left, removed when no container needs them any more.

The pod that brought them has gone by then (docs/agent.md, "Credentials that are still needed"), so the process that reads with
them looks after them. It completes layers in use in quiet times, so this ends by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from apparate.errors import ApparateError
from apparate.registry.keychain import LEAVING_NAME, cluster_files
from apparate.telemetry.logging import get_logger

_log = get_logger("loader.farewell")

CREDENTIALS_GONE: Final = "credentials of the cluster removed, no container needs them"
CREDENTIALS_REMAIN: Final = "credentials of the cluster cannot be removed, it is tried again"

LOOK_S: Final = 30.0
SETTLE_S: Final = 600.0
"""After a start of the machine containers come back one by one, and mount what they need only then."""


class Farewell:
    """A thread that looks now and then."""

    def __init__(
        self, directory: Path, is_needed: Callable[[], bool], settle_s: float = SETTLE_S, look_s: float = LOOK_S
    ) -> None:
        """Args: directory: of credentials; is_needed: whether a layer in use is not complete."""
        self._directory = directory
        self._is_needed = is_needed
        self._pauses = (settle_s, look_s)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="farewell", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is not done is found again at the next start."""
        self._stop.set()

    def _run(self) -> None:
        settle_s, look_s = self._pauses
        self._stop.wait(settle_s)
        while not self._stop.is_set():
            try:
                self.look()
            except (ApparateError, OSError) as error:
                _log.warning(CREDENTIALS_REMAIN, path=str(self._directory), error=str(error))
            self._stop.wait(look_s)

    def look(self) -> None:
        """Remove what is to go, if it may go now."""
        note = self._directory / LEAVING_NAME
        if not note.exists() or self._is_needed():
            return
        for path in cluster_files(self._directory):
            path.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        _log.info(CREDENTIALS_GONE, path=str(self._directory))
