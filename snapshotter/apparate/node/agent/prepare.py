"""`apparate agent prepare`: bring a node to where a lazy pod can start, once; nothing at all where that is so already.

whose node ──operator's──> nothing but a look
    │ the chart's, or nobody's
prepared already ──yes──> nothing, no turn, no API server needed: a node that boots without network goes on
    │ no
a turn ── bring ── start ── configure ── look ── turn given back; whatever fails marks the turn, and the roll-out stands
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import apparate
from apparate.errors import ApparateError, FailedPrecondition
from apparate.node.agent import events
from apparate.node.agent.events import Events
from apparate.node.agent.host import Host
from apparate.node.agent.ownership import Found, Ownership
from apparate.node.agent.payload import Payload
from apparate.node.agent.report import Reporter, State
from apparate.node.agent.turns import Turns
from apparate.telemetry import metrics
from apparate.telemetry.logging import get_logger

_log = get_logger("node.agent.prepare")

NODE_PREPARED: Final = "node is prepared"
NOTHING_TO_DO: Final = "node was prepared already"
OPERATORS_NODE: Final = "an operator installed the package, nothing is changed"
NOT_PREPARED: Final = "node cannot be prepared"

CONFIGURED: Final = frozenset({"yes", "elsewhere"})
"""What `apparate node status` says of a node on which containerd uses the snapshotter."""


class Preparer:
    """Prepares one node."""

    def __init__(
        self, host: Host, payload: Payload, ownership: Ownership, turns: Turns, reporter: Reporter, news: Events
    ) -> None:
        self._host = host
        self._payload = payload
        self._ownership = ownership
        self._turns = turns
        self._reporter = reporter
        self._news = news

    def prepare(self) -> None:
        """Prepare the node.

        Raises:
            ApparateError: it cannot be prepared; containerd is as it was, and the cluster has been told.
        """
        try:
            self._host.require_same_architecture()
            with self._ownership.at_work():
                self._prepare()
        except Exception as error:
            self._tell_failure(str(error) if isinstance(error, ApparateError) else repr(error))
            raise

    def _tell_failure(self, message: str) -> None:
        metrics.AGENT_PREPARE_FAILED.set(1)
        _log.error(NOT_PREPARED, error=message)
        self._reporter.report(
            State(ready=False, reason="PrepareFailed", message=message, version=apparate.__version__, error=message)
        )
        self._news.emit(events.PREPARE_FAILED, message)

    def _prepare(self) -> None:
        if self._is_operators():
            found = _found(self._payload.status(), operator=True)
            self._ownership.note(found)
            _log.info(OPERATORS_NODE, configured=found.configured)
            return
        if self._is_prepared():
            _log.info(NOTHING_TO_DO, version=apparate.__version__)
            return
        with self._turns.acquire(self._waiting):
            self._change()
        _log.info(NODE_PREPARED, version=apparate.__version__)
        self._news.emit(events.PREPARED, f"version {apparate.__version__} serves, containerd uses it")

    def _is_operators(self) -> bool:
        """Whether somebody else installed the package: before the chart came, or over it."""
        if self._payload.is_packaged():
            self._ownership.disown()
            return True
        return self._payload.is_present() and not self._ownership.is_charts()

    def _is_prepared(self) -> bool:
        if not self._payload.is_current():
            return False
        try:
            status = self._payload.status()
        except ApparateError:
            return False
        self._ownership.note(_found(status))
        return _is_working(status)

    def _change(self) -> None:
        self._ownership.own(self._payload.version())
        self._payload.bring()
        self._payload.start()
        self._payload.configure()
        status = self._payload.status()
        if not _is_working(status):
            raise FailedPrecondition(
                f"the node was configured and does not work: configured: {status.get('configured')}, snapshotter serves: "
                f"{status.get('snapshotter_serves')}, loader serves: {status.get('loader_serves')}; see journalctl -u "
                "apparate-snapshotter -u apparate-loader"
            )
        self._ownership.note(_found(status))

    def _waiting(self, reason: str) -> None:
        self._reporter.report(State(ready=False, reason="WaitingForTurn", message=reason, version=apparate.__version__))
        self._news.emit(events.PREPARE_WAITS, reason)


def _is_working(status: Mapping[str, Any]) -> bool:
    serves = bool(status.get("snapshotter_serves")) and bool(status.get("loader_serves"))
    return serves and status.get("configured") in CONFIGURED


def _found(status: Mapping[str, Any], *, operator: bool = False) -> Found:
    return Found(str(status.get("configured", "")), str(status.get("driver", "")), operator)
