"""Which driver works on this machine: found by trying, best first, with an EROFS image of one empty directory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Final

from apparate.errors import Unsupported
from apparate.format.erofs.writer import build
from apparate.format.toc import EntryType
from apparate.format.tree import Node, Tree
from apparate.loader import kernel
from apparate.loader.courier_client import Courier
from apparate.loader.erofs_mount import Driver, mount_image
from apparate.loader.settings import LoaderSettings
from apparate.telemetry.logging import get_logger

_log = get_logger("loader.drivers")

DRIVER_CHOSEN = "driver chosen"

_PROBE_READ_AHEAD_KB: Final = 4
_PROBE_TARGET: Final = ".probe"
_DISK_DIRS: Final = ("/var/lib", "/var/tmp")  # noqa: S108  # only looked at for their file system; the file's name is random

_Mounter = Callable[[Driver], None]
"""Mounts the probe with a driver and unmounts it; raises OSError."""


@cache
def probe_image() -> bytes:
    """Return the smallest image: an empty directory."""
    layout = build(Tree(Node(EntryType.DIR, 0o755, nlink=2, children={}), [], 1))
    return layout.metadata.ljust(layout.image_size, b"\0")


def detect(settings: LoaderSettings, courier: Courier) -> Driver:
    """Return the driver to use for files of the running FUSE session.

    Raises:
        Unsupported: the settings ask for one that does not work; the message says why.
    """
    target = str(settings.layers_dir / _PROBE_TARGET)
    source = str(settings.fuse_dir / _PROBE_TARGET)
    driver = _first(settings, lambda driver: courier.probe(driver, source, target))
    _log.info(DRIVER_CHOSEN, driver=driver.value, forced=settings.driver != "auto")
    return driver


def choose(settings: LoaderSettings) -> str:
    """Return the name of the driver that a loader would use here, without one: for `apparate node check`.

    Raises:
        Unsupported: as `detect`.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="apparate-", dir=_disk_directory())))
        source, target = directory / "image", directory / "mount"
        source.write_bytes(probe_image())
        target.mkdir()

        def attempt(driver: Driver) -> None:
            mount_image(driver, str(source), str(target), _PROBE_READ_AHEAD_KB)
            kernel.unmount(str(target))

        return _first(settings, attempt).value


def _first(settings: LoaderSettings, attempt: _Mounter) -> Driver:
    wanted = list(Driver) if settings.driver == "auto" else [Driver(settings.driver)]
    reasons: list[str] = []
    for driver in wanted:
        if driver is Driver.TREE:
            return driver
        try:
            attempt(driver)
        except OSError as error:
            reasons.append(f"{driver.value}: {error.strerror}")
            _log.info("driver does not work here", driver=driver.value, error=error.strerror)
        else:
            return driver
    raise Unsupported(f"loader.driver: {'; '.join(reasons)}; set it to auto")


def _disk_directory() -> str | None:
    """Return a directory on a disk: EROFS takes no file of a tmpfs, which says nothing about those of a FUSE mount."""
    return next((path for path in _DISK_DIRS if os.access(path, os.W_OK)), None)
