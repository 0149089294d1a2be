"""The directories of snapshots on disk.

<root>/snapshots/<id>/fs     content; for a lazy layer a symbolic link to its mount
<root>/snapshots/<id>/work   overlayfs' own, beside the upper directory of an active snapshot
<root>/removed/<id>          what nobody refers to any more, on its way to deletion
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from apparate.errors import Unavailable
from apparate.snapshot import syscalls
from apparate.snapshot.model import SnapshotId
from apparate.snapshot.remote import Usage

_BLOCK = 512  # unit of st_blocks, whatever the file system's own is (stat(2))


class SnapshotDirectories:
    """Makes, measures and deletes them. Thread-safe; only `link` may be called for one id by several threads."""

    def __init__(self, root: Path) -> None:
        self._snapshots = root / "snapshots"
        self._removed = root / "removed"
        for directory in (self._snapshots, self._removed):
            directory.mkdir(mode=0o700, exist_ok=True)

    def content(self, snapshot_id: SnapshotId) -> Path:
        """Return where the content of a snapshot is."""
        return self._snapshots / str(snapshot_id) / "fs"

    def work(self, snapshot_id: SnapshotId) -> Path:
        """Return overlayfs' work directory of a snapshot."""
        return self._snapshots / str(snapshot_id) / "work"

    def create(self, snapshot_id: SnapshotId, parent: SnapshotId | None, *, with_work: bool) -> None:
        """Make the directories of a new snapshot. The content belongs to the owner of the *parent*'s root.

        Raises:
            Unavailable: the disk does not take it; nothing is left.
        """
        try:
            self.content(snapshot_id).parent.mkdir(mode=0o700)
            content = self.content(snapshot_id)
            content.mkdir()
            content.chmod(0o755)  # whatever the umask is
            if parent is not None:
                owner = self.content(parent).stat()
                os.chown(content, owner.st_uid, owner.st_gid)
            if with_work:
                self.work(snapshot_id).mkdir(mode=0o711)
        except OSError as error:
            self.discard(snapshot_id)
            raise Unavailable(f"no directory for snapshot {snapshot_id}: {error.strerror}") from error

    def link(self, snapshot_id: SnapshotId, target: str) -> None:
        """Let the content of a lazy layer's snapshot be the directory *target*.

        Raises:
            Unavailable: the disk does not take it.
        """
        content = self.content(snapshot_id)
        try:
            if content.is_symlink() and os.readlink(content) == target:
                return
            content.parent.mkdir(mode=0o700, exist_ok=True)
            fresh = content.with_name(f"fs.{threading.get_ident()}")  # containers of one image may start at once
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(target)
            fresh.rename(content)
        except OSError as error:
            raise Unavailable(f"no link for snapshot {snapshot_id}: {error.strerror}") from error

    def sync(self) -> None:
        """Return when everything below the root is on disk.

        Raises:
            Unavailable: the disk failed.
        """
        try:
            syscalls.sync_file_system(self._snapshots)
        except OSError as error:
            raise Unavailable(f"the disk did not take the layer: {error.strerror}") from error

    def discard(self, snapshot_id: SnapshotId) -> None:
        """Move the directories of a snapshot out of the way, at once; `purge` deletes them."""
        try:
            (self._snapshots / str(snapshot_id)).rename(self._removed / str(snapshot_id))
        except FileNotFoundError:
            return

    def discard_unknown(self, known: set[SnapshotId]) -> int:
        """Discard every directory whose snapshot is not *known*; return how many."""
        unknown = [name for name in self._snapshots.iterdir() if not _is_known(name.name, known)]
        for path in unknown:
            target = self._removed / path.name
            if target.exists():
                shutil.rmtree(target)
            path.rename(target)
        return len(unknown)

    def highest_id(self) -> int:
        """Return the highest id that any directory has, also one on its way to deletion; 0 if there is none."""
        names = [path.name for parent in (self._snapshots, self._removed) for path in parent.iterdir()]
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def purge(self) -> list[OSError]:
        """Delete what was discarded; return what could not be deleted, which stays for the next time."""
        failures: list[OSError] = []
        for path in list(self._removed.iterdir()):
            _delete(path, failures)
        return failures

    def measure(self, snapshot_id: SnapshotId) -> Usage:
        """Return what the content of a snapshot occupies, without its ancestors. Walks the whole tree.

        Files that vanish during the walk are not counted: containers go on while they are measured.
        """
        content = self.content(snapshot_id)
        size, inodes, linked = 0, 0, set[tuple[int, int]]()
        for status in _walk(content):
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                identity = (status.st_dev, status.st_ino)
                if identity in linked:
                    continue
                linked.add(identity)
            size += status.st_blocks * _BLOCK
            inodes += 1
        return Usage(size, inodes)


def _is_known(name: str, known: set[SnapshotId]) -> bool:
    return name.isdecimal() and SnapshotId(int(name)) in known


def _walk(top: Path) -> Iterator[os.stat_result]:
    try:
        yield top.lstat()
    except FileNotFoundError:
        return
    pending = [str(top)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    yield status
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue


def _delete(path: Path, failures: list[OSError]) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return

    def note(_function: object, _path: str, info: tuple[type[BaseException], BaseException, object]) -> None:
        if isinstance(info[1], OSError) and not isinstance(info[1], FileNotFoundError):
            failures.append(info[1])

    shutil.rmtree(path, onerror=note)
