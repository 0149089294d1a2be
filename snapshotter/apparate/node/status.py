"""`apparate node status`: what this node is now, in one value for people and machines."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apparate.containerd.client import container_name, each_container
from apparate.errors import ApparateError
from apparate.node import files
from apparate.node.program import text
from apparate.node.restart import serves
from apparate.node.running import RunningContainer, running_lazy
from apparate.node.settings import NAME
from apparate.node.state import Phase, State
from apparate.node.switch import Switch
from apparate.snapshot.model import Record

UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Containerd:
    """The daemon: *program* is installed, *running* answers; each "unknown" if it does not. *error* says why."""

    program: str
    running: str
    config: str
    default_snapshotter: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """One node.

    Attributes:
        configured: `yes`; `no`; `elsewhere` (in force, but not by us); `unfinished` (a run was killed); `leaving` (the former
            default is back, the plugin stays); `overridden` (configured, but somebody has changed it since).
        mode: `lazy` or `ordinary`, for new images.
        driver: how layers are mounted.
        standing: containers that stand on our snapshotter, lazy or not, running or not; None: containerd does not answer.
        lazy: running containers on layers that are loaded on demand.
        last_error: why the last configure or restore failed; empty if it did not.
    """

    version: str
    kernel: str
    containerd: Containerd
    configured: str
    mode: str
    driver: str
    snapshotter_serves: bool
    loader_serves: bool
    standing: tuple[str, ...] | None
    lazy: tuple[RunningContainer, ...]
    last_error: str


@dataclass(frozen=True, slots=True)
class Sources:
    """Where `gather` asks what is not containerd's business."""

    version: str
    mode: Callable[[], str]
    driver: Callable[[], str]
    records: Callable[[], Sequence[Record]]
    loader_socket: Path


def lazy_containers(root: Path, records: Callable[[], Sequence[Record]]) -> list[RunningContainer]:
    """Return the running containers on lazy layers; every one of ours where the metadata cannot be read."""
    try:
        known: Sequence[Record] | None = records()
    except ApparateError:
        known = None
    return running_lazy(root, known)


def gather(switch: Switch, sources: Sources) -> Status:
    """Return the node's state. What cannot be found out is "unknown"; nothing is changed."""
    settings = switch.settings
    state, last_error = _state(switch)
    containerd, standing = _containerd(switch)
    return Status(
        version=sources.version,
        kernel=platform.release(),
        containerd=containerd,
        configured=_configured(state, containerd),
        mode=_or_unknown(sources.mode),
        driver=_or_unknown(sources.driver),
        snapshotter_serves=serves(settings.socket),
        loader_serves=serves(sources.loader_socket),
        standing=standing,
        lazy=tuple(lazy_containers(settings.root, sources.records)),
        last_error=last_error,
    )


def _state(switch: Switch) -> tuple[State | None, str]:
    try:
        return switch.store.load(), switch.store.last_error()
    except ApparateError as error:
        return None, str(error)


def _containerd(switch: Switch) -> tuple[Containerd, tuple[str, ...] | None]:
    program = _or_unknown(lambda: text(switch.tools.program.version()))
    config = str(switch.settings.config)
    try:
        effective = switch.planner.effective(switch.on_disk())
        default = effective.snapshotter
    except ApparateError as error:
        return Containerd(program, UNKNOWN, config, UNKNOWN, str(error)), None
    try:
        with switch.tools.connect(switch.settings.address or effective.address) as (daemon, _):
            running = daemon.version()
            standing = tuple(sorted(container_name(container) for _, container in each_container(daemon, NAME)))
    except ApparateError as error:
        return Containerd(program, UNKNOWN, config, default, str(error)), None
    return Containerd(program, running, config, default), standing


def _configured(state: State | None, containerd: Containerd) -> str:
    in_force = containerd.default_snapshotter == NAME
    if state is None:
        return "elsewhere" if in_force else "no"
    if state.phase is Phase.LEAVING:
        return "leaving"
    if state.phase is not Phase.APPLIED:
        return "unfinished"
    if in_force or (containerd.default_snapshotter == UNKNOWN and files.digest(files.read(state.path)) == state.after):
        return "yes"
    return "overridden"


def _or_unknown(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except ApparateError as error:
        return f"{UNKNOWN}: {error}"
