"""Whether a lazy pod would start on this node now, and if not, the first reason why not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client import Metric

from apparate.errors import ApparateError
from apparate.node import files
from apparate.node.agent.ownership import Ownership
from apparate.node.agent.services import Services
from apparate.registry.keychain import cluster_files
from apparate.snapshot.settings import Mode
from apparate.telemetry.metrics import REFUSED_WALL_NAME

READY: Final = "Ready"
SERVICE_DOWN: Final = "ServiceDown"
NOT_CONFIGURED: Final = "NotConfigured"
MODE_ORDINARY: Final = "ModeOrdinary"
SECRET_UNUSABLE: Final = "SecretUnusable"  # noqa: S105  # the name of a reason
SECRET_UNREAD: Final = "SecretUnread"  # noqa: S105  # the name of a reason
CREDENTIALS_REFUSED: Final = "CredentialsRefused"

REFUSAL_COUNTS_S: Final = 900.0
"""A registry that refused a credential longer ago was not asked since: kubelet tries a failed pull again every five minutes."""
_APPLIED: Final = "applied"


@dataclass(frozen=True, slots=True)
class Health:
    """One look: *reason* is one word, *message* one sentence, *down* are the services that are not ready."""

    reason: str
    message: str
    down: frozenset[str] = frozenset()

    @property
    def ready(self) -> bool:
        """Whether a lazy pod would start."""
        return self.reason == READY


@dataclass(frozen=True, slots=True)
class Sources:
    """What is asked.

    Attributes:
        services: of the host.
        ownership: with what `prepare` found.
        mode: that is in force.
        secrets: what is wrong with Secrets that were named.
        unread: which of them cannot be read, and why.
        credentials_dir: where credentials lie.
        node_record: of `apparate node configure`.
    """

    services: Services
    ownership: Ownership
    mode: Callable[[], Mode]
    secrets: Callable[[], str]
    unread: Callable[[], str]
    credentials_dir: Path
    node_record: Path


def look(sources: Sources) -> Health:
    """Return how the node is now."""
    down = sources.services.problems()
    if down:
        return Health(SERVICE_DOWN, "; ".join(f"{name}: {text}" for name, text in down.items()), frozenset(down))
    configured = _not_configured(sources)
    if configured:
        return Health(NOT_CONFIGURED, configured)
    try:
        mode = sources.mode()
    except ApparateError as error:
        return Health(MODE_ORDINARY, str(error))
    if mode != "lazy":
        return Health(
            MODE_ORDINARY, "the node's mode is ordinary: new images are unpacked, running lazy containers go on"
        )
    unread = sources.unread()
    if unread:
        return Health(SECRET_UNREAD, unread)
    unusable = sources.secrets()
    if unusable:
        return Health(SECRET_UNUSABLE, unusable)
    if _was_refused(sources):
        return Health(
            CREDENTIALS_REFUSED,
            "a registry has refused the credentials: put the right ones into the Secret (imagePullSecretsCrs); which one: "
            "journalctl -u apparate-loader | grep 'credential was refused'",
        )
    return Health(READY, "images are loaded on demand")


def _not_configured(sources: Sources) -> str:
    """Return why containerd does not use the snapshotter; empty: it does."""
    found = sources.ownership.found()
    try:
        body = files.read(sources.node_record)
        phase = json.loads(body)["phase"] if body else ""
    except (ApparateError, ValueError, KeyError, TypeError):
        phase = "unreadable"
    if phase == _APPLIED or (not phase and found.configured == "elsewhere"):
        return ""
    if found.operator:
        return (
            "an operator installed the package on this node, and containerd does not use it (apparate node status): run the "
            "playbook, or apparate node configure"
        )
    return "containerd is not configured (apparate node status): delete the pod, it prepares the node again"


def _was_refused(sources: Sources) -> bool:
    """Whether a registry has refused a credential since the last change of one."""
    refused = max((_refused_at(text) for _, text in sources.services.families()), default=0.0)
    if not refused or time.time() - refused > REFUSAL_COUNTS_S:
        return False
    return refused > max((_changed_at(path) for path in cluster_files(sources.credentials_dir)), default=0.0)


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # its Secret has gone meanwhile


def _refused_at(families: Sequence[Metric]) -> float:
    samples = (sample for family in families for sample in family.samples)
    return max((sample.value for sample in samples if sample.name == REFUSED_WALL_NAME), default=0.0)
