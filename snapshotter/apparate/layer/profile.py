"""What was read of a layer, in order of the first access: bounded, kept over restarts, told in terms of files."""

from __future__ import annotations

import struct
import threading
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from apparate.format.erofs.reader import ErofsReader
from apparate.layer.model import Touch

if TYPE_CHECKING:
    from apparate.format.index import LayerIndex

PROFILE_NAME: Final = "profile"
_BLOCK_BITS: Final = 12
_BLOCK_BYTES: Final = 1 << _BLOCK_BITS
# The file `profile`: magic, CRC-32 of the rest, then pairs (first block, number of blocks), 4 bytes each, host byte order
_HEAD: Final = struct.Struct("=8sI")
_MAGIC: Final = b"APPRTCH1"
_REGULAR: Final = 0o100000


class Profile:
    """The touched blocks of one layer. Thread-safe."""

    def __init__(self, first_block: int, block_count: int, entries: int) -> None:
        """Blocks from *first_block* on are of interest; those before hold metadata and are always here."""
        self._first = first_block
        self._count = block_count
        self._entries = entries
        self._lock = threading.Lock()
        self._seen: bytearray | None = None  # one byte a block, made at the first touch
        self._pairs = array("I")
        self.changed = False

    def touch(self, address: int, length: int) -> None:
        """Note that [address, address + length) was read; only what was not read before becomes an entry."""
        first = max(address >> _BLOCK_BITS, self._first)
        last = min((address + length + _BLOCK_BYTES - 1) >> _BLOCK_BITS, self._first + self._count)
        if first >= last:
            return
        with self._lock:
            if self._seen is None:
                self._seen = bytearray(self._count)
            start, end = first - self._first, last - self._first
            position = self._seen.find(0, start, end)
            while position >= 0:
                stop = self._seen.find(1, position, end)
                stop = end if stop < 0 else stop
                if not self._append(position + self._first, stop - position):
                    return
                self._seen[position:stop] = b"\x01" * (stop - position)
                position = self._seen.find(0, stop, end)

    def _append(self, first: int, count: int) -> bool:
        pairs = self._pairs
        if pairs and pairs[-2] + pairs[-1] == first:
            pairs[-1] += count
        elif len(pairs) < 2 * self._entries:
            pairs.extend((first, count))
        else:
            return False
        self.changed = True
        return True

    def ranges(self) -> list[tuple[int, int]]:
        """Return the touched image ranges (address, length) in order."""
        with self._lock:
            return [(first << _BLOCK_BITS, count << _BLOCK_BITS) for first, count in _paired(self._pairs)]

    def dump(self) -> bytes:
        """Return the file's content."""
        with self._lock:
            self.changed = False
            body = self._pairs.tobytes()
        return _HEAD.pack(_MAGIC, zlib.crc32(body)) + body

    def load(self, content: bytes) -> None:
        """Go on with what `dump` gave; anything else is ignored, for a lost profile harms nobody."""
        if len(content) < _HEAD.size or (len(content) - _HEAD.size) % 8:
            return
        body = content[_HEAD.size :]
        if _HEAD.unpack_from(content) != (_MAGIC, zlib.crc32(body)):
            return
        for first, count in _paired(array("I", body)):
            self.touch(first << _BLOCK_BITS, count << _BLOCK_BITS)
        self.changed = False


def _paired(pairs: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip(pairs[::2], pairs[1::2], strict=True)


def in_files(index: LayerIndex, ranges: Sequence[tuple[int, int]]) -> list[Touch]:
    """Return image *ranges* as parts of files, in the given order; padding and metadata are left out."""
    reader = ErofsReader(index.metadata())
    files: dict[int, tuple[int, bytes]] = {}
    for path, inode in reader.walk():
        if inode.kind == _REGULAR and inode.size:
            files.setdefault(reader.address(inode), (inode.size, path))
    starts = sorted(files)
    touches = []
    for address, length in ranges:
        number = max(0, bisect_right(starts, address) - 1)
        while number < len(starts) and starts[number] < address + length:
            size, path = files[starts[number]]
            begin = max(0, address - starts[number])
            end = min(size, address + length - starts[number])
            if begin < end:
                touches.append(Touch(path, begin, end - begin))
            number += 1
    return touches
