"""Where things are on a node, and what may be done to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

NAME: Final = "apparate"
"""Our proxy plugin, and so our snapshotter, in containerd."""
STATE_DIR: Final = Path("/var/lib/apparate")
CONTAINERD_CONFIG: Final = Path("/etc/containerd/config.toml")
DROP_IN: Final = "apparate.toml"


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """One node as the commands see it.

    Attributes:
        socket: where our snapshotter listens.
        root: where it keeps its data.
        containerd: name or path of containerd's program.
        config: its main configuration file.
        address: its socket; None: what the configuration says.
        state_dir: what we remember of our changes.
        replaces: a default snapshotter, other than containerd's own, that may be replaced.
    """

    socket: Path
    root: Path
    containerd: str = "containerd"
    config: Path = CONTAINERD_CONFIG
    address: Path | None = None
    state_dir: Path = STATE_DIR
    replaces: str = ""
