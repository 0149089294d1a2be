"""Source layers, read ahead of the conversion: fetched, inflated, verified and spooled by threads of their own.

Bounded: READS_AT_ONCE layers are being read or wait to be taken; another one is begun only while those hold less than
AHEAD_BYTES of temporary disk and AHEAD_ENTRIES entries, unless it is the very next that is wanted.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from apparate.convert.progress import Stage
from apparate.convert.spool import read_layer
from apparate.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from apparate.convert.progress import Progress
    from apparate.convert.settings import ConvertSettings
    from apparate.convert.spool import Spool
    from apparate.convert.stores import ImageSource
    from apparate.oci.digest import Digest
    from apparate.oci.manifest import Descriptor

READS_AT_ONCE: Final = 3
"""Layers read at the same time: a single connection seldom fills the line."""
AHEAD_BYTES: Final = 4 * 1024**3
"""Uncompressed bytes of layers that are read and not yet taken."""
AHEAD_ENTRIES: Final = 50_000
"""Entries of layers that are read and not yet taken; each costs about half a KB of memory."""
UNPACKED_GUESS: Final = 4
"""How much larger than its blob a layer is taken to be, until it is known."""


@dataclass(frozen=True, slots=True)
class SourceLayer:
    """A layer of the source; `descriptor` may carry annotations, so that two of one digest need not be equal."""

    descriptor: Descriptor
    diff_id: Digest

    @property
    def identity(self) -> tuple[Digest, Digest]:
        """What decides its content."""
        return self.descriptor.digest, self.diff_id


class LayerReader:
    """Reads layers; a context manager, used from one thread. Leaving it gives back what was not taken.

    Leave it after whatever makes a ticker raise: reads that are under way end by that.
    """

    def __init__(
        self,
        source: ImageSource,
        settings: ConvertSettings,
        progress: Progress,
        ticker: Callable[[Descriptor, Stage], Callable[[int, int], None]],
    ) -> None:
        self._source = source
        self._settings = settings
        self._progress = progress
        self._ticker = ticker
        self._threads = ThreadPoolExecutor(READS_AT_ONCE, "read")
        self._wanted: deque[SourceLayer] = deque()
        self._begun: deque[tuple[SourceLayer, Future[Spool]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for _layer, future in self._begun:
            if not future.cancelled() and future.exception() is None:
                future.result().close()
        self._begun.clear()

    def want(self, layers: Iterable[SourceLayer]) -> None:
        """Say which layers will be taken next, in this order."""
        self._wanted.extend(layers)
        self._begin()

    def take(self) -> Spool:
        """Return the next of the layers that are wanted; it is the caller's to close.

        Raises:
            ApparateError: it cannot be read (`spool.read_layer`), or the source does not give it.
        """
        self._begin()
        _, future = self._begun.popleft()
        spool = future.result()
        self._begin()
        return spool

    def again(self, layer: SourceLayer) -> Spool:
        """Read a layer now, in the caller's thread, whatever is wanted next. Raises as `take`."""
        return self._read(layer)

    def _begin(self) -> None:
        """Begin to read what there is room for."""
        while self._wanted and (not self._begun or self._has_room(self._wanted[0])):
            layer = self._wanted.popleft()
            self._begun.append((layer, self._threads.submit(self._read, layer)))

    def _has_room(self, layer: SourceLayer) -> bool:
        size = UNPACKED_GUESS * layer.descriptor.size
        entries = 0
        for begun, future in self._begun:
            if future.done() and not future.exception():
                size += future.result().size
                entries += len(future.result().entries)
            else:
                size += UNPACKED_GUESS * begun.descriptor.size
        return len(self._begun) < READS_AT_ONCE and size <= AHEAD_BYTES and entries <= AHEAD_ENTRIES

    def _read(self, layer: SourceLayer) -> Spool:
        """Read a layer; once more, if it arrived damaged: a mirror or a proxy may have been to blame."""
        try:
            return self._read_once(layer)
        except IntegrityError as error:
            self._progress.note(f"{error}; reading the layer again")
            return self._read_once(layer)

    def _read_once(self, layer: SourceLayer) -> Spool:
        descriptor = layer.descriptor
        tick = self._ticker(descriptor, Stage.READ)
        with self._source.blob(descriptor) as chunks:
            return read_layer(
                chunks,
                descriptor,
                layer.diff_id,
                self._settings.directory,
                self._settings.layer_bytes_max,
                lambda done: tick(done, descriptor.size),
            )
