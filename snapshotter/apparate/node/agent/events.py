"""Events on the node, for `kubectl describe node`: few, whatever happens, and over restarts of the pod too."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from apparate.errors import ApparateError
from apparate.kubernetes.client import Client, collection
from apparate.node import files
from apparate.telemetry import metrics
from apparate.telemetry.logging import get_logger

_log = get_logger("node.agent.events")

NOT_SENT: Final = "event cannot be sent"

PREPARED: Final = "ApparatePrepared"
PREPARE_FAILED: Final = "ApparatePrepareFailed"
PREPARE_WAITS: Final = "ApparatePrepareWaits"
READY: Final = "ApparateReady"
NOT_READY: Final = "ApparateNotReady"
MODE_CHANGED: Final = "ApparateModeChanged"
SECRET_UNUSABLE: Final = "ApparateSecretUnusable"  # noqa: S105  # the name of a reason
CREDENTIALS_REFUSED: Final = "ApparateCredentialsRefused"
IMAGE_FALLBACK: Final = "ApparateImageFallback"
READS_FAILED: Final = "ApparateReadsFailed"
REMOVED: Final = "ApparateRemoved"
NORMAL: Final = frozenset({PREPARED, PREPARE_WAITS, READY, MODE_CHANGED, REMOVED})
"""The others are warnings."""

SAME_REASON_S: Final = 300.0
HOUR_S: Final = 3600.0
HOUR_MAX: Final = 30
MESSAGE_CHARS_MAX: Final = 1000
"""A server takes 1024 bytes."""
HISTORY_NAME: Final = "events.json"


class Limiter:
    """Says which events may be sent: one for each reason in `SAME_REASON_S`, `HOUR_MAX` in an hour.

    What was sent is kept in a file, because a pod that fails and is started again must not begin anew.
    """

    def __init__(self, path: Path | None, wall: Callable[[], float] = time.time) -> None:
        self._path = path
        self._wall = wall
        self._left_out: dict[str, int] = {}
        self._memory: list[tuple[str, float]] = []

    def admit(self, reason: str) -> int | None:
        """Return how many events of *reason* were left out since the last one, None if this one is too."""
        now = self._wall()
        sent = [(name, at) for name, at in self._load() if now - HOUR_S < at <= now]
        recent = any(name == reason and now - at < SAME_REASON_S for name, at in sent)
        if recent or len(sent) >= HOUR_MAX:
            self._left_out[reason] = self._left_out.get(reason, 0) + 1
            return None
        self._save([*sent, (reason, now)])
        return self._left_out.pop(reason, 0)

    def _load(self) -> list[tuple[str, float]]:
        try:
            body = files.read(self._path) if self._path is not None else None
            return [(str(name), float(at)) for name, at in json.loads(body)] if body else self._memory
        except (ApparateError, ValueError, TypeError):
            return self._memory  # unreadable: at worst some events more

    def _save(self, sent: list[tuple[str, float]]) -> None:
        self._memory = sent
        if self._path is not None:
            with suppress(ApparateError):  # a full disk is reported elsewhere, and has to be: by an event
                files.replace(self._path, json.dumps(sent).encode(), mode=0o600)


class Events:
    """Sends events about one node, by one thread. Never raises: an event is news, not a duty."""

    def __init__(self, client: Client, node: str, limiter: Limiter) -> None:
        self._client = client
        self._node = node
        self._limiter = limiter

    def emit(self, reason: str, message: str) -> None:
        """Send an event, unless there were too many lately."""
        try:
            left_out = self._limiter.admit(reason)
            if left_out is None:
                metrics.AGENT_EVENTS.labels(reason, "limited").inc()
                return
            self._client.create(collection("v1", "events", "default"), self._body(reason, message, left_out))
            metrics.AGENT_EVENTS.labels(reason, "sent").inc()
        except ApparateError as error:
            metrics.AGENT_EVENTS.labels(reason, "failed").inc()
            _log.warning(NOT_SENT, reason=reason, error=str(error))

    def _body(self, reason: str, message: str, left_out: int) -> dict[str, object]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        more = f" ({left_out} more since the last one)" if left_out else ""
        return {
            "metadata": {"name": f"{self._node}.{uuid.uuid4().hex[:16]}", "namespace": "default"},
            # kubelet puts a node's name for its UID, and kubectl looks for that.
            "involvedObject": {"kind": "Node", "apiVersion": "v1", "name": self._node, "uid": self._node},
            "type": "Normal" if reason in NORMAL else "Warning",
            "reason": reason,
            "message": f"{message[: MESSAGE_CHARS_MAX - len(more)]}{more}",
            "count": left_out + 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": "apparate", "host": self._node},
        }
