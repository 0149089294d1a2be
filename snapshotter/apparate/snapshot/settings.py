"""Settings of the snapshotter process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from apparate.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class SnapshotterSettings:
    """Section `[snapshotter]` of the configuration."""

    root: Path = Path("/var/lib/containerd/io.containerd.snapshotter.v1.apparate")
    """Snapshots and their metadata. kubelet's image accounting before containerd 1.7.16 looks at this path and nowhere else."""
    socket: Path = Path("/run/apparate/snapshotter.sock")
    """Where containerd's snapshots API is served; mode 0600."""
    loader_socket: Path = Path("/run/apparate/loader.sock")
    """Where the loader is reached. A loader that is away means that new images are ordinary, nothing else."""
    telemetry_socket: Path = Path("/run/apparate/snapshotter.metrics.sock")
    """Metrics, health and the state of images; mode 0600."""
    telemetry_address: str = ""
    """The same without the state of images on `host:port`; empty: not on TCP."""
    resolve_threads: int = 16
    """Layers of one image that are resolved at the same time."""
    call_threads: int = 32
    """Calls of containerd in hand at the same time."""

    def __post_init__(self) -> None:
        for name in ("resolve_threads", "call_threads"):
            if getattr(self, name) < 1:
                raise InvalidArgument(f"snapshotter.{name} must be at least 1, not {getattr(self, name)}")
