"""The layers of a conversion on their way: read one after the other, the rest of the work several layers at a time.

    reading thread (the caller's)      fetch, inflate, verify, spool                    one layer
    layer threads                      plan, write, prove, upload                       `layers_in_flight`
    compression threads                members and their digests, for all layers        `worker_count`

A layer that several images share is converted once. Leaving the context stops everything; temporary files have no names.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

from apparate.convert.check import prove
from apparate.convert.layer import LayerWriter
from apparate.convert.pieces import read_exactly
from apparate.convert.progress import Stage
from apparate.convert.result import LayerResult
from apparate.convert.selection import Claims
from apparate.convert.spool import read_layer
from apparate.errors import ApparateError, IntegrityError
from apparate.format.formats import layer_format_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from apparate.convert.layer import WrittenLayer
    from apparate.convert.progress import Progress
    from apparate.convert.settings import ConvertOptions, ConvertSettings
    from apparate.convert.spool import Spool
    from apparate.convert.stores import ImageSource, ImageTarget
    from apparate.format.prefetch import PrefetchRange
    from apparate.oci.digest import Digest
    from apparate.oci.manifest import Descriptor, ImageConfig, Manifest

UPLOAD_PIECE_BYTES: Final = 1024 * 1024

_Key = tuple["Digest", "Digest", frozenset[bytes]]


class Stopped(ApparateError):
    """A layer's thread was told to end. Not temporary, so that no upload of it is tried again."""


def conversion_key(options: ConvertOptions) -> str:
    """Return what, with the source's digest, decides the digest of the result: the options and what compresses."""
    codec = layer_format_for(options.compression, options.layer_options).codec
    return f"{options.identity} codec={codec}"


class LayerPipeline:
    """Converts layers from *source* to *target*; a context manager, used from one thread."""

    def __init__(
        self,
        source: ImageSource,
        target: ImageTarget,
        options: ConvertOptions,
        settings: ConvertSettings,
        progress: Progress,
    ) -> None:
        self._source = source
        self._target = target
        self._options = options
        self._settings = settings
        self._progress = progress
        self._stopping = threading.Event()
        self._room = threading.BoundedSemaphore(settings.layers_in_flight)
        self._pool = ThreadPoolExecutor(settings.worker_count, "compress")
        self._layers = ThreadPoolExecutor(settings.layers_in_flight, "layer")
        layer_format = layer_format_for(options.compression, options.layer_options)
        self._writer = LayerWriter(layer_format, self._pool, settings.worker_count, settings.directory)
        self._known: dict[_Key, tuple[Future[LayerResult], frozenset[bytes]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._layers.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    def begin(self, manifest: Manifest, config: ImageConfig) -> list[Future[LayerResult]]:
        """Read the layers of an image and return what will be their results, base first.

        Raises:
            ApparateError: a layer could not be read, or one begun earlier has failed.
        """
        claims = Claims(self._options.prefetch or ())
        results: list[Future[LayerResult]] = []
        pairs = list(zip(manifest.layers, config.diff_ids, strict=True))
        for descriptor, diff_id in reversed(pairs):  # the topmost first: a path is taken from the layer that shows it
            key = (descriptor.digest, diff_id, claims.key)
            if key not in self._known:
                self._raise_failure()
                future = self._begin_layer(descriptor, diff_id, claims)
                self._known[key] = (future, claims.key)
            future, left = self._known[key]
            claims.restrict(left)
            results.append(future)
        self._note_missed(claims.missed, config)
        return results[::-1]

    def _note_missed(self, paths: Sequence[bytes], config: ImageConfig) -> None:
        if paths:
            first = paths[0].decode(errors="backslashreplace")
            self._progress.note(
                f"prefetch list: {len(paths)} of its paths are no files of the image for {config.platform}: {first}, ..."
            )

    def _begin_layer(self, descriptor: Descriptor, diff_id: Digest, claims: Claims) -> Future[LayerResult]:
        self._wait_for_room()
        try:
            spool = self._read(descriptor, diff_id)
            prefetch = None
            if self._options.prefetch is not None:
                prefetch = claims.take(source.entry for source in spool.entries)
            return self._layers.submit(self._convert, descriptor, spool, prefetch)
        except BaseException:
            self._room.release()
            raise

    def _wait_for_room(self) -> None:
        self._room.acquire()
        try:
            self._raise_failure()
        except BaseException:
            self._room.release()
            raise

    def _raise_failure(self) -> None:
        for future, _ in self._known.values():
            if future.done():
                future.result()

    def _read(self, descriptor: Descriptor, diff_id: Digest) -> Spool:
        """Read a layer; once more, if it arrived damaged: a mirror or a proxy may have been to blame."""
        try:
            return self._read_once(descriptor, diff_id)
        except IntegrityError as error:
            self._progress.note(f"{error}; reading the layer again")
            return self._read_once(descriptor, diff_id)

    def _read_once(self, descriptor: Descriptor, diff_id: Digest) -> Spool:
        tick = self._ticker(descriptor, Stage.READ)
        with self._source.blob(descriptor) as chunks:
            return read_layer(
                chunks,
                descriptor,
                diff_id,
                self._settings.directory,
                self._settings.layer_bytes_max,
                lambda done: tick(done, descriptor.size),
            )

    def _convert(self, source: Descriptor, spool: Spool, prefetch: Sequence[PrefetchRange] | None) -> LayerResult:
        try:
            try:
                written = self._writer.write(spool, prefetch, self._ticker(source, Stage.COMPRESS))
            finally:
                spool.close()
            try:
                return self._finish(source, written, prefetch)
            finally:
                written.close()
        finally:
            self._room.release()

    def _finish(
        self, source: Descriptor, written: WrittenLayer, prefetch: Sequence[PrefetchRange] | None
    ) -> LayerResult:
        workers = self._settings.worker_count
        proof = prove(written, prefetch, self._pool, workers, self._ticker(source, Stage.CHECK))
        uploaded = not self._target.has(written.descriptor)
        if uploaded:
            self._target.put(written.descriptor, lambda: self._pieces(source, written))
        result = LayerResult(
            source=source,
            layer=written.descriptor,
            diff_id=proof.diff_id,
            toc_digest=written.toc_digest,
            raw_size=proof.raw_size,
            entries=proof.entries,
            members=proof.members,
            prefetch_size=proof.prefetch_size,
            uploaded=uploaded,
        )
        self._progress.finished(result)
        return result

    def _pieces(self, source: Descriptor, written: WrittenLayer) -> Iterator[bytes]:
        tick = self._ticker(source, Stage.UPLOAD)
        size = written.descriptor.size
        for offset in range(0, size, UPLOAD_PIECE_BYTES):
            yield read_exactly(written.fd, offset, min(UPLOAD_PIECE_BYTES, size - offset))
            tick(min(offset + UPLOAD_PIECE_BYTES, size), size)

    def _ticker(self, source: Descriptor, stage: Stage) -> Callable[[int, int], None]:
        """Return what reports the progress of a layer and, on the way, ends its thread when all is to stop."""

        def tick(done: int, total: int) -> None:
            if self._stopping.is_set():
                raise Stopped("the conversion was stopped")
            self._progress.advance(source.digest, stage, done, total)

        return tick
