"""The layers of a conversion on their way: several are read, several converted, at the same time.

    reading threads (`reading`)        fetch, inflate, verify, spool                    `reading.READS_AT_ONCE`
    the caller's thread                what a layer needs to know of the others
    layer threads                      plan, write, prove, upload                       `layers_in_flight`
    compression threads                members and their digests, for all layers        `worker_count`

Layers are read base first, for a directory that a layer only implies gets its attributes from the layers below (`implied`).
With a prefetch list they are read topmost first, for a path is taken from the layer that shows it (`selection.Claims`); a layer
that also implies directories is then read a second time, when those below are known.

A layer that several images share is converted once. Leaving the context stops everything; temporary files have no names.
"""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from apparate.convert.check import prove
from apparate.convert.implied import Survey, attributes, directories_from_below, with_directories
from apparate.convert.layer import LayerWriter
from apparate.convert.pieces import read_exactly
from apparate.convert.progress import Stage
from apparate.convert.reading import LayerReader, SourceLayer
from apparate.convert.result import LayerResult
from apparate.convert.selection import Claims, concerning, listed_paths
from apparate.errors import ApparateError
from apparate.format.formats import layer_format_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from apparate.convert.layer import WrittenLayer
    from apparate.convert.progress import Progress
    from apparate.convert.settings import ConvertOptions, ConvertSettings
    from apparate.convert.spool import Spool
    from apparate.convert.stores import ImageSource, ImageTarget
    from apparate.format.prefetch import PrefetchRange
    from apparate.format.toc import Entry
    from apparate.oci.digest import Digest
    from apparate.oci.manifest import Descriptor, ImageConfig, Manifest

UPLOAD_PIECE_BYTES: Final = 1024 * 1024

REVISION: Final = 2
"""What is made of a source with the same options has changed this often: an older result is not taken for what is made today."""


class Stopped(ApparateError):
    """A layer's thread was told to end. Not temporary, so that no upload of it is tried again."""


def conversion_key(options: ConvertOptions) -> str:
    """Return what, with the source's digest, decides the digest of the result: the options and what compresses."""
    codec = layer_format_for(options.compression, options.layer_options).codec
    return f"{options.identity} codec={codec} revision={REVISION}"


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is kept of a layer that was read."""

    survey: Survey
    listed: list[Entry]
    """The entries that matter to the prefetch list."""


@dataclass(frozen=True, slots=True)
class _Variant:
    """A source layer and what its result depends on besides the options, hashable."""

    identity: tuple[Digest, Digest]
    claims: frozenset[bytes]
    added: tuple[object, ...]


@dataclass(slots=True)
class _Image:
    """The layers of an image, base first, and by position what has become of them."""

    layers: list[SourceLayer]
    claims: Claims
    claimed: dict[int, tuple[frozenset[bytes], Sequence[PrefetchRange] | None]]
    """Key of the claims before the layer was asked, and what it got; None: there is no list."""
    results: dict[int, Future[LayerResult]]


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
        self._target = target
        self._options = options
        self._settings = settings
        self._progress = progress
        self._stopping = threading.Event()
        self._room = threading.BoundedSemaphore(settings.layers_in_flight)
        self._reader = LayerReader(source, settings, progress, self._ticker)
        self._pool = ThreadPoolExecutor(settings.worker_count, "compress")
        self._layers = ThreadPoolExecutor(settings.layers_in_flight, "layer")
        layer_format = layer_format_for(options.compression, options.layer_options)
        self._writer = LayerWriter(layer_format, self._pool, settings.worker_count, settings.directory)
        self._listed = listed_paths(options.prefetch or ())
        self._seen: dict[tuple[Digest, Digest], _Seen] = {}
        self._known: dict[_Variant, Future[LayerResult]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with self._reader:
            self._layers.shutdown(cancel_futures=True)
            self._pool.shutdown(cancel_futures=True)

    def begin(self, manifest: Manifest, config: ImageConfig) -> list[Future[LayerResult]]:
        """Read the layers of an image and return what will be their results, base first.

        Raises:
            ApparateError: a layer could not be read, or one begun earlier has failed.
        """
        layers = [SourceLayer(*pair) for pair in zip(manifest.layers, config.diff_ids, strict=True)]
        image = _Image(layers, Claims(self._options.prefetch or ()), {}, {})
        order = range(len(layers)) if self._options.prefetch is None else range(len(layers))[::-1]
        unseen = {layers[number].identity: layers[number] for number in order}
        self._reader.want(layer for identity, layer in unseen.items() if identity not in self._seen)
        later = [number for number in order if not self._begin_layer(image, number)]
        for number in later:
            self._begin_variant(image, number, None)
        self._note_missed(image.claims.missed, config)
        return [image.results[number] for number in range(len(layers))]

    def _note_missed(self, paths: Sequence[bytes], config: ImageConfig) -> None:
        if paths:
            first = paths[0].decode(errors="backslashreplace")
            self._progress.note(
                f"prefetch list: {len(paths)} of its paths are no files of the image for {config.platform}: {first}, ..."
            )

    def _begin_layer(self, image: _Image, number: int) -> bool:
        """Read a layer, unless it was, and begin its conversion; False if layers below it must be read before."""
        self._raise_failure()
        layer = image.layers[number]
        spool = None
        if layer.identity not in self._seen:
            spool = self._reader.take()
            entries = [source.entry for source in spool.entries]
            self._seen[layer.identity] = _Seen(Survey.of(entries), concerning(entries, self._listed))
        seen, key = self._seen[layer.identity], image.claims.key
        ranges = None if self._options.prefetch is None else image.claims.take(seen.listed)
        image.claimed[number] = key, ranges
        if seen.survey.implied and any(lower.identity not in self._seen for lower in image.layers[:number]):
            if spool is not None:
                spool.close()
            return False
        self._begin_variant(image, number, spool)
        return True

    def _begin_variant(self, image: _Image, number: int, spool: Spool | None) -> None:
        """Begin the conversion of a layer, unless the same was begun before. Takes *spool*; None: it must be read if needed."""
        layer = image.layers[number]
        claims, ranges = image.claimed[number]
        survey = self._seen[layer.identity].survey
        below = [self._seen[lower.identity].survey for lower in image.layers[:number]] if survey.implied else []
        added = directories_from_below(survey, below)
        variant = _Variant(layer.identity, claims, tuple(map(attributes, added)))
        if variant not in self._known:
            self._known[variant] = self._submit(layer, spool, added, ranges)
        elif spool is not None:
            spool.close()
        image.results[number] = self._known[variant]

    def _submit(
        self,
        layer: SourceLayer,
        spool: Spool | None,
        added: Sequence[Entry],
        ranges: Sequence[PrefetchRange] | None,
    ) -> Future[LayerResult]:
        """Give a layer to a thread once one is free, and with it the duty to close *spool* and to give the room back."""
        with ExitStack() as undo:
            if spool is not None:
                undo.callback(spool.close)
            self._wait_for_room()
            undo.callback(self._room.release)
            if spool is None:
                spool = self._reader.again(layer)
                undo.callback(spool.close)
            complete = dataclasses.replace(spool, entries=with_directories(spool.entries, added))
            future = self._layers.submit(self._convert, layer.descriptor, complete, ranges)
            undo.pop_all()
            return future

    def _wait_for_room(self) -> None:
        self._room.acquire()
        try:
            self._raise_failure()
        except BaseException:
            self._room.release()
            raise

    def _raise_failure(self) -> None:
        for future in self._known.values():
            if future.done():
                future.result()

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
