"""Settings of the loader process. Every limit of the data path that a user can set is here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from apparate.errors import InvalidArgument

DriverChoice = Literal["auto", "erofs-file", "erofs-loop", "tree"]

LAZY_READ_AHEAD_KB: Final = 16
PROFILED_READ_AHEAD_KB: Final = 4
FUSE_READ_AHEAD_KB: Final = 4
COMPLETE_READ_AHEAD_KB: Final = 1024
READ_AHEAD_MIN_KB: Final = 4
"""One page: with none, the kernel asks for every page in a request of its own."""
RECORDING_READ_AHEAD_KB: Final = 0
"""Then each touched page is a request of its own, and nothing else is."""
SOCKET_PATH_MAX: Final = 107
"""unix(7): sun_path, without its final NUL."""


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """Section `[loader]` of the loader's configuration."""

    run_dir: Path = Path("/run/apparate")
    """Sockets, the FUSE mount and the mounts of layers. Emptied by a reboot, as mounts are; 0700."""
    socket: Path = Path("/run/apparate/loader.sock")
    """Where the snapshotter and the command line find us; 0600."""
    telemetry_socket: Path = Path("/run/apparate/loader.metrics.sock")
    """Metrics and health; 0600."""
    telemetry_address: str = ""
    """host:port for the same over TCP; empty: none."""
    driver: DriverChoice = "auto"
    """How layers are mounted; `auto` takes the first that works here: erofs-file, erofs-loop, tree."""

    lazy_read_ahead_kb: int = LAZY_READ_AHEAD_KB
    """KiB that a touched page brings along while its layer is incomplete; each is fetched from the registry."""
    profiled_read_ahead_kb: int = PROFILED_READ_AHEAD_KB
    """The same for a layer with a recorded profile: what a start needs is pushed, the rest is not guessed."""
    fuse_read_ahead_kb: int = FUSE_READ_AHEAD_KB
    """The same for the FUSE files below EROFS, which has rounded up already."""
    complete_read_ahead_kb: int = COMPLETE_READ_AHEAD_KB
    """The same for layers whose every byte is local."""
    record_profiles: bool = False
    """Have `apparate profile` tell exactly the pages that containers touch: nothing is pushed, nothing read ahead, no layer mounted
    from its local file. For the node where profiles are recorded; starts are slower there."""

    read_threads: int = 48
    """Reads that wait for a registry at the same time, for all layers together."""
    layer_read_threads: int = 32
    """The same for one layer, so that one dead registry does not hold up the layers of another."""
    disk_threads: int = 16
    """Reads that wait for the local disk, and layers that are being opened, at the same time; beside those above."""
    requests: int = 512
    """FUSE requests in hand at the same time; further ones wait in the kernel."""
    max_background: int = 512
    """Reads for the page cache, of all layers, that the kernel has in flight; at least `requests`, or those of one layer
    whose registry is gone could hold up all others."""
    push_buffer_bytes: int = 4 * 1024 * 1024
    """Arrived data that waits to be pushed into the page cache; what does not fit is not pushed."""
    call_threads: int = 16
    """Calls of the snapshotter and the command line that are served at the same time, but for those that wait for a registry."""
    drain_s: float = 5.0
    """How long a planned stop waits for the requests in hand before it leaves the rest to the successor (Linux 6.9 on)."""

    def __post_init__(self) -> None:
        for name in (
            "read_threads",
            "layer_read_threads",
            "disk_threads",
            "requests",
            "max_background",
            "push_buffer_bytes",
            "call_threads",
            "drain_s",
        ):
            if getattr(self, name) <= 0:
                raise InvalidArgument(f"loader.{name} must be greater than 0, not {getattr(self, name)}")
        for name in ("lazy_read_ahead_kb", "profiled_read_ahead_kb", "fuse_read_ahead_kb", "complete_read_ahead_kb"):
            if getattr(self, name) < READ_AHEAD_MIN_KB:
                raise InvalidArgument(f"loader.{name} must be at least {READ_AHEAD_MIN_KB}, not {getattr(self, name)}")
        if self.max_background < self.requests:
            raise InvalidArgument("loader.max_background must be at least loader.requests")
        if self.read_threads < self.layer_read_threads:
            raise InvalidArgument("loader.layer_read_threads must not exceed loader.read_threads")

        for name, path in (("run_dir", self.run_dir / "handover.sock"), ("socket", self.socket)):
            if len(os.fsencode(path)) > SOCKET_PATH_MAX:
                raise InvalidArgument(
                    f"loader.{name}: {path} is too long for a socket, {SOCKET_PATH_MAX} bytes at most"
                )

    @property
    def fuse_dir(self) -> Path:
        """Where the FUSE session is mounted: one file per layer, and the trees."""
        return self.run_dir / "fs"

    @property
    def layers_dir(self) -> Path:
        """Where EROFS mounts of layers are."""
        return self.run_dir / "layers"
