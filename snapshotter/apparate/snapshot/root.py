"""The root directory of a snapshotter: may it be used, and is it ours alone."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self

from apparate.errors import FailedPrecondition

_LOCK_NAME = "lock"
_UNUSABLE = {
    "overlay": "overlayfs cannot be stacked on it",
    "fuse": "overlayfs cannot write to it",
    "nfs": "overlayfs cannot write to it",
    "nfs4": "overlayfs cannot write to it",
    "erofs": "it is read-only",
    "squashfs": "it is read-only",
}


class RootLock:
    """Holds a root against every other process until it is closed or the process ends."""

    def __init__(self, root: Path) -> None:
        """Create *root* if it is missing, check it, and lock it.

        Raises:
            FailedPrecondition: no permission, an unusable file system, or another instance; one line that says
                what to do.
        """
        try:
            root.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._fd = os.open(root / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FailedPrecondition(
                f"root {root} cannot be used: {error.strerror}; run as root, or set snapshotter.root to a writable "
                "directory on a local disk"
            ) from error
        try:
            self._check_file_system(root)
            self._lock(root)
        except BaseException:
            os.close(self._fd)
            raise

    @staticmethod
    def _check_file_system(root: Path) -> None:
        name = file_system_of(root)
        reason = _UNUSABLE.get(name.partition(".")[0])
        if reason is not None:
            raise FailedPrecondition(
                f"root {root} is on {name}: {reason}; set snapshotter.root to a directory on a local disk (ext4, xfs)"
            )

    def _lock(self, root: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise FailedPrecondition(
                f"root {root} is in use by another snapshotter (process {owner}); stop it, or give this one a root "
                "of its own"
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let go of the root."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def file_system_of(path: Path) -> str:
    """Return the type of the file system that holds *path*, as mountinfo names it; "" if it does not say."""
    path = path.resolve()
    best, name = -1, ""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split()
        mountpoint = Path(_unescape(fields[4]))
        depth = len(mountpoint.parts)
        if depth >= best and path.is_relative_to(mountpoint):  # of two mounts on one place the later is on top
            best, name = depth, fields[fields.index("-") + 1]
    return name


def _unescape(text: str) -> str:
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(code, character)
    return text
