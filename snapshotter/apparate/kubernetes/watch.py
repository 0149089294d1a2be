"""Follows a collection: list it, watch it from there, list again when the server has forgotten where we were.

    list ── its version ──> watch ──ends──> watch from the last version seen
      ^                       │ 410: at once; anything else: after a pause
      └───────────────────────┘

A thread of its own; whoever is told of changes is told from it, one call at a time, always with everything that is there now.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from apparate.errors import ApparateError, Unavailable
from apparate.kubernetes.client import Client, Object
from apparate.kubernetes.errors import Expired
from apparate.telemetry.logging import get_logger

_log = get_logger("kubernetes.watch")

LOST: Final = "API server cannot be watched, it is tried again"
FOUND: Final = "API server is watched again"

PAUSE_FIRST_S: Final = 0.5
PAUSE_MOST_S: Final = 30.0
"""The pause is doubled from the first to this, each with jitter; what the server asks for counts, up to this."""

Objects = Mapping[tuple[str, str], Object]
"""By namespace and name."""


class Follower:
    """Follows one collection until it is stopped."""

    def __init__(
        self,
        client: Client,
        path: str,
        query: Mapping[str, str],
        changed: Callable[[Objects], None],
        pause_first_s: float = PAUSE_FIRST_S,
    ) -> None:
        """Begin with `start`.

        Args:
            client: who asks.
            path: the collection.
            query: selectors.
            changed: told of everything that is there, first when it has been listed; it handles its own errors, and does not
                call `stop`.
            pause_first_s: before the second attempt.
        """
        self._client = client
        self._path = path
        self._query = dict(query)
        self._changed = changed
        self._pause_first_s = pause_first_s
        self._objects: dict[tuple[str, str], Object] = {}
        self._stop = threading.Event()
        self._telling = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"follow {path}", daemon=True)
        self._problem: ApparateError | None = None

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Tell nothing any more once this returns; it waits for a call in progress. The thread ends with its request."""
        with self._telling:
            self._stop.set()

    @property
    def is_dead(self) -> bool:
        """Whether it has ended without being told to: *changed* raised what it should have handled."""
        return self._thread.ident is not None and not self._thread.is_alive() and not self._stop.is_set()

    @property
    def problem(self) -> ApparateError | None:
        """Why the collection cannot be followed at the moment."""
        return self._problem

    def _run(self) -> None:
        pause_s = self._pause_first_s
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._follow()
            except Expired:
                wait_s = 0.0 if time.monotonic() - began > pause_s else pause_s
            except ApparateError as error:
                self._note(error)
                asked = error.retry_after_s if isinstance(error, Unavailable) else None
                wait_s = min(max(pause_s * random.uniform(0.75, 1.25), asked or 0.0), PAUSE_MOST_S)  # noqa: S311
            else:
                continue
            # What worked for a while begins anew with short pauses.
            healthy = time.monotonic() - began > PAUSE_MOST_S
            pause_s = self._pause_first_s if healthy else min(2 * pause_s, PAUSE_MOST_S)
            self._stop.wait(wait_s)

    def _follow(self) -> None:
        """List, then watch until it fails or we are stopped."""
        found = self._client.get(self._path, self._query)
        version = str(found.get("metadata", {}).get("resourceVersion", ""))
        self._objects = {_key(item): item for item in found.get("items") or ()}
        self._note(None)
        self._tell()
        while not self._stop.is_set():
            events = self._client.watch(self._path, self._query, version)
            for event in events:
                if self._stop.is_set():
                    return
                version = event.version or version
                if event.kind != "BOOKMARK":
                    self._apply(event.kind, event.object)
            self._stop.wait(self._pause_first_s)  # a server that ends every watch at once is not asked without end

    def _apply(self, kind: str, value: Object) -> None:
        if kind == "DELETED":
            self._objects.pop(_key(value), None)
        else:
            self._objects[_key(value)] = value
        self._tell()

    def _tell(self) -> None:
        with self._telling:
            if not self._stop.is_set():
                self._changed(dict(self._objects))

    def _note(self, error: ApparateError | None) -> None:
        if self._stop.is_set():
            return
        before, self._problem = self._problem, error
        if error is not None and type(before) is not type(error):
            _log.warning(LOST, path=self._path, error=str(error))
        elif error is None and before is not None:
            _log.info(FOUND, path=self._path)


def _key(value: Object) -> tuple[str, str]:
    metadata = value.get("metadata", {})
    return str(metadata.get("namespace", "")), str(metadata.get("name", ""))
