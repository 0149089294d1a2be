"""The loader process: takes the FUSE session, serves it, and stops without unmounting anything.

Order of the start: the FUSE session answers first, because running containers may be waiting for it; then the driver is
chosen and the control socket opens. No network is needed for any of it, and no layer is opened before somebody reads it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from typing import TYPE_CHECKING, Final

import trio

from apparate.errors import ApparateError
from apparate.loader import kernel
from apparate.loader.courier_client import Courier
from apparate.loader.drivers import detect, probe_image
from apparate.loader.erofs_mount import Driver
from apparate.loader.filesystem import Filesystem
from apparate.loader.handover import HandoverServer
from apparate.loader.mounts import LayerMounts
from apparate.loader.nudge import Nudger
from apparate.loader.push import Pusher
from apparate.loader.settings import RECORDING_READ_AHEAD_KB
from apparate.telemetry import parts, systemd
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
        self._failure: Exception | None = None

    def run(self, control: Control) -> None:
        """Serve the session, and beside it what *control* makes of the mounts, until a signal says stop.

        Raises:
            Unavailable: the mount was taken away.
            ApparateError: *control* could not be begun.
        """
        try:
            trio.run(self._serve, control)
        except ExceptionGroup as group:  # as nurseries have it, even for one
            raise _first(group) from group
        if self._failure is not None:
            raise self._failure

    async def _serve(self, control: Control) -> None:
        settings, session = self._settings, self._session
        nudger = Nudger()
        courier = Courier(session.fd, settings.run_dir / _COURIER_LOCK_NAME, settings.push_buffer_bytes)
        filesystem = Filesystem(self._images, probe_image(), nudger, self._data_dir, settings)
        token, stop, started = trio.lowlevel.current_trio_token(), trio.Event(), trio.Event()
        with ExitStack() as stack:
            stack.callback(nudger.close)
            stack.callback(courier.close)
            stack.enter_context(
                closing(HandoverServer(settings.run_dir, session.fd, lambda: token.run_sync_soon(stop.set)))
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey_signals, stop)
                nursery.start_soon(self._stop_session, stop, courier, nursery.cancel_scope)
                nursery.start_soon(self._run_control, started, stop, courier, filesystem, control)
                await session.serve(filesystem, settings.requests, started.set)
                nursery.cancel_scope.cancel()

    @staticmethod
    async def _obey_signals(stop: trio.Event) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                _log.info(LOADER_STOPPING, signal=signal.Signals(number).name)
                stop.set()

    async def _stop_session(self, stop: trio.Event, courier: Courier, everything: trio.CancelScope) -> None:
        """Once asked to, read no more requests; leave those that take too long to the successor, if the kernel can."""
        await stop.wait()
        systemd.notify("STOPPING=1")
        self._session.stop()
        courier.close()  # what it is asked for needs answers that nobody gives from now on; the callers ask again
        if self._session.can_resend:
            await trio.sleep(self._settings.drain_s)
            everything.cancel()

    async def _run_control(
        self, started: trio.Event, stop: trio.Event, courier: Courier, filesystem: Filesystem, control: Control
    ) -> None:
        await started.wait()
        with ExitStack() as stack:
            try:
                # In threads, because they use the FUSE mount; abandoned at a stop, because nobody answers then.
                mounts = await self._mounts(stop, courier, filesystem)
                await trio.to_thread.run_sync(stack.enter_context, control(mounts), abandon_on_cancel=True)
            except Exception as error:  # noqa: BLE001  # raised by `run`, when the requests in hand are answered
                if not stop.is_set():  # else it was cut off by the stop
                    self._failure = error
                    stop.set()
                return
            systemd.notify("READY=1")
            _log.info(LOADER_READY, driver=mounts.driver.value, taken_over=self._session.taken_over)
            await trio.sleep_forever()

    async def _mounts(self, stop: trio.Event, courier: Courier, filesystem: Filesystem) -> LayerMounts:
        """Return the prepared mounts; where containers are reading, as soon as that works: they are served meanwhile."""
        pause_s = parts.RETRY_FIRST_S
        while True:
            try:
                return await trio.to_thread.run_sync(self._prepare_mounts, courier, filesystem, abandon_on_cancel=True)
            except (ApparateError, OSError) as error:
                if stop.is_set() or not self._session.taken_over:
                    raise
                parts.note_failure("mounts", error, pause_s)
            systemd.notify("READY=1")  # the service manager would stop a service that is long in its start
            await trio.sleep(pause_s)
            pause_s = parts.next_pause_s(pause_s)

    def _prepare_mounts(self, courier: Courier, filesystem: Filesystem) -> LayerMounts:
        """Choose the driver, take away what is dead, and let layers be mounted."""
        settings = self._settings
        settings.layers_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        driver = detect(settings, courier)
        mounts = LayerMounts(settings, driver, courier, self._session.device)
        if not self._session.taken_over:
            mounts.drop_dead()
        recording = settings.record_profiles
        ahead_kb = RECORDING_READ_AHEAD_KB if recording else settings.fuse_read_ahead_kb
        # A session that was taken over has that of its predecessor.
        kernel.set_read_ahead(self._session.device, ahead_kb)
        pusher = None if recording or driver is Driver.TREE else Pusher(courier)
        self._listener.connect(pusher, mounts, filesystem.forget_layer)
        return mounts


def _first(group: ExceptionGroup) -> Exception:
    """Return the first error in *group*, one of ours before any other."""
    ours = group.subgroup(ApparateError) or group
    error: Exception = ours
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
