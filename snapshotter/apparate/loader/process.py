"""The loader process: takes the FUSE session, serves it, and stops without unmounting anything.

Order of the start: the FUSE session answers first, because running containers may be waiting for it; then the driver is
chosen and the control socket opens. No network is needed for any of it, and no layer is opened before somebody reads it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Final

import trio

from apparate.loader.courier_client import Courier
from apparate.loader.drivers import detect, probe_image
from apparate.loader.erofs_mount import Driver
from apparate.loader.filesystem import Filesystem
from apparate.loader.handover import HandoverServer
from apparate.loader.mounts import LayerMounts
from apparate.loader.nudge import Nudger
from apparate.loader.push import Pusher
from apparate.telemetry import systemd
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from apparate.loader.images import Images
    from apparate.loader.listener import LoaderListener
    from apparate.loader.session import FuseSession
    from apparate.loader.settings import LoaderSettings

_log = get_logger("loader.process")

LOADER_READY = "loader ready"
LOADER_STOPPING = "loader stopping"

_COURIER_LOCK_NAME: Final = "courier.lock"

Control = Callable[[LayerMounts], AbstractContextManager[object]]
"""Serves whoever controls the mounts as long as its context is entered."""


class LoaderProcess:
    """What runs between the first request and the last."""

    def __init__(
        self,
        settings: LoaderSettings,
        data_dir: Path,
        session: FuseSession,
        images: Images,
        listener: LoaderListener,
    ) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._session = session
        self._images = images
        self._listener = listener

    def run(self, control: Control) -> None:
        """Serve the session, and beside it what *control* makes of the mounts, until a signal says stop."""
        trio.run(self._serve, control)

    async def _serve(self, control: Control) -> None:
        nudger = Nudger()
        filesystem = Filesystem(self._images, probe_image(), nudger, self._data_dir, self._settings)
        started = trio.Event()
        token, stop = trio.lowlevel.current_trio_token(), trio.Event()
        handover = HandoverServer(self._settings.run_dir, self._session.fd, lambda: token.run_sync_soon(stop.set))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey_signals, stop)
                nursery.start_soon(self._stop_session, stop, nursery.cancel_scope)
                nursery.start_soon(self._run_control, started, filesystem, control)
                await self._session.serve(filesystem, self._settings.requests, started.set)
                nursery.cancel_scope.cancel()
        finally:
            handover.close()
            nudger.close()

    @staticmethod
    async def _obey_signals(stop: trio.Event) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                _log.info(LOADER_STOPPING, signal=signal.Signals(number).name)
                stop.set()

    async def _stop_session(self, stop: trio.Event, everything: trio.CancelScope) -> None:
        """Once asked to, read no more requests; leave those that take too long to the successor, if the kernel can."""
        await stop.wait()
        systemd.notify("STOPPING=1")
        self._session.stop()
        if self._session.can_resend:
            await trio.sleep(self._settings.drain_s)
            everything.cancel()

    async def _run_control(self, started: trio.Event, filesystem: Filesystem, control: Control) -> None:
        await started.wait()
        with ExitStack() as stack:
            mounts = await trio.to_thread.run_sync(self._prepare_mounts, stack, filesystem)
            await trio.to_thread.run_sync(stack.enter_context, control(mounts))
            systemd.notify("READY=1")
            _log.info(LOADER_READY, driver=mounts.driver.value, taken_over=self._session.taken_over)
            await trio.sleep_forever()

    def _prepare_mounts(self, stack: ExitStack, filesystem: Filesystem) -> LayerMounts:
        """Start the courier and choose the driver: both use the FUSE mount, so not in its own thread."""
        settings = self._settings
        courier = Courier(self._session.fd, settings.run_dir / _COURIER_LOCK_NAME, settings.push_buffer_bytes)
        stack.callback(courier.close)
        courier.start()
        settings.layers_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        driver = detect(settings, courier)
        mounts = LayerMounts(settings, driver, courier, self._session.device)
        if not self._session.taken_over:
            mounts.drop_dead()
        pusher = None if driver is Driver.TREE else Pusher(courier)
        self._listener.connect(pusher, mounts, filesystem.forget_layer)
        return mounts
