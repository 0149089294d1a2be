"""Settings of the layer store. Every limit on memory, threads, disk and time that a user can set is here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apparate.errors import InvalidArgument

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """Section `[layers]` of the loader's configuration."""

    root: Path = Path("/var/lib/containerd/io.containerd.snapshotter.v1.apparate/layers")
    """Index, sparse file and bitmap of each layer, and the catalogue. Not on overlayfs, not shared by two loaders."""

    read_deadline_s: float = 60.0
    """How long a read waits for a registry that is gone before it fails; it is a pause until then."""
    resolve_deadline_s: float = 30.0
    """How long making a new layer known may take."""
    attempt_timeout_s: float = 10.0
    """How long one ranged request may take before it is given up and repeated on another connection, besides 1 s for each 64 KiB.
    A download of a whole layer is begun anew when less than 64 KiB/s have come for so long."""

    fetch_window_bytes: int = 2 * MIB
    """Upper limit of what one request of a read asks for beyond the missing members, of the compressed blob."""
    fetch_window_min_bytes: int = 128 * KIB
    """Lower limit of the same, however fast the registry answers; layers with a profile are not guessed at so far."""
    fetch_gap_bytes: int = 256 * KIB
    """Upper limit of the gap between two wanted members that is fetched along, rather than making two requests."""
    fetch_gap_min_bytes: int = 16 * KIB
    """Lower limit of the gap, however fast the registry answers."""

    prefetch: bool = True
    """Load what the image's recorded profile or landmark names as soon as a layer is mounted."""
    prefetch_round_bytes: int = 8 * MIB
    """Prefetch keeps the recorded order between rounds of this many bytes, blob order within one."""
    prefetch_connections: int = 4
    """Threads, and so requests in flight, of prefetch for all layers together."""
    read_connections: int = 8
    """Threads that finish requests whose readers have got what they waited for, for all layers together."""
    background_connections: int = 2
    """Threads of background completion for all layers together."""
    background_after_s: float = 60.0
    """A mounted layer that nobody waited for this long is completed in the background; 0 means never."""

    sequential_bytes: int = 4 * MIB
    """A reader that went straight through this much of a layer gets the following members fetched ahead."""
    ahead_bytes: int = 16 * MIB
    """Upper limit of what is fetched ahead of one sequential reader."""

    disk_budget_bytes: int = 0
    """What all layers together may occupy on disk; 0 means no limit of our own."""
    disk_high_water: float = 0.95
    """Share of the budget at which cached data is dropped."""
    disk_low_water: float = 0.85
    """Share of the budget down to which it is dropped."""
    disk_reserve_bytes: int = 256 * MIB
    """Free space of the file system that fetched data never eats into; beyond it data is served without being stored."""

    sync_interval_s: float = 10.0
    """How often fetched data is synced and its bitmap written: what a crash of the machine can cost, at most."""
    profile_entries: int = 16384
    """How many touched ranges are remembered for each layer."""
    open_layers: int = 512
    """How many layers are kept open although nothing has them mounted."""

    def __post_init__(self) -> None:
        positive = (
            "read_deadline_s",
            "resolve_deadline_s",
            "attempt_timeout_s",
            "fetch_gap_min_bytes",
            "prefetch_round_bytes",
        )
        threads = ("read_connections", "prefetch_connections", "background_connections")
        for name in (*positive, *threads, "sync_interval_s", "open_layers"):
            if getattr(self, name) <= 0:
                raise InvalidArgument(f"layers.{name} must be greater than 0, not {getattr(self, name)}")
        for name in (
            "fetch_window_bytes",
            "fetch_window_min_bytes",
            "fetch_gap_bytes",
            "background_after_s",
            "disk_budget_bytes",
            "disk_reserve_bytes",
        ):
            if getattr(self, name) < 0:
                raise InvalidArgument(f"layers.{name} must not be negative, not {getattr(self, name)}")
        if not 0 < self.disk_low_water <= self.disk_high_water <= 1:
            raise InvalidArgument("layers.disk_low_water and disk_high_water must satisfy 0 < low <= high <= 1")
