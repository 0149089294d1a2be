"""A loader process over one image file instead of a layer store: to test session, mounts and keeper alone.

    python -m tests.support.stand_in_loader RUN_DIR DRIVER IMAGE LATENCY_MS

Every aligned piece of the image is missing until it was read once by this process and its latency has passed. It mounts the
image at once and writes the mountpoint to RUN_DIR/mounted.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from apparate.errors import NotFound, Unavailable
from apparate.layer.model import LayerId
from apparate.loader import handshake
from apparate.loader.listener import LoaderListener
from apparate.loader.mounts import LayerMounts
from apparate.loader.process import LoaderProcess
from apparate.loader.rundir import take_run_dir
from apparate.loader.session import Catalogued, open_session
from apparate.loader.settings import LoaderSettings
from apparate.oci.digest import Digest
from apparate.telemetry import logging, systemd

PIECE_BYTES = 64 * 1024
NO_RESEND = "STAND_IN_NO_RESEND"
"""With this environment variable the kernel is taken for one that cannot repeat requests."""


class FileIndex:
    """The metadata are the part before *metadata_size*."""

    def __init__(self, path: Path, metadata_size: int) -> None:
        self.metadata_size = metadata_size
        self.prefetch: Sequence[tuple[int, int]] = ()
        self._data = memoryview(path.read_bytes()[:metadata_size])

    def metadata(self) -> memoryview:
        return self._data


class FileImage:
    """An image whose pieces arrive when they are read."""

    def __init__(self, path: Path, layer_id: int, latency_s: float, listener: LoaderListener) -> None:
        self.path = path
        self.layer_id = LayerId(layer_id)
        self.digest = Digest("sha256", hashlib.sha256(str(path).encode()).hexdigest())
        self.image_size = path.stat().st_size
        self.is_complete = False
        self.index = FileIndex(path, min(self.image_size, 4 << 20))
        self._fd = os.open(path, os.O_RDONLY)
        self._latency_s = latency_s
        self._present: set[int] = set()
        self._lock = threading.Lock()
        self._listener = listener
        self.outage = path.with_name("outage")  # as long as this file exists, nothing arrives

    def is_here(self, address: int, length: int) -> bool:
        return self._present.issuperset(range(address // PIECE_BYTES, (address + length - 1) // PIECE_BYTES + 1))

    def read_cached(self, address: int, length: int, *, record: bool = True) -> bytes | None:
        return self.read_stored(address, length)

    def read_stored(self, address: int, length: int) -> bytes | None:
        return os.pread(self._fd, length, address) if self.is_here(address, length) else None

    def read(self, address: int, length: int) -> bytes:
        if self.outage.exists():
            raise Unavailable("the registry is gone")
        for piece in range(address // PIECE_BYTES, (address + length - 1) // PIECE_BYTES + 1):
            if piece not in self._present:
                time.sleep(self._latency_s)  # what is tested has to wait for something
                self._present.add(piece)
                self._listener.filled(self, piece * PIECE_BYTES, os.pread(self._fd, PIECE_BYTES, piece * PIECE_BYTES))
        return os.pread(self._fd, length, address)


class FileImages:
    """One image."""

    def __init__(self, image: FileImage) -> None:
        self._image = image

    def opened(self, layer_id: LayerId) -> FileImage | None:
        return self._image if layer_id == self._image.layer_id else None

    def attach(self, digest: Digest) -> FileImage:
        if digest != self._image.digest:
            raise NotFound(f"{digest} is not here")
        return self._image

    def by_id(self, layer_id: LayerId) -> FileImage:
        if layer_id != self._image.layer_id:
            raise NotFound(f"{layer_id} is not here")
        return self._image

    def known(self) -> Sequence[FileImage]:
        return [self._image]


def _identity(path: Path) -> str:
    """What the file `catalogue` beside the image says, if there is one."""
    note = path.with_name("catalogue")
    return note.read_text() if note.exists() else "stand-in"


def main(run_dir: Path, driver: str, path: Path, latency_s: float) -> None:
    """Be the loader."""
    logging.configure("info", "json")
    if NO_RESEND in os.environ:
        handshake._WANTED &= ~handshake._HAS_RESEND  # type: ignore[misc]  # as if the kernel had not offered it
    settings = LoaderSettings(run_dir=run_dir, driver=driver)  # type: ignore[arg-type]  # checked by whoever runs this
    held = take_run_dir(settings, systemd.inherited_fds())
    session = open_session(settings, held.fds, Catalogued(_identity(path), path))
    listener = LoaderListener()
    image = FileImage(path, 7, latency_s, listener)

    @contextmanager
    def control(mounts: LayerMounts) -> Iterator[None]:
        mounted = mounts.mount(image, local=False)
        note = run_dir / "mounted.new"
        note.write_text(mounted.path)
        note.replace(run_dir / "mounted")
        yield

    LoaderProcess(settings, path.parent, session, FileImages(image), listener).run(control)
    held.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]) / 1000)
