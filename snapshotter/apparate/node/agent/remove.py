"""`apparate agent remove`: give a node back as it was before the chart came. Run by a Job, after the release has gone.

A pod that removes stands on the snapshotter itself, if it was started while that was the default. So the first run gives new
pods back to the former snapshotter and says who is in the way; the Job's next pod stands on the former one and goes on.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from apparate.errors import ApparateError, FailedPrecondition
from apparate.node import files
from apparate.node.agent import credentials
from apparate.node.agent.events import HISTORY_NAME
from apparate.node.agent.host import Host
from apparate.node.agent.mode import ModeFile
from apparate.node.agent.ownership import CHART_NAME, Ownership
from apparate.node.agent.payload import Payload
from apparate.telemetry.logging import get_logger

_log = get_logger("node.agent.remove")

NODE_GIVEN_BACK: Final = "node is given back"
NOTHING_HERE: Final = "nothing of the chart is on this node"

NAMES_SHOWN: Final = 5
CONFIG_DIR: Final = Path("/etc/apparate")


class Remover:
    """Gives one node back."""

    def __init__(self, host: Host, payload: Payload, ownership: Ownership, paths: Paths) -> None:
        self._host = host
        self._payload = payload
        self._ownership = ownership
        self._paths = paths

    def remove(self) -> None:
        """Give the node back.

        Raises:
            FailedPrecondition: containers are in the way, or a release is at work here; no container sees anything.
            ApparateError: a step failed; repeating goes on.
        """
        active = self._ownership.active()
        if active is not None:
            raise FailedPrecondition(
                f"a release of the chart is at work here (DaemonSet {active.daemonset} in namespace {active.namespace}): helm "
                "uninstall it first, or take the label from the node"
            )
        if self._payload.is_packaged() or not self._ownership.is_charts():
            self._forget()  # an operator's node: what the pod has written goes, the package is not ours
            _log.info(NOTHING_HERE)
            return
        if self._payload.is_present():
            self._give_back()
        self._forget()
        _remove_folder(self._host.path(self._paths.root))
        self._ownership.disown()
        _remove_if_empty(self._host.path(CONFIG_DIR / "credentials"), self._host.path(CONFIG_DIR))
        _remove_if_empty(self._host.path(self._paths.state_dir))
        _log.info(NODE_GIVEN_BACK)

    def _give_back(self) -> None:
        if not self._payload.was_activated():
            self._payload.take_away()
            return
        ModeFile(self._host.path(self._paths.mode_file)).set("ordinary")
        lazy = self._payload.running_lazy()
        if lazy:
            shown = ", ".join(lazy[:NAMES_SHOWN]) + (" and others" if len(lazy) > NAMES_SHOWN else "")
            raise FailedPrecondition(
                f"{len(lazy)} containers run on layers that are loaded on demand ({shown}): drain the node (kubectl drain "
                "--ignore-daemonsets) or let them end; the mode is ordinary now, and nothing else has been changed"
            )
        try:
            self._payload.restore()
        except FailedPrecondition as error:
            self._payload.restore("--default-only")
            raise FailedPrecondition(
                f"{error}; new pods stand on the former snapshotter from now on, so repeat this (a Job does by itself) when the "
                "pods of this node have been started anew"
            ) from error
        configured = self._payload.status().get("configured")
        if configured != "no":
            raise FailedPrecondition(
                f"containerd still uses the snapshotter (apparate node status: configured: {configured}), by settings that are not "
                "the chart's: take them out of its configuration, then repeat this"
            )
        self._payload.stop()
        self._payload.take_away()

    def _forget(self) -> None:
        """Remove what pods of the chart have written."""
        credentials.remove_all(self._host.path(CONFIG_DIR / "credentials"))
        ModeFile(self._host.path(self._paths.mode_file)).remove()
        for name in (CHART_NAME, HISTORY_NAME):
            files.replace(self._host.path(self._paths.state_dir) / name, None)


class Paths:
    """Where things are on the host."""

    def __init__(self, root: Path, mode_file: Path, state_dir: Path) -> None:
        """Args: root: of the snapshotter; mode_file: what it reads; state_dir: what is remembered."""
        self.root = root
        self.mode_file = mode_file
        self.state_dir = state_dir


def _remove_folder(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ApparateError(f"{path} cannot be removed: {error.strerror}") from error


def _remove_if_empty(*paths: Path) -> None:
    for path in paths:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
