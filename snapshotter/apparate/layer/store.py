"""The sparse file of a layer and the bitmap that says which members are really in it.

Rules (docs/layer-store.md, "Store"): a bit is set in memory after the verified bytes are written, and written to disk after
they are synced; it is cleared on disk before its bytes are freed. So a bit on disk is always true, and a hole is never read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from apparate.errors import IntegrityError, Unavailable
from apparate.layer.bitmap import Bitmap, load
from apparate.layer.disk import Disk, is_full
from apparate.layer.leases import Leases
from apparate.layer.model import Usage
from apparate.layer.runs import Run, spans_of
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from apparate.format.index import LayerIndex

IMAGE_NAME: Final = "image"
PRESENT_NAME: Final = "present"
_STAT_BLOCK_BYTES: Final = 512

log = get_logger(__name__)


class Room(Protocol):
    """Who decides whether there is room on the disk. Thread-safe, never blocks."""

    def take(self, length: int) -> bool:
        """Whether *length* more bytes may be stored; they are counted if so."""
        ...

    def exhausted(self) -> None:
        """A write found the disk full."""
        ...


class LayerStore:
    """One layer's image file. Thread-safe; no method waits for a network."""

    def __init__(self, directory: Path, index: LayerIndex, index_digest: bytes, disk: Disk, room: Room) -> None:
        """Open or make the files below *directory*, which exists.

        Raises:
            Unavailable: the disk has no room for the metadata, or does not work.
        """
        self.path = directory / IMAGE_NAME
        self._present_path = directory / PRESENT_NAME
        self._index = index
        self._index_digest = index_digest
        self._disk = disk
        self._room = room
        self._lock = threading.Lock()  # bits, present bytes, epoch, dirty, punching
        self._sync_lock = threading.Lock()  # held across sync and punch: the bitmap file follows the file's truth
        self._epoch = 0
        self._dirty = False
        self._punching: frozenset[int] = frozenset()
        self._nowait = hasattr(os, "RWF_NOWAIT")
        self._leases = Leases(f"layer file {self.path}")
        try:
            reused = self.path.exists()
            if not reused:  # a bitmap without its file must not vouch for the next one
                disk.unlink(self._present_path)
            self._fd = disk.open(self.path, index.image_size)
        except OSError as error:
            raise Unavailable(f"layer file {self.path} cannot be opened: {error.strerror}") from error
        try:
            self._inode = os.fstat(self._fd).st_ino
            self._proven = self._load() or Bitmap(index.member_count)
            self._bits = self._proven.copy()
            self._present_bytes = None if self._bits.count else 0
            self._tried = Bitmap(index.member_count) if reused else None
            self._write_metadata()
        except OSError as error:
            os.close(self._fd)
            raise Unavailable(f"layer file {self.path} cannot be prepared: {error.strerror}") from error

    def _load(self) -> Bitmap | None:
        try:
            content = self._present_path.read_bytes()
        except FileNotFoundError:
            return None
        return load(content, self._index.member_count, self._inode, self._index_digest)

    def _write_metadata(self) -> None:
        metadata = self._index.metadata()
        if os.pread(self._fd, len(metadata), 0) != metadata:
            self._disk.write(self._fd, metadata, 0)

    def close(self) -> None:
        """Make what is present durable and close the file, once nobody uses it. Closing twice is success.

        Raises:
            Unavailable: as `sync`; the file is closed all the same.
        """
        if not self._leases.close():
            return
        try:
            self._sync()
        finally:
            os.close(self._fd)

    # --- what is here ---

    def __contains__(self, member: int) -> bool:
        return member in self._bits

    def missing(self, members: range) -> list[int]:
        """Return which of *members* are not here, ascending."""
        return self._bits.missing(members)

    @property
    def present_members(self) -> int:
        """How many members are here."""
        return self._bits.count

    @property
    def present_bytes(self) -> int:
        """How many bytes the members that are here inflate to. Looks at every member once after opening, then they are counted."""
        with self._lock:
            if self._present_bytes is None:
                held = (member for member in range(self._bits.size) if member in self._bits)
                self._present_bytes = sum(self._index.member(member).need_bytes for member in held)
            return self._present_bytes

    def _add(self, member: int) -> None:
        """Note that *member* is here; the caller has the lock."""
        self._dirty = True
        if self._bits.add(member) and self._present_bytes is not None:
            self._present_bytes += self._index.member(member).need_bytes

    def _discard(self, member: int) -> bool:
        """Note that *member* is missing; return whether it was here. The caller has the lock."""
        if not self._bits.discard(member):
            return False
        if self._present_bytes is not None:
            self._present_bytes -= self._index.member(member).need_bytes
        return True

    @property
    def is_full(self) -> bool:
        """Whether every member is here, durable or not."""
        return bool(self._bits.count == self._index.member_count)

    @property
    def is_durable(self) -> bool:
        """Whether every member is here and survives a crash of the machine."""
        return self._proven.count == self._index.member_count and self.is_full

    # --- reading ---

    def read(self, address: int, length: int, members: Iterable[int], *, nowait: bool = False) -> bytes | None:
        """Return the bytes [address, address + length) if all of *members* are here, else None.

        With *nowait* also None if the bytes would have to come from the disk. A disk that fails to give back what was
        stored makes the members missing again.
        """
        members = list(members)
        with self._leases:
            while True:
                epoch = self._epoch
                if not all(member in self._bits for member in members):
                    return None
                try:
                    data = self._pread(address, length, nowait=nowait)
                except OSError as error:
                    log.warning("layer file cannot be read", path=str(self.path), offset=address, error=str(error))
                    self.doubt(members)
                    return None
                if data is None or epoch == self._epoch:  # else something was punched between looking and reading
                    return data

    def _pread(self, address: int, length: int, *, nowait: bool) -> bytes | None:
        if nowait and self._nowait:
            buffer = bytearray(length)
            try:
                count = os.preadv(self._fd, [buffer], address, os.RWF_NOWAIT)
            except BlockingIOError:
                return None
            except OSError:  # this file system does not know the flag
                self._nowait = False
            else:
                return bytes(buffer) if count == length else None
        data = os.pread(self._fd, length, address)
        if len(data) != length:
            raise OSError(f"{len(data)} bytes of {length}")
        return data

    def doubt(self, members: Iterable[int]) -> None:
        """Count *members* as missing from now on, whatever the bitmap on disk says."""
        with self._lock:
            for member in members:
                self._dirty |= self._discard(member)

    # --- filling ---

    def put(self, member: int, runs: Sequence[Run]) -> bool:
        """Store the verified *member*, laid out as *runs*; return whether it is here now. There may be no room for it."""
        if member in self._bits:
            return True
        if member in self._punching or not self._room.take(sum(len(run.data) for run in runs)):
            return False
        with self._leases:
            try:
                for run in runs:
                    self._disk.write(self._fd, run.data, run.address)
            except OSError as error:
                if not is_full(error):
                    log.warning("layer file cannot be written", path=str(self.path), error=str(error))
                self._room.exhausted()
                return False
            with self._lock:
                if member in self._punching:
                    return False
                self._add(member)
        return True

    def salvage(self, member: int) -> bytes | None:
        """Look whether *member* lies in the file although no bit says so, as after a kill; return it inflated if it does.

        Its bytes are verified against the index, so what the file holds after a crash of the machine cannot mislead.
        """
        if self._tried is None or member in self._tried or member in self._punching:
            return None
        with self._lock:
            if not self._tried.add(member):
                return None
        with self._leases:
            try:
                if not self._may_hold(member):
                    return None
                raw = self._inflated(member)
                self._index.verify(member, raw)
            except (OSError, IntegrityError):
                return None  # a hole, or something that never became a member
            with self._lock:
                if member in self._punching:
                    return None
                self._add(member)
        return raw

    def inflated(self, member: int) -> bytes | None:
        """Return *member* as it inflates, from the file, if it is here."""
        with self._leases:
            epoch = self._epoch
            if member not in self._bits:
                return None
            try:
                raw = self._inflated(member)
            except OSError:
                return None  # a reader will meet it too, and doubt it
            return raw if epoch == self._epoch else None

    def _may_hold(self, member: int) -> bool:
        start = self._index.pieces(member)[0].address
        return os.lseek(self._fd, start, os.SEEK_DATA) == start

    def _inflated(self, member: int) -> bytes:
        raw = bytearray(self._index.member(member).need_bytes)
        for piece in self._index.pieces(member):
            data = os.pread(self._fd, piece.length, piece.address)
            raw[piece.inner_offset : piece.inner_offset + piece.length] = data
        return bytes(raw)

    # --- durability ---

    def sync(self) -> None:
        """Make present members survive a crash of the machine.

        Raises:
            Unavailable: the disk failed. What could not be proven counts as missing again.
        """
        with self._leases:
            self._sync()

    def _sync(self) -> None:
        with self._sync_lock:
            with self._lock:
                if not self._dirty:
                    return
                bits = self._bits.copy()
                self._dirty = False
            self._make_durable(bits)

    def _make_durable(self, bits: Bitmap) -> None:
        """Sync the file, then write *bits*, which were set before."""
        try:
            self._disk.sync(self._fd)
        except OSError as error:
            self._distrust()
            raise Unavailable(f"layer file {self.path} cannot be synced: {error.strerror}") from error
        try:
            self._disk.replace(self._present_path, bits.dump(self._inode, self._index_digest))
        except OSError as error:
            with self._lock:
                self._dirty = True
            raise Unavailable(f"bitmap {self._present_path} cannot be written: {error.strerror}") from error
        self._proven = bits

    def _distrust(self) -> None:
        """After a failed sync the kernel may have dropped the pages: only what was proven before counts."""
        with self._lock:
            for member in range(self._bits.size):
                if member not in self._proven:
                    self._discard(member)

    def punch(self, members: Sequence[int]) -> int:
        """Drop *members*, which can be fetched again; return how many bytes of the image that was.

        Nobody may have the file mounted directly.

        Raises:
            Unavailable: the disk failed; the members are missing all the same, their blocks possibly not free.
        """
        with self._leases, self._sync_lock:
            with self._lock:
                chosen = [member for member in members if self._discard(member)]
                self._punching = frozenset(chosen)
                self._epoch += 1
                bits = self._bits.copy()
            try:
                self._make_durable(bits)
                return self._free(chosen)
            except OSError as error:
                raise Unavailable(f"layer file {self.path} cannot be shrunk: {error.strerror}") from error
            finally:
                with self._lock:
                    self._punching = frozenset()

    def _free(self, members: Sequence[int]) -> int:
        freed = 0
        for address, length in spans_of(self._index.pieces(member) for member in sorted(members)):
            self._disk.punch(self._fd, address, length)
            freed += length
        return freed


def disk_usage(directory: Path) -> Usage:
    """Return what the files of a layer occupy on disk now."""
    blocks = inodes = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # a file that was being replaced
                blocks += entry.stat(follow_symlinks=False).st_blocks
                inodes += 1
    return Usage(blocks * _STAT_BLOCK_BYTES, inodes + 1)
