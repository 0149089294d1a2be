"""The sparse file of a layer and the bitmap that says which members are really in it.

Rules (docs/layer-store.md, "Store"): a bit is set in memory after the verified bytes are written, and written to disk after
they are synced; it is cleared on disk before its bytes are freed. So a bit on disk is always true, and a hole is never read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from apparate.errors import IntegrityError, Unavailable
from apparate.layer.bitmap import Bitmap, load
from apparate.layer.disk import Disk, is_full
from apparate.layer.model import Usage
from apparate.telemetry.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Buffer

    from apparate.format.index import LayerIndex, Piece

IMAGE_NAME: Final = "image"
PRESENT_NAME: Final = "present"
_BLOCK_BYTES: Final = 4096
"""File data begins at a block border, so zeros up to the next border belong to nobody else."""
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
        self._lock = threading.Lock()  # bits, epoch, dirty, punching
        self._sync_lock = threading.Lock()  # held across sync and punch: the bitmap file follows the file's truth
        self._epoch = 0
        self._dirty = False
        self._punching: frozenset[int] = frozenset()
        self._nowait = hasattr(os, "RWF_NOWAIT")
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
        """Make what is present durable, as far as the disk lets us, and close the file."""
        try:
            self.sync()
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
    def is_full(self) -> bool:
        """Whether every member is here, durable or not."""
        return self._bits.count == self._index.member_count

    @property
    def is_durable(self) -> bool:
        """Whether every member is here and survives a crash of the machine."""
        return self._proven.count == self._index.member_count and self.is_full

    @property
    def is_dirty(self) -> bool:
        """Whether `sync` has something to do."""
        return self._dirty

    def usage(self) -> Usage:
        """Return what the layer's files occupy on disk now."""
        blocks = inodes = 0
        with os.scandir(self.path.parent) as entries:
            for entry in entries:
                blocks += entry.stat(follow_symlinks=False).st_blocks
                inodes += 1
        return Usage(blocks * _STAT_BLOCK_BYTES, inodes + 1)

    # --- reading ---

    def read(self, address: int, length: int, members: Iterable[int], *, nowait: bool = False) -> bytes | None:
        """Return the bytes [address, address + length) if all of *members* are here, else None.

        With *nowait* also None if the bytes would have to come from the disk. A disk that fails to give back what was
        stored makes the members missing again.
        """
        members = list(members)
        while True:
            epoch = self._epoch
            if not all(member in self._bits for member in members):
                return None
            try:
                data = self._pread(address, length, nowait=nowait)
            except OSError as error:
                log.warning(
                    "layer file cannot be read; fetching again", path=str(self.path), offset=address, error=str(error)
                )
                self.doubt(members)
                return None
            if data is None:
                return None
            if epoch == self._epoch:  # nothing was punched between looking and reading
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
                self._dirty |= self._bits.discard(member)

    # --- filling ---

    def put(self, member: int, raw: Buffer) -> bool:
        """Store the verified inflated *member*; return whether it is here now. There may be no room for it."""
        if member in self._bits:
            return True
        if member in self._punching:
            return False
        runs = list(_runs(self._index.pieces(member), raw))
        if not self._room.take(sum(len(data) for _, data in runs)):
            return False
        try:
            for address, data in runs:
                self._disk.write(self._fd, data, address)
        except OSError as error:
            if not is_full(error):
                log.warning("layer file cannot be written; serving without it", path=str(self.path), error=str(error))
            self._room.exhausted()
            return False
        with self._lock:
            if member in self._punching:
                return False
            self._bits.add(member)
            self._dirty = True
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
        pieces = self._index.pieces(member)
        raw = bytearray(self._index.member(member).need_bytes)
        try:
            if not pieces or os.lseek(self._fd, pieces[0].address, os.SEEK_DATA) != pieces[0].address:
                return None
            for piece in pieces:
                raw[piece.inner_offset : piece.inner_offset + piece.length] = os.pread(
                    self._fd, piece.length, piece.address
                )
            self._index.verify(member, raw)
        except (OSError, IntegrityError):
            return None  # a hole, or something that never became a member
        with self._lock:
            self._bits.add(member)
            self._dirty = True
        return bytes(raw)

    # --- durability ---

    def sync(self) -> None:
        """Make present members survive a crash of the machine.

        Raises:
            Unavailable: the disk failed. What could not be proven counts as missing again.
        """
        with self._sync_lock:
            with self._lock:
                if not self._dirty:
                    return
                bits = self._bits.copy()
                self._dirty = False
            try:
                self._disk.sync(self._fd)
            except OSError as error:
                # After a failed sync the kernel may have dropped the pages: only what was proven before counts.
                with self._lock:
                    for member in range(bits.size):
                        if member in bits and member not in self._proven:
                            self._bits.discard(member)
                raise Unavailable(f"layer file {self.path} cannot be synced: {error.strerror}") from error
            self._persist(bits)

    def _persist(self, bits: Bitmap) -> None:
        try:
            self._disk.replace(self._present_path, bits.dump(self._inode, self._index_digest))
        except OSError as error:
            with self._lock:
                self._dirty = True
            raise Unavailable(f"bitmap {self._present_path} cannot be written: {error.strerror}") from error
        self._proven = bits

    def punch(self, members: Sequence[int]) -> int:
        """Drop *members*, which can be fetched again; return how many bytes of the image that was.

        Nobody may have the file mounted directly.

        Raises:
            Unavailable: the disk failed; the members are missing all the same, their blocks possibly not free.
        """
        with self._sync_lock:
            with self._lock:
                chosen = [member for member in members if self._bits.discard(member)]
                self._punching = frozenset(chosen)
                self._epoch += 1
                bits = self._bits.copy()
            try:
                self._disk.sync(
                    self._fd
                )  # the bitmap written next speaks also of members that came since the last sync
                self._persist(bits)
                return self._free(chosen)
            except OSError as error:
                raise Unavailable(f"layer file {self.path} cannot be shrunk: {error.strerror}") from error
            finally:
                with self._lock:
                    self._punching = frozenset()

    def _free(self, members: Sequence[int]) -> int:
        freed = 0
        for address, length in _merged(self._index.pieces(member) for member in sorted(members)):
            self._disk.punch(self._fd, address, length)
            freed += length
        return freed


def _runs(pieces: Sequence[Piece], raw: Buffer) -> Iterator[tuple[int, memoryview]]:
    """Yield what to write where; pieces that only alignment separates go together: one write for many small files."""
    view = memoryview(raw)
    first = 0
    for number in range(1, len(pieces) + 1):
        if number < len(pieces) and _adjoins(
            pieces[number - 1].address + pieces[number - 1].length, pieces[number].address
        ):
            continue
        group = pieces[first:number]
        first = number
        start = group[0].address
        if len(group) == 1:
            yield start, view[group[0].inner_offset : group[0].inner_offset + group[0].length]
            continue
        joined = bytearray(group[-1].address + group[-1].length - start)
        for piece in group:
            at = piece.address - start
            joined[at : at + piece.length] = view[piece.inner_offset : piece.inner_offset + piece.length]
        yield start, memoryview(joined)


def _merged(groups: Iterable[Sequence[Piece]]) -> Iterator[tuple[int, int]]:
    """Yield (address, length) of the pieces, neighbours that only alignment separates as one."""
    start = end = -1
    for piece in (piece for pieces in groups for piece in pieces):
        if start < 0:
            start = piece.address
        elif not _adjoins(end, piece.address):
            yield start, end - start
            start = piece.address
        end = piece.address + piece.length
    if start >= 0:
        yield start, end - start


def _adjoins(end: int, address: int) -> bool:
    """Whether nothing lies between *end* and *address* but the rest of the block in which *end* lies."""
    return address == end or (address % _BLOCK_BYTES == 0 and 0 < address - end < _BLOCK_BYTES)
