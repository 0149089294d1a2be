"""The loader on a node: the layer store and the registry client behind the loader process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from apparate.layer.manager import LayerManager
from apparate.loader.farewell import Farewell
from apparate.loader.handshake import open_device
from apparate.loader.images import ManagedImages
from apparate.loader.listener import LoaderListener
from apparate.loader.process import LoaderProcess
from apparate.loader.registry import LateClient
from apparate.loader.rundir import take_run_dir
from apparate.loader.service import LoaderService
from apparate.loader.session import FD_NAME, Catalogued, open_session
from apparate.telemetry import systemd
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from apparate.layer.settings import LayerSettings
    from apparate.loader.mounts import LayerMounts
    from apparate.loader.settings import LoaderSettings
    from apparate.registry.settings import RegistrySettings
    from apparate.snapshot.remote import Loader

_log = get_logger("loader.main")

CLOSING_CUT_OFF = "closing takes too long, the loader ends without it"

_CLOSE_S: Final = 1.0
"""Between the end of serving and the end of the process."""

ControlServer = Callable[["Loader", bool], AbstractContextManager[object]]
"""Serves the calls of the snapshotter as long as its context is entered; left in a thread of its own. If the second argument is
true, containers are reading: then what cannot be served yet is no error."""


def run(loader: LoaderSettings, layers: LayerSettings, registry: RegistrySettings, control: ControlServer) -> None:
    """Be the loader until SIGTERM or SIGINT.

    Raises:
        ApparateError: it could not start, or its FUSE mount was taken away.
    """
    with ExitStack() as stack:
        run_dir = stack.enter_context(closing(take_run_dir(loader, systemd.inherited_fds())))
        if not run_dir.fds.get(FD_NAME):
            os.close(open_device())  # without FUSE nothing is begun
        rest = ExitStack()
        stack.callback(_close_in_time, rest)
        client = LateClient(registry)
        rest.callback(client.close)
        listener = LoaderListener()
        manager = LayerManager(layers, client, listener)
        rest.callback(manager.close)
        rest.callback(client.close)  # before the manager: what waits for a registry would hold it up
        if registry.credentials_dir:
            farewell = Farewell(Path(registry.credentials_dir), lambda: manager.has_incomplete_mounted())
            rest.callback(farewell.stop)
            farewell.start()
        session = open_session(loader, run_dir.fds, Catalogued(manager.identity, layers.root))
        process = LoaderProcess(loader, layers.root, session, ManagedImages(manager), listener)

        @contextmanager
        def controlled(mounts: LayerMounts) -> Iterator[None]:
            service = LoaderService(manager, mounts, client.get(), layers.resolve_deadline_s)
            rest.enter_context(control(service, session.taken_over))
            rest.callback(service.close)  # calls under way end, and before them what they wait for
            rest.callback(client.close)
            yield

        process.run(controlled)


def _close_in_time(rest: ExitStack) -> None:
    """Close what is left when nobody serves the session any more; readers wait for the successor, so not for long.

    What is not closed in time ends with the process: its threads are daemons, its files bear being cut off anywhere.
    """
    closer = threading.Thread(target=rest.close, name="close", daemon=True)
    closer.start()
    closer.join(_CLOSE_S)
    if closer.is_alive():
        _log.info(CLOSING_CUT_OFF, after_s=_CLOSE_S)
