"""The loader on a node: the layer store and the registry client behind the loader process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

from apparate.layer.manager import LayerManager
from apparate.loader.images import ManagedImages
from apparate.loader.listener import LoaderListener
from apparate.loader.process import LoaderProcess
from apparate.loader.rundir import take_run_dir
from apparate.loader.service import LoaderService
from apparate.loader.session import open_session
from apparate.registry.client import RegistryClient
from apparate.telemetry import systemd

if TYPE_CHECKING:
    from apparate.layer.settings import LayerSettings
    from apparate.loader.mounts import LayerMounts
    from apparate.loader.settings import LoaderSettings
    from apparate.registry.settings import RegistrySettings
    from apparate.snapshot.remote import Loader

ControlServer = Callable[["Loader"], AbstractContextManager[object]]
"""Serves the calls of the snapshotter as long as its context is entered."""


def run(loader: LoaderSettings, layers: LayerSettings, registry: RegistrySettings, control: ControlServer) -> None:
    """Be the loader until SIGTERM or SIGINT.

    Raises:
        ApparateError: it could not start, or its FUSE mount was taken away.
    """
    with ExitStack() as stack:
        run_dir = stack.enter_context(closing(take_run_dir(loader, systemd.inherited_fds())))
        session = open_session(loader, run_dir.fds)
        client = stack.enter_context(closing(RegistryClient(registry)))
        listener = LoaderListener()
        manager = LayerManager(layers, client, listener)
        stack.callback(manager.close)
        process = LoaderProcess(loader, layers.root, session, ManagedImages(manager), listener)

        @contextmanager
        def controlled(mounts: LayerMounts) -> Iterator[None]:
            with (
                closing(LoaderService(manager, mounts, client, layers.resolve_deadline_s)) as service,
                control(service),
            ):
                yield

        process.run(controlled)
