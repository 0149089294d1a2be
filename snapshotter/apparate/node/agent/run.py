"""`apparate agent run`: feed one node with credentials and its mode, and say how it is, until told to end.

    Follower(Secrets)… ──> Credentials ──> /etc/apparate/credentials
    Follower(own node) ──> mode file                                  each from its own thread
    every few seconds  ──> health ──> condition, annotations, events, metrics

Nothing here is in the data path. Whatever fails is tried again; what is on the host stays as it was meanwhile.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

import apparate
from apparate.errors import ApparateError, NotFound
from apparate.kubernetes.client import Client, collection
from apparate.kubernetes.errors import Denied
from apparate.kubernetes.watch import Follower, Objects
from apparate.node.agent import credentials, events, exposition, farewell, health
from apparate.node.agent.credentials import Credentials, Source
from apparate.node.agent.events import Events
from apparate.node.agent.health import Health
from apparate.node.agent.mode import ModeFile
from apparate.node.agent.ownership import ALIVE_S, Ownership
from apparate.node.agent.report import Reporter, State
from apparate.node.agent.services import Services
from apparate.node.agent.settings import LABEL, AgentSettings, is_labelled
from apparate.node.agent.survey import Survey
from apparate.node.agent.turns import Turns
from apparate.snapshot.settings import Mode
from apparate.telemetry import metrics
from apparate.telemetry.health import Health as Checks
from apparate.telemetry.logging import get_logger
from apparate.telemetry.metrics import Page

_log = get_logger("node.agent.run")

AGENT_READY: Final = "agent ready"
AGENT_STOPPED: Final = "agent stopped"
NODE_LEAVES: Final = "node leaves the chart"
NODE_STAYS: Final = "node stays with the chart"
UPDATE_FAILED: Final = "node cannot be brought up to date, it is tried again"

LOOK_S: Final = 5.0
"""Between two looks at the node."""
SURVEY_S: Final = 20.0
"""Between two looks at its images."""
CLEAR_S: Final = 60.0
"""Between two attempts to free a turn, until one has succeeded."""
STUCK_S: Final = 300.0
"""A main loop that has not turned for so long hangs: liveness fails. Longer than a turn in which an API server that is overloaded
lets every request wait almost until its deadline, for nodes that are started anew then would not help it."""
DENIED_ATTEMPTS: Final = 3
"""A server that has just been started refuses everybody until it has read the roles: only a refusal that lasts means removal."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are on the host, as the pod sees them."""

    credentials_dir: Path
    mode_file: Path
    node_record: Path


@dataclass(frozen=True, slots=True)
class Parts:
    """What an agent is made of; *mode* returns the mode in force."""

    client: Client
    ownership: Ownership
    services: Services
    reporter: Reporter
    news: Events
    turns: Turns
    places: Places
    mode: Callable[[], Mode]


class _Every:
    """Says that something is due, at once and then every *interval_s*."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._next_s = -math.inf

    def is_due(self) -> bool:
        now = time.monotonic()
        if now < self._next_s:
            return False
        self._next_s = now + self._interval_s
        return True


class Agent:
    """Runs on one node."""

    def __init__(self, settings: AgentSettings, parts: Parts, pause_s: float = LOOK_S) -> None:
        self._settings = settings
        self._parts = parts
        self._pause_s = pause_s
        self._mode_file = ModeFile(parts.places.mode_file)
        self._labelled: bool | None = None
        self._wanted = threading.Event()
        self._last_turn_s = time.monotonic()
        self._said: Health | None = None
        self._secrets_said = self._driver_said = ""
        sources = [Source(settings.namespace, name) for name in settings.secrets]
        sources += [Source(namespace) for namespace in settings.follow_namespaces]
        self._credentials = Credentials(parts.places.credentials_dir, sources)
        self._secret_followers = {source: self._secret_follower(source) for source in sources}
        self._followers = [self._node_follower(), *self._secret_followers.values()]
        self._survey = Survey(parts.services, parts.news)
        self._checks = Checks()
        self._checks.add("node", self._not_ready)
        self._look_at = health.Sources(
            services=parts.services,
            ownership=parts.ownership,
            mode=parts.mode,
            secrets=self._credentials.problem,
            unread=self._unread,
            credentials_dir=parts.places.credentials_dir,
            node_record=parts.places.node_record,
        )

    def run(self, stop: threading.Event) -> None:
        """Work until *stop* is set, then leave the node or not, as the cluster says.

        Raises:
            FailedPrecondition: another release is at work on this node.
        """
        self._parts.ownership.claim()
        farewell.stay(self._parts.places.credentials_dir)
        if not self._secret_followers:
            credentials.remove_all(self._parts.places.credentials_dir)  # of Secrets that are named no more
        for follower in self._followers:
            follower.start()
        own = self._settings
        _log.info(AGENT_READY, version=apparate.__version__, node=own.node, pod=own.pod, pod_uid=own.pod_uid)
        try:
            self._work(stop)
        finally:
            for follower in self._followers:
                follower.stop()
        self._end()
        _log.info(AGENT_STOPPED)

    def live_page(self) -> Page:
        """Return 200 as long as the main loop turns and everything that is to be followed is."""
        problem = ""
        if time.monotonic() - self._last_turn_s > STUCK_S:
            problem = "the main loop hangs"
        elif any(follower.is_dead for follower in self._followers):
            problem = "a watch has ended"
        status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
        return Page(status, "text/plain", f"{problem or 'ok'}\n".encode())

    def ready_page(self) -> Page:
        """Return 200 if a lazy pod would start here now."""
        return self._checks.ready_page()

    def metrics_page(self) -> Page:
        """Return the metrics of this node."""
        return exposition.page(self._parts.services.families)

    def _not_ready(self) -> str:
        found = health.look(self._look_at)
        return "" if found.ready else f"{found.reason}: {found.message}"

    def _work(self, stop: threading.Event) -> None:
        survey, alive, clear = _Every(SURVEY_S), _Every(ALIVE_S), _Every(CLEAR_S)
        has_cleared = False
        while not stop.is_set():
            self._last_turn_s = time.monotonic()
            if not has_cleared and clear.is_due():
                has_cleared = self._clear_turns()
            self._apply_label()
            try:
                self._tell(health.look(self._look_at))
            except ApparateError as error:
                _log.warning(UPDATE_FAILED, error=str(error))
            if survey.is_due():
                self._survey.look()
            if alive.is_due():
                self._parts.ownership.sign_of_life()
            self._wait(stop)

    def _wait(self, stop: threading.Event) -> None:
        """Wait for the next look, less long when something has changed."""
        deadline = time.monotonic() + self._pause_s
        while not stop.is_set() and not self._wanted.is_set() and time.monotonic() < deadline:
            stop.wait(min(0.2, self._pause_s))
        self._wanted.clear()

    def _tell(self, found: Health) -> None:
        version, driver = apparate.__version__, self._parts.ownership.found().driver
        error = "" if found.ready or found.reason == health.MODE_ORDINARY else found.message
        self._parts.reporter.report(
            State(found.ready, found.reason, found.message, version, self._mode(), driver, error)
        )
        metrics.AGENT_READY.set(found.ready)
        if driver != self._driver_said:
            metrics.AGENT_INFO.clear()  # one series a node: a former driver would count too
            self._driver_said = driver
        metrics.AGENT_INFO.labels(version, driver).set(1)
        metrics.AGENT_LAZY.set(self._mode() == "lazy")
        metrics.AGENT_SECRETS.set(self._credentials.count())
        for name in self._parts.services.sockets:
            metrics.AGENT_SERVICE_UP.labels(name).set(name not in found.down)
        self._tell_change(found)

    def _tell_change(self, found: Health) -> None:
        before, self._said = self._said, found
        if before is None or before != found:
            reason = {
                health.READY: events.READY,
                health.SECRET_UNUSABLE: events.SECRET_UNUSABLE,
                health.CREDENTIALS_REFUSED: events.CREDENTIALS_REFUSED,
                health.MODE_ORDINARY: events.MODE_CHANGED,
            }.get(found.reason, events.NOT_READY)
            # At the start Secrets are always unread for a moment.
            if before is not None or found.reason not in {health.READY, health.SECRET_UNREAD}:
                self._parts.news.emit(reason, found.message)
        wrong = self._credentials.followed_problem()
        if wrong and wrong != self._secrets_said:
            self._parts.news.emit(events.SECRET_UNUSABLE, wrong)
        self._secrets_said = wrong

    def _unread(self) -> str:
        """Return which named Secrets have not been read, and why; empty: none."""
        parts = []
        for source in self._credentials.unread():
            problem = self._secret_followers[source].problem
            parts.append(
                f"Secret {source.namespace}/{source.name} has not been read{f': {problem}' if problem else ' yet'}"
            )
        return "; ".join(parts)

    def _mode(self) -> str:
        try:
            return self._parts.mode()
        except ApparateError:
            return ""

    def _clear_turns(self) -> bool:
        """Free a turn that this node failed at before it was mended by hand; `prepare` asked no server then."""
        try:
            self._parts.turns.clear_mine()
        except ApparateError:
            return False
        return True

    def _apply_label(self) -> None:
        if self._labelled is None:
            return
        try:
            self._mode_file.set("lazy" if self._labelled else "ordinary")
        except ApparateError as error:
            _log.warning(UPDATE_FAILED, error=str(error))

    def _node_follower(self) -> Follower:
        query = {"fieldSelector": f"metadata.name={self._settings.node}"}
        return Follower(self._parts.client, collection("v1", "nodes"), query, self._node_changed)

    def _node_changed(self, objects: Objects) -> None:
        for node in objects.values():  # none: the node left the cluster, which says nothing of its label
            self._labelled = is_labelled(node)
        self._apply_label()
        self._wanted.set()

    def _secret_follower(self, source: Source) -> Follower:
        selector = f"metadata.name={source.name}" if source.name else f"type={credentials.DOCKER_CONFIG_TYPE}"
        path = collection("v1", "secrets", source.namespace)

        def changed(objects: Objects) -> None:
            self._credentials.update(source, objects)
            self._wanted.set()

        return Follower(self._parts.client, path, {"fieldSelector": selector}, changed)

    def _end(self) -> None:
        """Decide, as the pod ends, whether the node goes on as it is."""
        try:
            why = self._why_leave()
            if not why:
                _log.info(NODE_STAYS)
                return
            _log.info(NODE_LEAVES, reason=why)
            self._mode_file.set("ordinary")
            farewell.give_up_credentials(self._parts.places.credentials_dir, self._parts.services)
            self._parts.ownership.leave()
            state = State(
                ready=False,
                reason="NotSelected",
                message=f"{why}: new images are ordinary, running lazy containers go on",
            )
            self._parts.reporter.report(state)
        except ApparateError as error:
            _log.error(UPDATE_FAILED, error=str(error))

    def _why_leave(self) -> str:
        """Return why this node is no longer the chart's; empty if it is, or if nobody can tell."""
        try:
            why = self._why_removed()
            if why:
                return why
            node = self._parts.client.get(f"{collection('v1', 'nodes')}/{self._settings.node}")
        except ApparateError:
            return ""
        return "" if is_labelled(node) else f"the label {LABEL} is gone"

    def _why_removed(self) -> str:
        """Return why the chart is there no more; empty: it is. Raises ApparateError: nobody can tell."""
        path = f"{collection('apps/v1', 'daemonsets', self._settings.namespace)}/{self._settings.daemonset}"
        for attempt in range(DENIED_ATTEMPTS):
            if attempt:
                time.sleep(self._pause_s)
            try:
                daemonset = self._parts.client.get(path)
            except NotFound:
                return "the chart was removed"
            except Denied:
                continue
            return "the chart is being removed" if daemonset.get("metadata", {}).get("deletionTimestamp") else ""
        return "the chart was removed, and this pod's rights with it"
