"""`apparate agent`: the pod of the chart on one node."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import click

import apparate
from apparate.cli.settings import DEFAULT_PATH, Settings, load_settings
from apparate.cli.signals import interruptible
from apparate.errors import ApparateError, FailedPrecondition
from apparate.kubernetes.access import Access
from apparate.kubernetes.client import Client
from apparate.node.agent import events, exposition
from apparate.node.agent import settings as agent_settings
from apparate.node.agent.events import HISTORY_NAME, Events, Limiter
from apparate.node.agent.host import Host
from apparate.node.agent.ownership import Ownership, Release
from apparate.node.agent.payload import Payload
from apparate.node.agent.prepare import Preparer
from apparate.node.agent.remove import Paths, Remover
from apparate.node.agent.report import Reporter
from apparate.node.agent.run import Agent, Parts, Places
from apparate.node.agent.services import LOADER, SNAPSHOTTER, Services
from apparate.node.agent.settings import AgentSettings
from apparate.node.agent.turns import Turns
from apparate.node.settings import STATE_DIR
from apparate.snapshot.settings import mode_of
from apparate.telemetry import logging
from apparate.telemetry.health import Health
from apparate.telemetry.metrics import Page, TelemetryServer

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""What kubelet shows as the reason why a container ended; kubelet takes 4096 bytes."""
TERMINATION_BYTES_MAX: Final = 4096
HOLD_S: Final = 60.0

_NODE_RECORD: Final = "node.json"
_VARIABLES: Final = """\
Each option has a variable of the environment, which the chart sets: NODE_NAME, POD_NAME, POD_NAMESPACE, POD_UID,
APPARATE_DAEMONSET, APPARATE_REVISION, APPARATE_SECRETS, APPARATE_FOLLOW_NAMESPACES, APPARATE_MAX_UNAVAILABLE, APPARATE_LISTEN,
APPARATE_HOST."""

Answer = Callable[[], Page]
_F = TypeVar("_F", bound=Callable[..., Any])


_FOLDER: Final = click.Path(path_type=Path, file_okay=False)
_POD_OPTIONS: Final = (
    click.option("--node", envvar="NODE_NAME", default="", help="This node's name."),
    click.option("--pod", envvar="POD_NAME", default="", help="This pod's name, for the log."),
    click.option("--pod-uid", envvar="POD_UID", default="", help="This pod's UID."),
    click.option("--namespace", envvar="POD_NAMESPACE", default="", help="The release's namespace."),
    click.option("--daemonset", envvar="APPARATE_DAEMONSET", default="", help="The pod's DaemonSet."),
    click.option("--revision", envvar="APPARATE_REVISION", type=int, default=1, help="Of the release."),
    click.option("--secrets", envvar="APPARATE_SECRETS", default="", help="Secrets with credentials, by commas."),
    click.option(
        "--follow-namespaces",
        envvar="APPARATE_FOLLOW_NAMESPACES",
        default="",
        help="Namespaces whose pull Secrets are used too, by commas.",
    ),
    click.option(
        "--max-unavailable",
        envvar="APPARATE_MAX_UNAVAILABLE",
        type=int,
        default=1,
        show_default=True,
        help="Nodes that may be prepared at the same time.",
    ),
    click.option(
        "--listen",
        envvar="APPARATE_LISTEN",
        default=agent_settings.LISTEN,
        show_default=True,
        help="host:port of health and metrics.",
    ),
    click.option(
        "--host",
        envvar="APPARATE_HOST",
        type=_FOLDER,
        default=agent_settings.HOST,
        show_default=True,
        help="Where the host's root is mounted.",
    ),
    click.option(
        "--package", type=_FOLDER, default=agent_settings.PACKAGE, show_default=True, help="What is installed from."
    ),
)


def _pod_options(command: _F) -> _F:
    for option in reversed(_POD_OPTIONS):
        command = option(command)
    return command


@click.group(epilog=_VARIABLES)
def command() -> None:
    """The chart's pod on one node: prepare the node, feed it credentials, say how it is, give it back."""


@command.command()
@_pod_options
@click.option(
    "--hold-s",
    type=click.FloatRange(min=0),
    default=HOLD_S,
    show_default=True,
    help="After a failure, serve metrics for so long before the end.",
)
def prepare(hold_s: float, **values: Any) -> None:
    """Install and configure the host once, by turns; nothing at all on a node that is ready or an operator's."""
    settings = _settings(values)
    logging.configure()
    with interruptible(), _served(settings, Health().live_page, exposition_of_agent):
        try:
            _preparer(settings).prepare()
        except ApparateError as error:
            _leave_word(error)
            time.sleep(hold_s)
            raise


@command.command()
@_pod_options
def run(**values: Any) -> None:
    """Feed the node credentials and its mode, and say how it is, until SIGTERM."""
    settings, host = _settings(values), load_settings(None)
    logging.configure(host.log.level, host.log.format)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    agent = Agent(settings, _parts(settings, host))
    with _served(settings, agent.live_page, agent.metrics_page, agent.ready_page):
        agent.run(stop)


@command.command()
@_pod_options
def remove(**values: Any) -> None:
    """Give the node back as it was before the chart came; refused while containers run on lazy layers. For a Job."""
    settings = _settings(values)
    logging.configure()
    host = Host(settings.host)
    config = host.path(DEFAULT_PATH)
    own = (load_settings(config) if config.exists() else Settings()).snapshotter
    ownership = Ownership(_release(settings), host.path(STATE_DIR))
    paths = Paths(own.root, own.mode_file or STATE_DIR / "mode", STATE_DIR)
    with interruptible():
        try:
            Remover(host, Payload(host, settings.package), ownership, paths).remove()
        except ApparateError as error:
            _leave_word(error)
            raise
    with suppress(ApparateError):  # the release, and this pod's rights on nodes with it, may have gone
        client = _client()
        Reporter(client, settings.node).remove()
        Events(client, settings.node, Limiter(None)).emit(events.REMOVED, "the node is as it was before the chart came")


def exposition_of_agent() -> Page:
    """Return the metrics of `prepare`: there may be no services yet."""
    return exposition.page(lambda: ())


def _settings(values: Mapping[str, Any]) -> AgentSettings:
    lists = {name: agent_settings.names(values[name]) for name in ("secrets", "follow_namespaces")}
    return AgentSettings(**{**values, **lists})


def _release(settings: AgentSettings) -> Release:
    return Release(settings.namespace, settings.daemonset)


def _client() -> Client:
    return Client(Access.in_cluster(os.environ), f"apparate-agent/{apparate.__version__}")


def _preparer(settings: AgentSettings) -> Preparer:
    host, client = Host(settings.host), _client()
    state_dir = host.path(STATE_DIR)
    return Preparer(
        host,
        Payload(host, settings.package),
        Ownership(_release(settings), state_dir),
        Turns(client, settings),
        Reporter(client, settings.node),
        Events(client, settings.node, Limiter(state_dir / HISTORY_NAME)),
    )


def _parts(settings: AgentSettings, host: Settings) -> Parts:
    own, client = host.snapshotter, _client()
    if own.mode_file is None:
        raise FailedPrecondition(f"snapshotter.mode_file is not set in {DEFAULT_PATH}: the agent writes the mode there")
    return Parts(
        client=client,
        ownership=Ownership(_release(settings), STATE_DIR),
        services=Services({LOADER: host.loader.telemetry_socket, SNAPSHOTTER: own.telemetry_socket}),
        reporter=Reporter(client, settings.node),
        news=Events(client, settings.node, Limiter(STATE_DIR / HISTORY_NAME)),
        turns=Turns(client, settings),
        places=Places(Path(host.registry.credentials_dir), own.mode_file, STATE_DIR / _NODE_RECORD),
        mode=lambda: mode_of(own),
    )


@contextmanager
def _served(settings: AgentSettings, live: Answer, metrics: Answer, ready: Answer | None = None) -> Iterator[None]:
    pages = {"/livez": live, "/metrics": metrics, **({"/readyz": ready} if ready else {})}
    with closing(TelemetryServer(pages, None, settings.listen)):
        yield


def _leave_word(error: ApparateError) -> None:
    """Say why the container ends where `kubectl describe pod` shows it; outside of a pod there is no such file."""
    if TERMINATION_LOG.exists():
        with suppress(OSError):  # the log has it too
            TERMINATION_LOG.write_bytes(str(error).encode()[:TERMINATION_BYTES_MAX])
