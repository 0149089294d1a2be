"""One layer: from the spooled source tar to a blob that can be loaded on demand.

Members are compressed by a pool of threads, a batch at a time, a bounded number of batches ahead of the one that is being
written; the blob is written in plan order, so the number of threads does not show in the result. Memory: `BATCHES_AHEAD`
batches of `BATCH_BYTES` for each thread, besides the entries of the layer.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from apparate.convert.ordered import in_order
from apparate.convert.pieces import digest_of, resolve
from apparate.convert.spool import disk_errors, open_spool, write_all
from apparate.format.embedding import IndexLocation, embed
from apparate.format.index.build import build_index
from apparate.oci import names
from apparate.oci.digest import Digest
from apparate.oci.manifest import Descriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future, ThreadPoolExecutor

    from apparate.convert.spool import Spool
    from apparate.format.prefetch import PrefetchRange
    from apparate.format.toc import Compression, Entry
    from apparate.format.writer import EncodedMember, LayerFormat, LayerPlan, MemberPlan, MemberSummary

BATCH_BYTES: Final = 512 * 1024
"""Uncompressed bytes given to a thread at once: enough that handing them over costs nothing."""
BATCHES_AHEAD: Final = 4
"""Batches per thread that may be waiting or done but not yet written."""


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """A finished layer in a temporary file; nothing of it has been proven yet (`check.prove` does)."""

    fd: int
    descriptor: Descriptor
    compression: Compression
    entries: list[Entry]
    """As they were planned, in the order of the tar."""
    toc_digest: Digest
    index: IndexLocation

    def close(self) -> None:
        """Give the disk space back."""
        os.close(self.fd)


class LayerWriter:
    """Writes layers of one format; thread-safe, the pool is shared by all layers of a conversion."""

    def __init__(self, layer_format: LayerFormat, pool: ThreadPoolExecutor, workers: int, directory: str) -> None:
        self._format = layer_format
        self._pool = pool
        self._ahead = workers * BATCHES_AHEAD
        self._directory = directory

    def write(
        self, spool: Spool, prefetch: Sequence[PrefetchRange] | None, advance: Callable[[int, int], None]
    ) -> WrittenLayer:
        """Return the layer made of *spool*; *advance* is told (uncompressed bytes done, of how many).

        Raises:
            FormatError: the entries of the layer do not make a tree.
            FailedPrecondition: the disk is full.
        """
        plan = self._format.plan(spool.entries, prefetch)
        files = [self._pool.submit(digest_of, spool.fd, file.pieces) for file in plan.whole_files]
        try:
            return self._write(spool, plan, prefetch, files, advance)
        finally:
            for waiting in files:
                waiting.cancel()

    def _write(
        self,
        spool: Spool,
        plan: LayerPlan,
        prefetch: Sequence[PrefetchRange] | None,
        files: Sequence[Future[bytes]],
        advance: Callable[[int, int], None],
    ) -> WrittenLayer:
        output = _Output(open_spool(self._directory), self._directory)
        try:
            members = self._members(spool.fd, plan, output, advance)
            toc = self._format.table(plan, members)
            digests = {file.entry: waiting.result() for file, waiting in zip(plan.whole_files, files, strict=True)}
            members_end = output.size
            document = self._format.document(toc, digests)
            packed = build_index(toc, profile=prefetch or (), toc_digest=document.digest)
            region = embed(packed, self._format.compression)
            trailer = self._format.finish(plan, document, members_end, region)
            output.append(trailer.data)
            index = IndexLocation.of(region, trailer.region_offset)
            annotations = {
                **trailer.annotations,
                names.INDEX: index.to_annotation(),
                names.CODEC: self._format.codec,
            }
            return WrittenLayer(
                fd=output.fd,
                descriptor=Descriptor(self._format.media_type, output.digest, output.size, annotations),
                compression=self._format.compression,
                entries=plan.entries,
                toc_digest=Digest("sha256", document.digest.hex()),
                index=index,
            )
        except BaseException:
            output.close()
            raise

    def _members(
        self, spool_fd: int, plan: LayerPlan, output: _Output, advance: Callable[[int, int], None]
    ) -> list[MemberSummary]:
        """Compress all members in the pool and append them to *output* in order."""
        total = sum(member.raw_length for member in plan.members)
        done = 0
        summaries: list[MemberSummary] = []
        jobs = (self._pool.submit(self._encode, spool_fd, batch) for batch in _batches(plan.members))
        for encoded in in_order(jobs, self._ahead):
            output.append(*(member.data for member in encoded))
            summaries.extend(member.summary for member in encoded)
            done += sum(member.summary.raw_length for member in encoded)
            advance(done, total)
        return summaries

    def _encode(self, spool_fd: int, batch: Sequence[MemberPlan]) -> list[EncodedMember]:
        return [self._format.encode(member, resolve(spool_fd, member.pieces)) for member in batch]


class _Output:
    """The growing blob: its file, length and digest."""

    def __init__(self, fd: int, directory: str) -> None:
        self.fd = fd
        self.size = 0
        self._directory = directory
        self._hasher = hashlib.sha256()

    def append(self, *parts: bytes) -> None:
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._hasher.update(data)
        with disk_errors(self._directory):
            write_all(self.fd, data)
        self.size += len(data)

    @property
    def digest(self) -> Digest:
        return Digest("sha256", self._hasher.hexdigest())

    def close(self) -> None:
        os.close(self.fd)


def _batches(members: Iterable[MemberPlan]) -> Iterator[list[MemberPlan]]:
    """Group members so that each group has about BATCH_BYTES."""
    batch: list[MemberPlan] = []
    size = 0
    for member in members:
        batch.append(member)
        size += member.raw_length
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
