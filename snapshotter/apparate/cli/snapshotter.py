"""`apparate snapshotter`: serve containerd's snapshots API until SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from http import HTTPStatus
from pathlib import Path

import click

import apparate
from apparate.cli.heap import share_one_heap
from apparate.cli.settings import Settings, config_option, load_settings
from apparate.convert.inflate import inflate
from apparate.grpcapi.loader_client import LoaderClient, LoaderDeadlines
from apparate.grpcapi.server import serving
from apparate.grpcapi.snapshots import snapshots_handler
from apparate.layer.unpack import apply_tar
from apparate.oci.digest import Digest
from apparate.snapshot.rows import RECORDS_PAGE, to_json
from apparate.snapshot.settings import SnapshotterSettings
from apparate.snapshot.snapshotter import Snapshotter, open_snapshotter
from apparate.telemetry import logging, systemd
from apparate.telemetry.health import Health
from apparate.telemetry.metrics import Page, TelemetryServer, metrics_page
from apparate.telemetry.parts import Opener, open_parts

_log = logging.get_logger("cli.snapshotter")

SNAPSHOTTER_READY = "snapshotter ready"
SNAPSHOTTER_STOPPED = "snapshotter stopped"

_PROBE_TIMEOUT_S = 1.0
_NO_LOADER = "the loader does not answer: new images are ordinary, containers of lazy ones cannot be created"
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}


@click.command()
@config_option
def command(config_path: Path | None) -> None:
    """Serve containerd's snapshots API on a unix socket, in the foreground, until SIGTERM."""
    settings = load_settings(config_path)
    share_one_heap()
    logging.configure(settings.log.level, settings.log.format)
    # Blocked before any thread starts, so that the signals wait for `sigwait` wherever they are delivered.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        serve(settings, lambda: signal.sigwait(_STOP_SIGNALS))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


def serve(settings: Settings, wait_for_stop: Callable[[], object]) -> None:
    """Serve until *wait_for_stop* returns; listening comes before everything that may take time.

    Raises:
        FailedPrecondition: the root or a socket cannot be used.
    """
    own = settings.snapshotter
    deadlines = LoaderDeadlines(resolve_s=own.resolve_timeout_s, mount_s=own.mount_timeout_s, outage_s=own.outage_s)
    health = Health()
    with (
        LoaderClient(str(own.loader_socket), deadlines) as loader,
        open_snapshotter(own, loader, _unpack) as snapshotter,
        closing(loader),  # before the snapshotter: its threads may be waiting for a loader that is away
        open_parts(_telemetry(own, snapshotter, health), health, insist=True),
        serving(own.socket, [snapshots_handler(snapshotter)], own.call_threads),
    ):
        health.add("loader", lambda: "" if loader.is_reachable(_PROBE_TIMEOUT_S) else _NO_LOADER)
        _log.info(
            SNAPSHOTTER_READY,
            version=apparate.__version__,
            socket=str(own.socket),
            loader=str(own.loader_socket),
        )
        systemd.notify("READY=1")
        wait_for_stop()
        systemd.notify("STOPPING=1")
    _log.info(SNAPSHOTTER_STOPPED)


def _telemetry(settings: SnapshotterSettings, snapshotter: Snapshotter, health: Health) -> dict[str, Opener]:
    """Return what is served beside containerd's socket; containerd does not wait for it."""
    pages = {"/metrics": metrics_page, "/livez": health.live_page, "/readyz": health.ready_page}
    private = {RECORDS_PAGE: lambda: _records_page(snapshotter)}
    return {
        "telemetry_socket": lambda: closing(TelemetryServer(pages, settings.telemetry_socket, private_pages=private)),
        "telemetry_address": lambda: closing(TelemetryServer(pages, None, settings.telemetry_address)),
    }


def _records_page(snapshotter: Snapshotter) -> Page:
    return Page(HTTPStatus.OK, "application/json", to_json(snapshotter.records()))


def _unpack(blob: Iterator[bytes], directory: Path, lowers: Sequence[Path]) -> Digest:
    return apply_tar(inflate(blob), directory, lowers)
