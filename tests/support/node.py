"""A node as a site has it: containerd with CRI, our two services, and a registry within reach."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.busybox import pause_image, write_archive
from tests.support.containerd import PAUSE, Containerd, Plug, Release, Settings, release
from tests.support.leftovers import mounts_below
from tests.support.processes import run, wait_until
from tests.support.services import NAME, REPOSITORY, Services, apparate

from apparate.grpcapi.loader_client import LoaderClient
from apparate.snapshot.rows import RECORDS_PAGE, from_json
from apparate.snapshot.snapshotter import REMOTE_PREPARED
from apparate.telemetry.client import get_page

SETTLE_S = 60.0


@dataclass(frozen=True, slots=True)
class Node:
    """A running node. `overlayfs` nodes have no services of ours."""

    base: Path
    containerd: Containerd
    services: Services | None

    @property
    def ours(self) -> Services:
        if self.services is None:
            raise AssertionError("this node runs without our services")
        return self.services

    @property
    def snapshotter(self) -> str:
        """The snapshotter of this node's pods."""
        return self.containerd.settings.default

    def remote_layers(self) -> list[str]:
        """Digests of the layers that were prepared remotely, in the order of the log."""
        return [str(record["layer"]) for record in self.ours.events(REMOTE_PREPARED)]

    def snapshot_rows(self) -> int:
        """Snapshots that the snapshotter has. It is asked: it keeps its database to itself while it runs."""
        return len(from_json(get_page(self.ours.run_dir / "snapshotter.metrics.sock", RECORDS_PAGE)))

    def layer_rows(self) -> int:
        """Layers that the loader's catalogue knows. The loader is asked: it keeps the file to itself while it runs."""
        with LoaderClient(str(self.ours.run_dir / "loader.sock")) as loader:
            return len(loader.status())

    def images_json(self) -> str:
        """What `apparate images --json` says."""
        return apparate("images", "--json", "--config", self.ours.config).stdout

    def assert_empty(self) -> None:
        """Nothing of removed images and containers is left: no row, no file, no mount but the one of the FUSE session."""
        try:
            wait_until(lambda: not self._remains(), "nothing is left of removed images", SETTLE_S)
        except TimeoutError:
            raise AssertionError(f"left of removed images: {self._remains()}") from None

    def _remains(self) -> list[str]:
        services = self.ours
        found = [f"{self.snapshot_rows()} snapshots"] if self.snapshot_rows() else []
        found += [f"{self.layer_rows()} layers"] if self.layer_rows() else []
        for folder in ("snapshots", "removed", "layers/layers"):
            found += [str(path) for path in (services.root / folder).glob("*")]
        return found + [point for point in mounts_below(self.base) if point != str(services.run_dir / "fs")]


@contextlib.contextmanager
def node(
    base: Path,
    chosen: Release | str = "debian",
    *,
    snapshotter: str = NAME,
    plain_http: Sequence[str] = (),
    sections: Mapping[str, Mapping[str, object]] | None = None,
    package: Path = REPOSITORY / "snapshotter",
) -> Iterator[Node]:
    """A node below *base*; *snapshotter* "overlayfs" makes an ordinary one without our services.

    *sections* are settings of our services, *package* is where they are installed.
    """
    found = release(chosen) if isinstance(chosen, str) else chosen
    place = base / "node"
    root = place / "root" / f"io.containerd.snapshotter.v1.{NAME}"
    with contextlib.ExitStack() as stack:
        services = None
        plugs = []
        if snapshotter == NAME:
            services = Services(base / "apparate", root, plain_http=plain_http, sections=sections, package=package)
            stack.callback(_unmount, services)
            stack.enter_context(services)
            plugs = [Plug(NAME, services.socket)]
        daemon = Containerd(found, place, Settings(default=snapshotter, plugs=plugs, plain_http=plain_http))
        stack.enter_context(daemon)
        daemon.import_image(write_archive(base / "pause.tar", pause_image(), PAUSE))
        yield Node(base, daemon, services)


def _unmount(services: Services) -> None:
    """Stopping our services never unmounts; a test's node goes for good, so its mounts go too."""
    for point in reversed(mounts_below(services.run_dir)):
        run(["umount", point])
