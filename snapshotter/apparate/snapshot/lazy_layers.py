"""What the snapshotter does with layers that the loader serves: mount, keep, unmount, drop.

A layer is mounted for whoever stands above it, stays mounted for a while after the last one has gone, because
its pages stay cached with it, and is dropped when no snapshot refers to it and no pull under way wants it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from apparate.errors import ApparateError
from apparate.oci.digest import Digest
from apparate.snapshot.directories import SnapshotDirectories
from apparate.snapshot.janitor import Janitor
from apparate.snapshot.layer_mounts import LayerMounts
from apparate.snapshot.metastore import Metastore
from apparate.snapshot.model import Record
from apparate.snapshot.reconcile import reconcile_layers
from apparate.snapshot.remote import LayerState, Loader, Usage
from apparate.snapshot.resolver import LayerResolver
from apparate.telemetry.logging import get_logger

log = get_logger("snapshot.layers")

LAYER_LOST = "the loader has lost a layer, it is resolved again"


class LazyLayers:
    """The lazy layers of one root. Thread-safe."""

    def __init__(
        self,
        loader: Loader,
        store: Metastore,
        directories: SnapshotDirectories,
        resolver: LayerResolver,
        janitor: Janitor,
        unmount_idle_s: float,
        *,
        metadata_lost: bool = False,
    ) -> None:
        """Without all records, which *metadata_lost* says, no layer is known to be unused: none is unmounted or dropped."""
        self._loader = loader
        self._store = store
        self._directories = directories
        self._resolver = resolver
        self._janitor = janitor
        self._unmount_idle_s = unmount_idle_s
        self._metadata_lost = metadata_lost
        self._mounts = LayerMounts(loader, store.layers_in_use, self._resolve_again)

    def close(self) -> None:
        """Stop the threads. Nothing is unmounted."""
        self._mounts.close()

    @contextmanager
    def mounted(self, chain: Sequence[Record]) -> Iterator[None]:
        """Keep the lazy layers of *chain* mounted, each at its snapshot's directory, inside the block."""
        lazy = [(record.id, record.layer) for record in chain if record.layer is not None]
        with self._mounts.held(layer for _, layer in lazy) as paths:
            for snapshot_id, layer in lazy:
                self._directories.link(snapshot_id, paths[layer])
            yield

    def keep(self, chain: Sequence[Record]) -> None:
        """Forget that the layers of *chain* were idle: a snapshot above them is in the store."""
        for record in chain:
            if record.layer is not None:
                self._janitor.cancel(("release", record.layer))

    def release_later(self, chain: Sequence[Record]) -> None:
        """Unmount the lazy layers of *chain* that nobody uses any more, after the idle time."""
        for record in chain:
            if record.layer is not None:
                self._release_when_idle(record.layer)

    def _release_when_idle(self, layer: Digest, *, keep_waiting: bool = False) -> None:
        if self._metadata_lost:
            return
        self._janitor.submit(
            ("release", layer), lambda: self._release(layer), self._unmount_idle_s, keep_waiting=keep_waiting
        )

    def _release(self, layer: Digest) -> None:
        if self._mounts.release(layer):
            log.debug("layer unmounted", layer=str(layer))

    def drop_soon(self, layer: Digest) -> None:
        """Let the loader delete *layer*, unless a snapshot refers to it or a pull under way wants it."""
        if self._metadata_lost:
            return
        self._janitor.submit(("drop", layer), lambda: self._drop(layer))

    def _drop(self, layer: Digest) -> None:
        with self._resolver.dropping(layer) as is_free:
            if is_free and layer not in self._store.layers() and self._mounts.release(layer):
                self._loader.forget(layer)
                log.info("layer removed", layer=str(layer))

    def _resolve_again(self, layer: Digest) -> None:
        """Make a layer known to a loader that has lost it, from the labels of a snapshot that holds it."""
        for record in self._store.records():
            if record.layer == layer:
                log.warning(LAYER_LOST, layer=str(layer), key=record.info.name)
                self._resolver.resolve_again(record.info.labels)
                return

    def usage(self, record: Record) -> Usage:
        """Return the disk usage of a lazy layer; snapshots that share one are charged once, the oldest of them."""
        sharing = [other.id for other in self._store.records() if other.layer == record.layer]
        if record.layer is None or record.id != min(sharing, default=record.id):
            return Usage()
        try:
            return self._loader.usage(record.layer)
        except ApparateError as error:
            log.debug("usage of a layer is not to be had", layer=str(record.layer), error=str(error))
            return Usage()

    def reconcile(self) -> None:
        """Drop what no snapshot refers to and let idle mounts go.

        Raises:
            Unavailable: the loader is not there.
        """

        def on_unused(state: LayerState) -> None:
            if state.layer_digest not in self._store.layers():
                self.drop_soon(state.layer_digest)
            elif state.mounted:
                self._release_when_idle(state.layer_digest, keep_waiting=True)

        reconcile_layers(self._loader, self._store, self._resolver.wanted, on_unused)
