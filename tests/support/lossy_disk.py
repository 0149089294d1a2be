"""A disk whose machine can crash: what was not synced is lost, in part or in whole."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from apparate.layer.disk import OsDisk

if TYPE_CHECKING:
    from typing_extensions import Buffer


class LossyDisk(OsDisk):
    """Writes through to real files and remembers what they held before, until a sync."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._unsynced: list[tuple[Path, int, bytes]] = []
        self._paths: dict[int, Path] = {}
        self._crashed = False
        self.full = False
        """Writing to opened files fails as on a full disk."""
        self.fail_sync = False

    def open(self, path: Path, size: int) -> int:
        self._check()
        fd = super().open(path, size)
        self._paths[fd] = path
        return fd

    def write(self, fd: int, data: Buffer, offset: int) -> None:
        self._check()
        path = self._paths.get(fd)
        if path is not None and self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with self._lock:
            if path is not None:
                self._unsynced.append((path, offset, os.pread(fd, memoryview(data).nbytes, offset)))
            super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        self._check()
        if self.fail_sync:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        path = self._paths[fd]
        with self._lock:
            super().sync(fd)
            self._unsynced = [entry for entry in self._unsynced if entry[0] != path]

    def punch(self, fd: int, offset: int, length: int) -> None:
        self._check()
        super().punch(fd, offset, length)

    def replace(self, path: Path, content: Buffer) -> None:
        self._check()
        super().replace(path, content)

    def unlink(self, path: Path) -> None:
        self._check()
        super().unlink(path)

    def crash(self) -> None:
        """Lose a random part of what was not synced; whatever is asked of this disk from now on fails."""
        with self._lock:
            self._crashed = True
            for path, offset, before in reversed(self._unsynced):
                if self._random.random() < 0.7:
                    with path.open("r+b") as file:
                        file.seek(offset)
                        file.write(before)

    def _check(self) -> None:
        if self._crashed:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
