"""Settings of the snapshotter process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from apparate.errors import FailedPrecondition, InvalidArgument

Mode = Literal["lazy", "ordinary"]
REASON_ORDINARY = "this node is in the mode 'ordinary'"
"""Why a layer is not lazy that was prepared in that mode."""


@dataclass(frozen=True, slots=True)
class SnapshotterSettings:
    """Section `[snapshotter]`."""

    root: Path = Path("/var/lib/containerd/io.containerd.snapshotter.v1.apparate")
    """Snapshots and their metadata. containerd before 1.6.32 and 1.7.16 reports the disk usage of exactly this path to
    kubelet, so keep the default unless containerd's own root is elsewhere. A local disk, not overlayfs."""
    socket: Path = Path("/run/apparate/snapshotter.sock")
    """Where containerd finds us (`proxy_plugins`); 0600."""
    loader_socket: Path = Path("/run/apparate/loader.sock")
    """Where we find the loader; it need not be there for ordinary images."""
    telemetry_socket: Path = Path("/run/apparate/snapshotter.metrics.sock")
    """Metrics and health; 0600."""
    telemetry_address: str = ""
    """host:port for the same over TCP; empty: none."""

    mode: Mode = "lazy"
    """`ordinary`: new images are unpacked as by overlayfs; lazy ones that are here go on."""
    mode_file: Path | None = Path("/var/lib/apparate/mode")
    """If this file exists, its one word overrides `mode`; read at every layer, so no restart is needed. The agent writes it."""

    lazy_registries: tuple[str, ...] = ()
    """Whose images may be loaded lazily: `host[:port]`, or `host[:port]/repository` with everything below it; empty: all.
    Nothing proves that a lazy layer holds what the image's configuration says (docs/snapshots.md, 'Trust')."""

    call_threads: int = 32
    """Calls of containerd that are served at the same time."""
    resolve_threads: int = 16
    """Layers that the loader is asked about at the same time."""
    unpack_threads: int = 2
    """Layers without a table of contents that are unpacked at the same time."""
    unmount_idle_s: float = 300.0
    """How long a layer stays mounted, and its pages cached, after the last container that used it."""

    resolve_timeout_s: float = 60.0
    """When a layer is given up as lazy because the registry does not answer; containerd itself sets no limit."""
    mount_timeout_s: float = 30.0
    outage_s: float = 10.0
    """How long an unreachable loader is waited for before calls that need it fail."""

    def __post_init__(self) -> None:
        for entry in self.lazy_registries:
            if not entry or "://" in entry or entry != entry.strip().strip("/"):
                raise InvalidArgument(
                    f"snapshotter.lazy_registries: {entry!r} is neither host[:port] nor host[:port]/repository"
                )
        for name in ("call_threads", "resolve_threads", "unpack_threads"):
            if getattr(self, name) < 1:
                raise InvalidArgument(f"snapshotter.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("resolve_timeout_s", "mount_timeout_s"):
            if getattr(self, name) <= 0:
                raise InvalidArgument(f"snapshotter.{name} must be greater than 0, not {getattr(self, name)}")
        for name in ("unmount_idle_s", "outage_s"):
            if getattr(self, name) < 0:
                raise InvalidArgument(f"snapshotter.{name} must not be negative, not {getattr(self, name)}")


def mode_of(settings: SnapshotterSettings) -> Mode:
    """Return the mode in force now: the word in the mode file if there is one that can be used.

    Raises:
        FailedPrecondition: the file is there and cannot be read.
    """
    path = settings.mode_file
    if path is None:
        return settings.mode
    try:
        word = path.read_text().strip()
    except FileNotFoundError:
        return settings.mode
    except OSError as error:
        raise FailedPrecondition(f"mode file {path} cannot be read: {error.strerror}") from error
    return "lazy" if word == "lazy" else "ordinary" if word == "ordinary" else settings.mode
