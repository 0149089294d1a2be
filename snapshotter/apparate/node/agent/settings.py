"""What the chart tells its pod, and the names by which others find what the pod says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apparate.errors import InvalidArgument
from apparate.kubernetes.client import Object

LABEL: Final = "cloud.tencent.com/apparate"
LABEL_VALUE: Final = "true"
ANNOTATION_PREFIX: Final = "apparate.cloud.tencent.com/"
CONDITION: Final = "ApparateReady"

PACKAGE: Final = Path("/opt/apparate/current")
HOST: Final = Path("/host")
LISTEN: Final = ":9464"
TURNS_MAX: Final = 100
_DNS_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z")


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """One pod of the DaemonSet.

    Attributes:
        node: its node.
        namespace: its namespace, and the release's.
        daemonset: what it belongs to.
        pod: its name, pod_uid its UID; for the log.
        revision: of the release; a newer one may try again what an older one failed at.
        secrets: names of Secrets in *namespace* that hold credentials of registries.
        follow_namespaces: namespaces whose pull Secrets are used too.
        max_unavailable: how many nodes may be prepared at the same time.
        listen: host:port of health and metrics.
        host: where the host's root is seen (prepare, remove).
        package: the version of the package in this image (prepare).
    """

    node: str
    namespace: str
    daemonset: str
    pod: str = ""
    pod_uid: str = ""
    revision: int = 1
    secrets: tuple[str, ...] = ()
    follow_namespaces: tuple[str, ...] = ()
    max_unavailable: int = 1
    listen: str = LISTEN
    host: Path = HOST
    package: Path = PACKAGE

    def __post_init__(self) -> None:
        for variable, value in (
            ("NODE_NAME", self.node),
            ("POD_NAMESPACE", self.namespace),
            ("APPARATE_DAEMONSET", self.daemonset),
        ):
            _require_name(variable, value)
        for variable, names in (
            ("APPARATE_SECRETS", self.secrets),
            ("APPARATE_FOLLOW_NAMESPACES", self.follow_namespaces),
        ):
            for name in names:
                _require_name(variable, name)
        if not 1 <= self.max_unavailable <= TURNS_MAX:
            raise InvalidArgument(f"APPARATE_MAX_UNAVAILABLE must be 1 to {TURNS_MAX}, not {self.max_unavailable}")


def names(text: str) -> tuple[str, ...]:
    """Return the names in *text*, separated by commas; each once, in order."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _require_name(variable: str, value: str) -> None:
    if not value:
        raise InvalidArgument(f"{variable} is not set: the chart sets it, by hand give the flag")
    if not _DNS_NAME.match(value):
        raise InvalidArgument(f"{variable}: {value!r} is no name of a Kubernetes object")


def is_labelled(node: Object) -> bool:
    """Whether *node* carries the label by which the DaemonSet finds it."""
    return (node.get("metadata", {}).get("labels") or {}).get(LABEL) == LABEL_VALUE
