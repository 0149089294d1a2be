"""What a node says of itself to the cluster: a condition and annotations, on change and every five minutes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from apparate.errors import ApparateError, Unavailable
from apparate.kubernetes.client import MERGE, Client, collection
from apparate.node.agent.settings import ANNOTATION_PREFIX, CONDITION
from apparate.telemetry.logging import get_logger

_log = get_logger("node.agent.report")

NOT_REPORTED: Final = "state of the node cannot be reported"

HEARTBEAT_S: Final = 300.0
PAUSE_FIRST_S: Final = 5.0
PAUSE_MOST_S: Final = 120.0
"""A state that the server did not take is told again after a pause, doubled from the first to this, each with jitter: thousands of
nodes must not keep a server down that comes back. What the server asks for counts, up to this."""
MESSAGE_CHARS_MAX: Final = 1000
ANNOTATIONS: Final = ("version", "mode", "driver", "error")


@dataclass(frozen=True, slots=True)
class State:
    """What is reported.

    Attributes:
        ready: whether a lazy pod would start here now.
        reason: one word, for machines.
        message: one sentence.
        version, mode, driver, error: annotations; empty ones are removed.
    """

    ready: bool
    reason: str
    message: str
    version: str = ""
    mode: str = ""
    driver: str = ""
    error: str = ""


class Reporter:
    """Reports of one node, by one thread. `report` never raises: the next one may succeed."""

    def __init__(self, client: Client, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._path = f"{collection('v1', 'nodes')}/{node}"
        self._told: State | None = None
        self._told_at = 0.0
        self._refused: State | None = None
        self._pause_s = PAUSE_FIRST_S
        self._again_at = 0.0
        self._was_ready: bool | None = None
        self._since = ""

    def report(self, state: State) -> bool:
        """Report *state* if it is new or the last report is old; return whether the server knows it."""
        now = self._clock()
        if state == self._told and now - self._told_at < HEARTBEAT_S:
            return True
        if state == self._refused and now < self._again_at:
            return False
        try:
            self._patch_condition(state)
            self._patch_annotations(state)
        except ApparateError as error:
            _log.warning(NOT_REPORTED, error=str(error))
            self._wait_after(state, error)
            return False
        self._told, self._told_at = state, now
        self._refused, self._pause_s = None, PAUSE_FIRST_S
        return True

    def _wait_after(self, state: State, error: ApparateError) -> None:
        asked_s = error.retry_after_s if isinstance(error, Unavailable) else None
        wait_s = min(max(self._pause_s * random.uniform(0.75, 1.25), asked_s or 0.0), PAUSE_MOST_S)  # noqa: S311
        self._refused, self._again_at = state, self._clock() + wait_s
        self._pause_s = min(2 * self._pause_s, PAUSE_MOST_S)

    def remove(self) -> None:
        """Say nothing of this node any more. Raises ApparateError: the server does not take it."""
        gone = {"type": CONDITION, "$patch": "delete"}
        self._client.patch(f"{self._path}/status", {"status": {"conditions": [gone]}})
        self._annotate(dict.fromkeys(ANNOTATIONS))

    def _patch_condition(self, state: State) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if self._was_ready is None:
            self._was_ready, self._since = self._known()
        if self._was_ready != state.ready:
            self._was_ready, self._since = state.ready, now
        condition = {
            "type": CONDITION,
            "status": "True" if state.ready else "False",
            "reason": state.reason,
            "message": state.message[:MESSAGE_CHARS_MAX],
            "lastHeartbeatTime": now,
            "lastTransitionTime": self._since or now,
        }
        self._client.patch(f"{self._path}/status", {"status": {"conditions": [condition]}})

    def _known(self) -> tuple[bool | None, str]:
        """Return what an earlier pod has reported, so that its transition keeps its time."""
        for condition in self._client.get(self._path).get("status", {}).get("conditions") or ():
            if condition.get("type") == CONDITION:
                return condition.get("status") == "True", str(condition.get("lastTransitionTime") or "")
        return None, ""

    def _patch_annotations(self, state: State) -> None:
        self._annotate({name: getattr(state, name)[:MESSAGE_CHARS_MAX] or None for name in ANNOTATIONS})

    def _annotate(self, values: Mapping[str, str | None]) -> None:
        annotations = {f"{ANNOTATION_PREFIX}{name}": value for name, value in values.items()}
        self._client.patch(self._path, {"metadata": {"annotations": annotations}}, MERGE)
