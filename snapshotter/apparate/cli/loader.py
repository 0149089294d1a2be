"""`apparate loader`: serve the bytes of layers until SIGTERM."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

import apparate
from apparate.cli.heap import share_one_heap
from apparate.cli.settings import Settings, config_option, load_settings
from apparate.loader import keeper
from apparate.loader.settings import LoaderSettings
from apparate.telemetry import logging

if TYPE_CHECKING:
    from apparate.snapshot.remote import Loader
    from apparate.telemetry.parts import Opener

_log = logging.get_logger("cli.loader")

LOADER_STARTING = "loader starting"

_STOP_GRACE_S = 0.25
"""Readers wait for the successor meanwhile."""
_KEEPER_SOCKET = "keeper.sock"


@click.command()
@config_option
@click.option(
    "--keeper/--no-keeper",
    "kept",
    default=None,
    help="Run below a keeper that holds the FUSE descriptor and starts the loader again.  "
    "[default: only if no service manager does, as NOTIFY_SOCKET tells]",
)
def command(config_path: Path | None, kept: bool | None) -> None:
    """Serve the bytes of layers that are loaded while they run, in the foreground, until SIGTERM.

    Below a keeper: SIGHUP restarts the loader, also as another version, without an error for any container.
    """
    settings = load_settings(config_path)
    if kept is None:
        kept = not os.environ.get("NOTIFY_SOCKET")
    if kept:
        config = ["--config", str(config_path)] if config_path else []
        _become_keeper(settings, ["loader", "--no-keeper", *config])
    _serve(settings)


def _serve(settings: Settings) -> NoReturn:
    from apparate.loader import main  # the keeper needs none of this

    share_one_heap()
    logging.configure(settings.log.level, settings.log.format)
    _log.info(LOADER_STARTING, version=apparate.__version__)
    main.run(
        settings.loader,
        settings.layers,
        settings.registry,
        lambda loader, insist: _controlled(settings.loader, loader, insist=insist),
    )
    # A call that was cut off may still wait for a registry in its thread. The successor must not wait for that.
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def _controlled(settings: LoaderSettings, loader: Loader, *, insist: bool) -> Iterator[None]:
    # Loaded here, while FUSE is served already: half of what there is to load at a start.
    from apparate.grpcapi.loader import loader_handler
    from apparate.grpcapi.server import serving
    from apparate.telemetry.health import Health
    from apparate.telemetry.metrics import TelemetryServer, metrics_page
    from apparate.telemetry.parts import open_parts

    health = Health()
    pages = {"/metrics": metrics_page, "/livez": health.live_page, "/readyz": health.ready_page}
    handlers, grace_s = [loader_handler(loader)], _STOP_GRACE_S
    parts: dict[str, Opener] = {
        "telemetry_socket": lambda: closing(TelemetryServer(pages, settings.telemetry_socket)),
        "telemetry_address": lambda: closing(TelemetryServer(pages, None, settings.telemetry_address)),
        "control": lambda: serving(settings.socket, handlers, settings.call_threads, grace_s=grace_s),
    }
    with open_parts(parts, health, insist=insist):
        yield


def _become_keeper(settings: Settings, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by the keeper, which is small because it loads nothing of all this."""
    python, program = _installed(Path(sys.argv[0]), sys.executable)
    socket_path = settings.loader.run_dir / _KEEPER_SOCKET
    command_line = [python, "-m", keeper.__name__, str(socket_path), *program, *arguments]
    os.execv(python, command_line)  # noqa: S606  # a list, as everywhere


def _installed(called: Path, executable: str) -> tuple[str, list[str]]:
    """Return the interpreter and the program as the keeper is to start them, at each planned restart anew.

    *executable* of the host package belongs to one version. The program was *called* through the link that an upgrade
    switches, and the interpreter beside it there is the one of the version that is current then.
    """
    program = called.readlink() if called.is_symlink() else called
    python = program.with_name(Path(executable).name)
    if python.exists() and python.samefile(executable):
        return str(python), [str(program)]
    return executable, [executable, "-m", "apparate"]
