"""Turns of nodes: as many as may be prepared at the same time, as leases that every pod of the DaemonSet sees.

    apparate-prepare-0 … apparate-prepare-<maxUnavailable - 1>     coordination.k8s.io/v1, in the release's namespace
    spec.holderIdentity    the node whose turn it is; none: free
    spec.renewTime         every `RENEW_S`; unchanged for `LEASE_S`, by our own clock: its holder is gone
    annotations            failed: the revision at which the holder failed; error: why

A failed turn stays its node's and stops everybody else until a newer revision, until that node succeeds, or until it has left
the cluster or lost the label. Whoever holds a turn, another one may be free: only a failure stops all.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

from apparate.errors import AlreadyExists, ApparateError, NotFound, Unavailable
from apparate.kubernetes.client import Client, Object, collection
from apparate.kubernetes.errors import Conflict, Denied
from apparate.node.agent.settings import ANNOTATION_PREFIX, AgentSettings, is_labelled
from apparate.telemetry.logging import get_logger

_log = get_logger("node.agent.turns")

TURN_TAKEN: Final = "turn taken, the node is prepared now"
TURN_AWAITED: Final = "waiting for a turn"
TURN_LOST: Final = "turn cannot be renewed"

PREFIX: Final = "apparate-prepare-"
LEASE_S: Final = 60
RENEW_S: Final = 15.0
POLL_FIRST_S: Final = 2.0
POLL_MOST_S: Final = 30.0
POLL_TURN_S: Final = 3.0
"""The longest pause of a node that waits: the first, or as much for each turn, for it asks for every one. So a thousand waiting
nodes are at the most 333 requests in a second, however many turns there are."""
DENIED_S: Final = 60.0
"""Rights that were granted with the pod need a moment until they count."""
MARK_S: Final = 20.0
"""A failure that is not marked would let the roll-out go on as soon as the turn has ended."""
MARK_PAUSE_S: Final = 1.0
ERROR_CHARS_MAX: Final = 500

_FAILED: Final = f"{ANNOTATION_PREFIX}failed"
_ERROR: Final = f"{ANNOTATION_PREFIX}error"


@dataclass(frozen=True, slots=True)
class _Seen:
    """A renewal as it was seen first, by our clock: clocks of nodes differ."""

    renewed: str
    since: float


class Turns:
    """The turns of one release, seen from one node."""

    def __init__(
        self,
        client: Client,
        settings: AgentSettings,
        wait: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._settings = settings
        self._path = collection("coordination.k8s.io/v1", "leases", settings.namespace)
        self._nodes = collection("v1", "nodes")
        self._wait = wait
        self._clock = clock
        self._pause_most_s = max(POLL_MOST_S, POLL_TURN_S * settings.max_unavailable)
        self._seen: dict[str, _Seen] = {}

    def acquire(self, told: Callable[[str], None] = lambda _: None) -> Turn:
        """Wait until it is this node's turn and return it; *told* hears whom it waits for, when that changes.

        Raises:
            Denied: leases may not be used, for longer than `DENIED_S`.
        """
        pause_s, reason, denied_since = POLL_FIRST_S, "", self._clock()
        while True:
            try:
                found, why = self._attempt()
            except Denied as error:
                if self._clock() - denied_since > DENIED_S:
                    raise
                found, why = None, str(error)
            except (Unavailable, Conflict) as error:
                found, why, denied_since = None, str(error), self._clock()
            else:
                denied_since = self._clock()
            if found is not None:
                _log.info(TURN_TAKEN, turn=found.name)
                return found
            if why != reason:
                reason = why
                _log.info(TURN_AWAITED, reason=why)
                told(why)
            self._wait(pause_s * random.uniform(0.75, 1.25))  # noqa: S311
            pause_s = min(pause_s * 1.5, self._pause_most_s)

    def clear_mine(self) -> None:
        """Free turns that this node holds: it is prepared. Raises ApparateError: the server does not take it."""
        for name in self._names():
            lease = self._get(name)
            if lease is not None and _holder(lease) == self._settings.node:
                self._client.replace(f"{self._path}/{name}", _freed(lease))

    def _attempt(self) -> tuple[Turn | None, str]:
        """Return a turn, or whom to wait for."""
        leases = {name: self._get(name) for name in self._names()}
        mine = [name for name, lease in leases.items() if lease is not None and _holder(lease) == self._settings.node]
        for name in mine:
            return self._take(name, leases[name]), ""
        for lease in leases.values():
            if lease is not None and self._blocks(lease) and not self._is_gone(lease):
                text = f"the roll-out stands: node {_holder(lease)} failed: {_annotation(lease, _ERROR)}"
                return None, text
        for name, lease in leases.items():
            if lease is None or self._is_free(lease):
                try:
                    return self._take(name, lease), ""
                except (AlreadyExists, Conflict):
                    continue  # another node was faster
        holders = sorted({_holder(lease) for lease in leases.values() if lease is not None} - {""})
        return None, f"being prepared: {', '.join(holders)}"

    def _blocks(self, lease: Object) -> bool:
        """Whether *lease* is a failed one that only its node, or a newer revision, may take."""
        failed = _annotation(lease, _FAILED)
        if not failed or not _holder(lease):
            return False
        return not failed.isdigit() or int(failed) >= self._settings.revision

    def _is_free(self, lease: Object) -> bool:
        if not _holder(lease):
            return True
        if _annotation(lease, _FAILED):
            return not self._blocks(lease) or self._is_gone(lease)
        return self._is_silent(lease)

    def _is_silent(self, lease: Object) -> bool:
        name, renewed = lease["metadata"]["name"], str(lease.get("spec", {}).get("renewTime"))
        seen = self._seen.get(name)
        if seen is None or seen.renewed != renewed:
            seen = self._seen[name] = _Seen(renewed, self._clock())
        return self._clock() - seen.since >= (lease.get("spec", {}).get("leaseDurationSeconds") or LEASE_S)

    def _is_gone(self, lease: Object) -> bool:
        """Whether the holder has left the cluster, or lost the label, and has been silent since."""
        if not self._is_silent(lease):
            return False
        try:
            return not is_labelled(self._client.get(f"{self._nodes}/{_holder(lease)}"))
        except NotFound:
            return True

    def _take(self, name: str, lease: Object | None) -> Turn:
        now = _now()
        spec = {"holderIdentity": self._settings.node, "leaseDurationSeconds": LEASE_S}
        spec |= {"acquireTime": now, "renewTime": now}
        if lease is None:
            metadata = {"name": name, "ownerReferences": self._owner()}
            taken = self._client.create(self._path, {"metadata": metadata, "spec": spec})
        else:
            taken = self._client.replace(f"{self._path}/{name}", {**_unmarked(lease), "spec": spec})
        return Turn(self._client, f"{self._path}/{name}", taken, self._settings.revision)

    def _owner(self) -> list[dict[str, str]]:
        """Return the DaemonSet, with which the lease goes: a failure of this release must not stop the next one."""
        name = self._settings.daemonset
        path = f"{collection('apps/v1', 'daemonsets', self._settings.namespace)}/{name}"
        try:
            uid = str(self._client.get(path)["metadata"]["uid"])
        except NotFound:
            return []
        return [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "uid": uid}]

    def _get(self, name: str) -> Object | None:
        try:
            return self._client.get(f"{self._path}/{name}")
        except NotFound:
            return None

    def _names(self) -> list[str]:
        return [f"{PREFIX}{number}" for number in range(self._settings.max_unavailable)]


class Turn:
    """A turn that is held, and renewed, inside the block.

    Whoever leaves the block by an error, one that nobody has thought of included, has failed: the next node would meet it too.
    Otherwise he has succeeded or was told to end, and the turn is free.
    """

    def __init__(self, client: Client, path: str, lease: Object, revision: int) -> None:
        self._client = client
        self._path = path
        self._lease = lease
        self._revision = revision
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="renew-turn", daemon=True)

    @property
    def name(self) -> str:
        """The lease's name."""
        return str(self._lease["metadata"]["name"])

    def fail(self, message: str) -> None:
        """Keep the turn and mark it: nobody prepares another node before somebody has looked."""
        self._ended.set()
        marks = {_FAILED: str(self._revision), _ERROR: message[:ERROR_CHARS_MAX]}
        deadline = time.monotonic() + MARK_S
        while not self._write(lambda lease: _marked(lease, marks)) and time.monotonic() < deadline:
            time.sleep(MARK_PAUSE_S)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not self._ended.is_set():
            if isinstance(error, Exception):
                self.fail(str(error) if isinstance(error, ApparateError) else repr(error))
            else:
                self._ended.set()
                self._write(_freed)
        self._thread.join()

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            self._write(_renewed)

    def _write(self, change: Callable[[Object], dict[str, Any]]) -> bool:
        """Change the lease; return whether there is nothing left to do. What fails is logged: the turn then ends by itself."""
        with self._lock:
            try:
                try:
                    self._lease = self._client.replace(self._path, change(self._lease))
                except Conflict:
                    current = self._client.get(self._path)
                    if _holder(current) != _holder(self._lease):
                        _log.warning(TURN_LOST, turn=self.name, error=f"it is now {_holder(current)}'s")
                        return True
                    self._lease = self._client.replace(self._path, change(current))
            except ApparateError as error:
                _log.warning(TURN_LOST, turn=self.name, error=str(error))
                return False
        return True


def _holder(lease: Object) -> str:
    return str(lease.get("spec", {}).get("holderIdentity") or "")


def _annotation(lease: Object, key: str) -> str:
    return str((lease.get("metadata", {}).get("annotations") or {}).get(key, ""))


def _unmarked(lease: Object) -> dict[str, Any]:
    metadata = lease["metadata"]
    kept = {key: value for key, value in (metadata.get("annotations") or {}).items() if key not in {_FAILED, _ERROR}}
    return {**lease, "metadata": {**metadata, "annotations": kept}}


def _marked(lease: Object, marks: dict[str, str]) -> dict[str, Any]:
    metadata = lease["metadata"]
    return {
        **_renewed(lease),
        "metadata": {**metadata, "annotations": {**(metadata.get("annotations") or {}), **marks}},
    }


def _renewed(lease: Object) -> dict[str, Any]:
    return {**lease, "spec": {**lease["spec"], "renewTime": _now()}}


def _freed(lease: Object) -> dict[str, Any]:
    """Return *lease* as nobody's. Without a holder rather than with an empty one, which servers may refuse."""
    return {**_unmarked(lease), "spec": {"leaseDurationSeconds": LEASE_S, "renewTime": _now()}}


def _now() -> str:
    """Return the time as MicroTime: with six digits, or the server refuses it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
