"""Reading a source layer: verified on the way, its uncompressed tar in a temporary file, its entries in memory.

Memory: the entries (about 1 KB each) and a few pieces of `inflate.PIECE_BYTES`. Disk: the uncompressed tar. The file has no
name, so nothing is left of it whatever happens to the process.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apparate.convert.inflate import inflate
from apparate.errors import FailedPrecondition, FormatError, IntegrityError
from apparate.format.tar import EntryHeader, TarParser
from apparate.oci.digest import Digest, Verifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from apparate.format.writer import SourceEntry
    from apparate.oci.manifest import Descriptor


@dataclass(frozen=True, slots=True)
class Spool:
    """A source layer at hand: `fd` is readable with pread, from any thread, until `close`."""

    fd: int
    size: int
    diff_id: Digest
    entries: list[SourceEntry]

    def close(self) -> None:
        """Give disk space and memory back."""
        os.close(self.fd)
        self.entries.clear()


@contextmanager
def disk_errors(directory: str) -> Iterator[None]:
    """Turn a full or unwritable *directory* into an error that says so."""
    try:
        yield
    except OSError as error:
        hint = (
            "; name another directory with --spool-dir"
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
            else ""
        )
        raise FailedPrecondition(f"temporary file in {directory}: {error.strerror}{hint}") from error


def open_spool(directory: str) -> int:
    """Return the descriptor of a new file without a name in *directory*."""
    with disk_errors(directory), tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        return os.dup(file.fileno())


def read_layer(
    chunks: Iterable[bytes],
    descriptor: Descriptor,
    diff_id: Digest,
    directory: str,
    size_max: int,
    tick: Callable[[int], None],
) -> Spool:
    """Read the source layer that arrives as *chunks* and return its spool, verified against *descriptor* and *diff_id*.

    *tick* is called with the number of compressed bytes read so far.

    Raises:
        IntegrityError: the blob or its tar does not hash to what manifest and configuration say.
        FormatError: the compression or the tar is broken, or it unpacks to more than *size_max* bytes.
        FailedPrecondition: the disk is full.
    """
    fd = open_spool(directory)
    verified = _verified(chunks, descriptor, tick)
    try:
        try:
            return _spool(fd, inflate(verified), diff_id, directory, size_max)
        except FormatError:
            # Bytes damaged on the way break the compression first; whose fault it is, the digest of the rest tells.
            deque(verified, maxlen=0)
            raise
    except BaseException:
        os.close(fd)
        raise


def _verified(chunks: Iterable[bytes], descriptor: Descriptor, tick: Callable[[int], None]) -> Iterator[bytes]:
    verifier = Verifier(descriptor.digest, f"layer {descriptor.digest}")
    for chunk in chunks:
        verifier.update(chunk)
        if verifier.length > descriptor.size:
            break
        tick(verifier.length)
        yield chunk
    if verifier.length != descriptor.size:
        found = "more" if verifier.length > descriptor.size else f"{verifier.length}"
        raise FormatError(
            "layer", "size", f"{descriptor.digest} has {found} bytes, its manifest says {descriptor.size}"
        )
    verifier.finish()


def _spool(fd: int, pieces: Iterator[bytes], diff_id: Digest, directory: str, size_max: int) -> Spool:
    hasher = hashlib.new(diff_id.algorithm)
    parser = TarParser(payload=False)
    entries: list[SourceEntry] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > size_max:
            raise FormatError(
                "layer", "uncompressed size", f"is more than the {size_max} bytes allowed (layer_bytes_max)"
            )
        hasher.update(piece)
        with disk_errors(directory):
            write_all(fd, piece)
        entries.extend(event.source() for event in parser.feed(piece) if isinstance(event, EntryHeader))
    parser.finish()
    actual = hasher.hexdigest()
    if actual != diff_id.hex:
        raise IntegrityError("uncompressed layer (DiffID)", str(diff_id), f"{diff_id.algorithm}:{actual}")
    return Spool(fd, size, diff_id, entries)


def write_all(fd: int, data: bytes) -> None:
    """Write all of *data* at the file's position."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
