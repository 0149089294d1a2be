"""Whose node this is: who installed the package, and which release of the chart is at work.

    /var/lib/apparate/owner.json   the chart installed the package; without it a package is an operator's, and nothing is changed
    /var/lib/apparate/chart.json   the release whose pod is at work here, and what its `prepare` found; its time is a sign of life

The second one goes when the release is removed, or is taken over when nobody has given a sign of life for `SILENT_S`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apparate.errors import ApparateError, FailedPrecondition
from apparate.node import files
from apparate.telemetry.logging import get_logger

_log = get_logger("node.agent.ownership")

NO_SIGN_OF_LIFE: Final = "no sign of life can be given on this node"

OWNER_NAME: Final = "owner.json"
CHART_NAME: Final = "chart.json"
SCHEMA_VERSION: Final = 1
SILENT_S: Final = 600.0
"""A release that has been silent for so long is gone: its pod gives a sign of life at least every minute."""
ALIVE_S: Final = 60.0
"""Between two signs of life."""
_PRIVATE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Release:
    """One release of the chart."""

    namespace: str
    daemonset: str


@dataclass(frozen=True, slots=True)
class Found:
    """What `prepare` found, which `run` cannot see from where it runs.

    Attributes:
        configured: as `apparate node status` says it.
        driver: how layers are mounted.
        operator: whether an operator installed the package.
    """

    configured: str = ""
    driver: str = ""
    operator: bool = False


class Ownership:
    """The two files of one node, for one release."""

    def __init__(self, release: Release, state_dir: Path) -> None:
        self._release = release
        self._owner = state_dir / OWNER_NAME
        self._chart = state_dir / CHART_NAME

    def is_charts(self) -> bool:
        """Whether the chart installed the package that is here."""
        return self._owner.exists()

    def own(self, version: str) -> None:
        """Note, before anything is installed, that it is ours."""
        value = {"schema": SCHEMA_VERSION, "installer": "chart", "version": version}
        files.replace(self._owner, _body({**value, **dataclasses.asdict(self._release)}), mode=_PRIVATE)

    def disown(self) -> None:
        """Nothing of ours is installed any more."""
        files.replace(self._owner, None)

    def claim(self) -> None:
        """Begin to work on this node.

        Raises:
            FailedPrecondition: another release is at work here.
        """
        self._refuse_other()
        if self._read() is None:
            self.note(Found())
        self.sign_of_life()

    def note(self, found: Found) -> None:
        """Keep what was found."""
        value = {"schema": SCHEMA_VERSION, **dataclasses.asdict(self._release), **dataclasses.asdict(found)}
        if files.read(self._chart) != _body(value):
            files.replace(self._chart, _body(value), mode=_PRIVATE)

    def found(self) -> Found:
        """Return what was found last; nothing if nobody has noted it."""
        value = self._read() or {}
        return Found(str(value.get("configured", "")), str(value.get("driver", "")), bool(value.get("operator")))

    def sign_of_life(self) -> None:
        """Say that the release is still at work. Never raises: the next one may succeed."""
        try:
            os.utime(self._chart)
        except FileNotFoundError:
            return  # it has left
        except OSError as error:
            _log.warning(NO_SIGN_OF_LIFE, path=str(self._chart), error=str(error.strerror))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Claim the node, then give signs of life meanwhile; after an error count as silent until the next attempt.

        Raises:
            FailedPrecondition: another release is at work here.
            Unavailable: the disk does not take it.
        """
        self.claim()
        try:
            with self._signs_of_life():
                yield
        except BaseException:
            self._rest()
            raise

    @contextmanager
    def _signs_of_life(self) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._live, args=(ended,), name="sign-of-life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _live(self, ended: threading.Event) -> None:
        while not ended.wait(ALIVE_S):
            self.sign_of_life()

    def _rest(self) -> None:
        try:
            if self._is_mine():
                os.utime(self._chart, (0, 0))
        except (OSError, ApparateError) as error:
            _log.warning(NO_SIGN_OF_LIFE, path=str(self._chart), error=str(error))

    def leave(self) -> None:
        """The release works here no more."""
        if self._is_mine():
            files.replace(self._chart, None)

    def active(self) -> Release | None:
        """Return the release that is at work here now.

        A sign of life from the future was given while the clock was wrong: whoever lives gives the next one within a minute.
        """
        value = self._read()
        if value is None or abs(time.time() - self._last_sign()) > SILENT_S:
            return None
        return Release(str(value.get("namespace", "")), str(value.get("daemonset", "")))

    def _last_sign(self) -> float:
        try:
            return self._chart.stat().st_mtime
        except OSError:
            return 0.0  # it has left meanwhile

    def _is_mine(self) -> bool:
        value = self._read()
        return value is not None and Release(str(value.get("namespace")), str(value.get("daemonset"))) == self._release

    def _refuse_other(self) -> None:
        other = self.active()
        if other is not None and other != self._release:
            raise FailedPrecondition(
                f"another release of the chart is at work on this node: DaemonSet {other.daemonset} in namespace "
                f"{other.namespace}; a node takes one: uninstall one of them (helm list --all-namespaces)"
            )
        if other is None and not self._is_mine():
            files.replace(self._chart, None)

    def _read(self) -> dict[str, Any] | None:
        body = files.read(self._chart)
        try:
            value = json.loads(body) if body else None
        except ValueError:
            value = None
        return value if isinstance(value, dict) else None


def _body(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode()
